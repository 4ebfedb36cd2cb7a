//! Bodies good and bad, in upstream's words.

use serde_json::json;

use super::*;
use crate::schema;

fn decoded(version: &str, kind: &str, value: Value) -> Result<Decoded, TypeError> {
    object(schema::kind(version, kind).expect("a known kind"), value)
}

#[test]
fn json_is_read_with_its_duplicates() {
    let check = |text: &str, expected: Result<(Value, &[&str]), &str>| {
        let found = json(text.as_bytes()).map(|d| (d.value, d.duplicates)).map_err(|e| e.to_string());
        let expected = expected
            .map(|(v, d)| (v, d.iter().map(|d| (*d).to_owned()).collect::<Vec<_>>()))
            .map_err(ToOwned::to_owned);
        assert_eq!(found, expected, "{text}");
    };
    check("{\"a\":1}", Ok((json!({"a": 1}), &[])));
    check(
        "{\"a\":1,\"a\":2,\"b\":[{\"c\":1,\"c\":null}]}",
        Ok((json!({"a": 2, "b": [{"c": null}]}), &["a", "b[0].c"])),
    );
    check("{\"kind\":", Err("unexpected end of JSON input"));
    check("", Err("unexpected end of JSON input"));
    check("nope", Err("invalid character 'o' in literal"));
    check("{\"a\":x}", Err("invalid character 'x' looking for beginning of value"));
    check("{} {}", Err("invalid character '{' after top-level value"));
    check("{a:1}", Err("invalid character 'a' looking for beginning of object key string"));
    check("{\"a\":1 \"b\"}", Err("invalid character '\"' after object key:value pair"));
    check(&"[".repeat(200_000), Err("exceeded max depth"));
    check(&" ".repeat(BODY_BYTES_MAX + 1), Err("limit is 3145728"));
    check(&format!("[{}0]", "0,".repeat(VALUES_MAX)), Err("the body holds more than 100000 values"));
}

#[test]
fn yaml_is_read() {
    let value = yaml(b"a: 1\nb: [x, true]\n").expect("YAML").value;
    assert_eq!(value, json!({"a": 1, "b": ["x", true]}));
    assert_eq!(yaml(b"{\"a\":1,\"a\":2}").expect("JSON").duplicates, ["a"]);
    assert!(yaml(b"a: [").is_err());
    assert!(yaml(&[0xff]).is_err());
}

#[test]
fn objects_become_canonical() {
    let check = |version, kind, value: Value, expected: Value| {
        let found = decoded(version, kind, value).expect("it fits");
        assert_eq!(found.value, expected);
        let again = decoded(version, kind, found.value.clone()).expect("it fits");
        assert_eq!((again.value, again.strict), (found.value, vec![]), "idempotent");
    };
    check(
        "v1",
        "Pod",
        json!({"kind": "Pod", "metadata": {"name": "a", "creationTimestamp": null, "labels": {}}, "status": {},
            "spec": {"containers": [], "nodeSelector": null, "hostNetwork": false, "priority": 0, "hostname": "",
                "automountServiceAccountToken": false, "volumes": [], "spce": 1}}),
        json!({"kind": "Pod", "metadata": {"name": "a"}, "status": {},
            "spec": {"containers": [], "priority": 0, "automountServiceAccountToken": false}}),
    );
    // As an upstream server answers.
    check(
        "batch/v1",
        "CronJob",
        json!({"spec": {"schedule": "x", "jobTemplate": {"spec": {"template": {"spec": {"containers": [{"name": "c"}]}}}}}}),
        json!({"metadata": {}, "spec": {"schedule": "x", "jobTemplate": {"metadata": {}, "spec": {"template": {"metadata": {},
            "spec": {"containers": [{"name": "c", "resources": {}}]}}}}}, "status": {}}),
    );
    check(
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        json!({"spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "d"}}}),
        json!({"metadata": {}, "spec": {"maxReplicas": 5, "scaleTargetRef": {"kind": "Deployment", "name": "d"}},
            "status": {"currentMetrics": null, "desiredReplicas": 0}}),
    );
    check(
        "v1",
        "Pod",
        json!({"spec": {"containers": null}, "status": {"conditions": [{"type": "Ready", "status": "True"}]}}),
        json!({"metadata": {}, "spec": {"containers": null}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}]}}),
    );
    check(
        "v1",
        "ResourceQuota",
        json!({"spec": {"hard": {"cpu": 2, "memory": "1024Mi", "pods": "0.5"}}}),
        json!({"metadata": {}, "spec": {"hard": {"cpu": "2", "memory": "1Gi", "pods": "500m"}}, "status": {}}),
    );
    check("v1", "ConfigMap", json!({"data": {"a": null}}), json!({"metadata": {}, "data": {"a": ""}}));
}

#[test]
fn strict_errors_read_as_upstreams() {
    let strict = |value| decoded("v1", "Pod", value).expect("it fits").strict;
    assert_eq!(
        strict(json!({"spce": {}, "spec": {"containers": [{"imagee": "x"}]}})),
        ["unknown field \"spce\"", "unknown field \"spec.containers[0].imagee\""]
    );
    let many: serde_json::Map<_, _> = (0..1000).map(|n| (format!("x{n}"), json!(1))).collect();
    assert_eq!(strict(Value::Object(many)).len(), STRICT_ERRORS_MAX);
    let errors = vec!["unknown field \"a\"".to_owned(), "duplicate field \"b\"".to_owned()];
    assert_eq!(FieldValidation::parse("Warn").expect("known").judge(errors.clone()), Ok(errors.clone()));
    assert_eq!(FieldValidation::Ignore.judge(errors.clone()), Ok(vec![]));
    assert_eq!(
        FieldValidation::Strict.judge(errors).expect_err("strict").to_string(),
        "strict decoding error: unknown field \"a\", duplicate field \"b\""
    );
    assert_eq!(FieldValidation::parse("Loose"), None);
    let document = json(b"{\"a\":{\"b\":1,\"b\":2}}").expect("JSON");
    assert_eq!(duplicates(&document), ["duplicate field \"a.b\""]);
}

#[test]
fn wrong_types_read_as_upstreams() {
    let check = |value: Value, expected: &str| {
        let error = decoded("v1", "Pod", value.clone()).expect_err(&value.to_string()).to_string();
        assert!(error.starts_with(expected), "{error}");
    };
    let container = |c: Value| json!({"spec": {"containers": [c]}});
    check(
        container(json!({"name": 5})),
        "json: cannot unmarshal number into Go struct field Container.spec.containers.name of type string",
    );
    check(
        json!({"spec": {"containers": {}}}),
        "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
    );
    check(
        json!({"metadata": {"labels": {"a": 1}}}),
        "json: cannot unmarshal number into Go struct field ObjectMeta.metadata.labels.a of type string",
    );
    check(
        json!({"spec": {"priority": 99_999_999_999_u64}}),
        "json: cannot unmarshal number 99999999999 into Go struct field PodSpec.spec.priority of type int32",
    );
    check(json!([]), "json: cannot unmarshal array into Go value of type v1.Pod");
    check(
        container(json!({"resources": {"limits": {"memory": "lots"}}})),
        "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
    );
    check(
        json!({"metadata": {"deletionTimestamp": "soon"}}),
        "parsing time \"soon\" as \"2006-01-02T15:04:05Z07:00\": cannot parse \"soon\" as \"2006\"",
    );
    let secret = |data: &str| decoded("v1", "Secret", json!({"data": {"a": data}})).map(|d| d.strict);
    for good in ["", "YQ==", "YWI=", "YWJj", "YW\nJj"] {
        assert_eq!(secret(good), Ok(vec![]), "{good}");
    }
    for (bad, at) in [("*", 0), ("YQ=", 3), ("YQ", 2), ("Y===", 1), ("YQ==YQ==", 4)] {
        assert_eq!(secret(bad), Err(TypeError::Base64(at)), "{bad}");
    }
}

#[test]
fn times_are_rfc_3339() {
    let check = |time: &str, expected: Option<[&str; 2]>| {
        let whole = decoded("v1", "Pod", json!({"metadata": {"creationTimestamp": time}}));
        let micro = decoded("coordination.k8s.io/v1", "Lease", json!({"spec": {"renewTime": time}}));
        let found = whole.ok().map(|d| d.value["metadata"]["creationTimestamp"].clone());
        assert_eq!(found, expected.map(|[whole, _]| whole.into()), "{time}");
        let found = micro.ok().map(|d| d.value["spec"]["renewTime"].clone());
        assert_eq!(found, expected.map(|[_, micro]| micro.into()), "{time}");
    };
    check("2024-02-29T00:00:00Z", Some(["2024-02-29T00:00:00Z", "2024-02-29T00:00:00.000000Z"]));
    check("2023-01-31T23:59:59.1234567+02:00", Some(["2023-01-31T21:59:59Z", "2023-01-31T21:59:59.123456Z"]));
    for bad in [
        "2023-02-29T00:00:00Z",
        "2023-13-01T00:00:00Z",
        "2023-01-01T24:00:00Z",
        "2023-01-01",
        "é023-01-01T00:00:00Z",
    ] {
        check(bad, None);
    }
}

/// Anything is made canonical or refused; canonical is a fixed point, and survives its own text.
#[test]
fn hostile_objects() {
    let mut seed = 13_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let names = [
        "metadata",
        "spec",
        "containers",
        "name",
        "ports",
        "containerPort",
        "resources",
        "limits",
        "cpu",
        "labels",
        "creationTimestamp",
        "volumes",
        "emptyDir",
        "sizeLimit",
        "readinessProbe",
        "httpGet",
        "port",
        "odd",
    ];
    fn make(random: &mut dyn FnMut(usize) -> usize, names: &[&str], deep: usize) -> Value {
        match random(if deep == 0 { 5 } else { 14 }) {
            0 => Value::Null,
            1 => json!(random(3)),
            2 => json!(["a", "1Gi", "2024-01-01T00:00:00Z", ""][random(4)]),
            3 => json!(random(2) == 0),
            4 => json!(1.5),
            5 | 6 => Value::Array((0..random(4)).map(|_| make(random, names, deep - 1)).collect()),
            _ => (0..random(6))
                .map(|_| (names[random(names.len())].to_owned(), make(random, names, deep - 1)))
                .collect(),
        }
    }
    let form = schema::kind("v1", "Pod").expect("a known kind");
    let mut fitted = 0;
    for _ in 0..20_000 {
        let value = make(&mut random, &names, 7);
        let text = value.to_string();
        assert_eq!(json(text.as_bytes()).expect("JSON").value, value);
        if let Ok(once) = object(form, value) {
            fitted += 1;
            let twice = object(form, once.value.clone()).expect("canonical fits");
            assert_eq!((&twice.value, twice.strict.len()), (&once.value, 0), "{text}");
        }
    }
    assert!(fitted > 500, "not everything is refused: {fitted}");
}
