//! Bodies that kubectl posts, bodies made by hand, and bodies that nobody should make.

use serde_json::json;

use super::*;

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push(u8::try_from(length & 0x7f).expect("7 bits") | 0x80);
        length >>= 7;
    }
    out.push(u8::try_from(length).expect("7 bits"));
    out.extend(bytes);
    out
}

fn body(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let meta = [field(1, version.as_bytes()), field(2, kind.as_bytes())].concat();
    [MAGIC.to_vec(), field(1, &meta), field(2, raw)].concat()
}

fn requests() -> impl Iterator<Item = (Vec<u8>, Value)> {
    include_str!("protobuf/kubectl.txt").lines().filter(|line| !line.starts_with('#')).map(|line| {
        let (body, object) = line.split_once(' ').expect("body and object");
        (STANDARD.decode(body).expect("base64"), serde_json::from_str(object).expect("JSON"))
    })
}

#[test]
fn what_kubectl_posts_is_what_it_prints() {
    let mut count = 0;
    for (body, printed) in requests() {
        let (version, kind) = (printed["apiVersion"].as_str(), printed["kind"].as_str());
        let form = schema::kind(version.expect("text"), kind.expect("text")).expect("a known kind");
        let expected = decode::object(form, printed.clone()).expect("it fits");
        assert_eq!(decode(&body).as_ref(), Ok(&expected.value), "{printed}");
        count += 1;
    }
    assert!(count > 20, "the requests were found");
}

#[test]
fn forms_that_kubectl_does_not_post() {
    let check = |version: &str, kind: &str, raw: Vec<u8>, expected: Value| {
        let mut expected = expected;
        expected["apiVersion"] = version.into();
        expected["kind"] = kind.into();
        let form = schema::kind(version, kind).expect("a known kind");
        let expected = decode::object(form, expected).expect("it fits").value;
        assert_eq!(decode(&body(version, kind, &raw)), Ok(expected), "{kind}");
    };
    // MicroTime: seconds 1, nanoseconds 2000.
    let spec = field(4, &[0x08, 1, 0x10, 0xd0, 0x0f]);
    check(
        "coordination.k8s.io/v1",
        "Lease",
        field(2, &spec),
        json!({"spec": {"renewTime": "1970-01-01T00:00:01.000002Z"}}),
    );
    let metadata = field(8, &[0x08, 0x80, 0x9d, 0xf9, 0xd0, 0x05, 0x10, 5]);
    check(
        "v1",
        "Namespace",
        field(1, &metadata),
        json!({"metadata": {"creationTimestamp": "2017-11-29T06:06:56Z"}}),
    );
    // An embedded object, a map of wrapped lists, a packed list.
    let data = field(1, br#"{"a":[1]}"#);
    check(
        "apps/v1",
        "ControllerRevision",
        [field(2, &data), vec![0x18, 7]].concat(),
        json!({"data": {"a": [1]}, "revision": 7}),
    );
    let entry = [field(1, b"k"), field(2, &[field(1, b"x"), field(1, b"y")].concat())].concat();
    check(
        "certificates.k8s.io/v1",
        "CertificateSigningRequest",
        field(2, &[field(1, &[0xff, 0]), field(6, &entry)].concat()),
        json!({"spec": {"request": "/wA=", "extra": {"k": ["x", "y"]}}}),
    );
    let context = field(4, &[1, 2, 0x80, 1]);
    check(
        "v1",
        "Pod",
        field(2, &field(14, &context)),
        json!({"spec": {"securityContext": {"supplementalGroups": [1, 2, 128]}}}),
    );
    // A message that comes twice is one; a volume has its source inline.
    let volume = [field(1, b"v"), field(2, &field(2, &[]))].concat();
    check(
        "v1",
        "Pod",
        [field(2, &field(1, &volume)), field(2, &field(10, b"n"))].concat(),
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}], "nodeName": "n"}}),
    );
    // Pointers keep their zeros, negative numbers their sign, unknown fields are passed over.
    check(
        "apps/v1",
        "Deployment",
        [field(2, &[0x08, 0]), vec![0xf8, 0x3f, 1, 0xfd, 0x3f, 1, 2, 3, 4]].concat(),
        json!({"spec": {"replicas": 0}}),
    );
    let minus = [&[0x10][..], &[0xff; 9], &[1]].concat();
    check("scheduling.k8s.io/v1", "PriorityClass", minus, json!({"value": -1}));
}

#[test]
fn bodies_that_are_refused() {
    let check = |body: Vec<u8>, expected: &str| {
        let error = decode(&body).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    };
    check(b"{}".to_vec(), "does not appear to be a protobuf message");
    check(vec![0; BODY_BYTES_MAX + 1], "limit is");
    check(body("v1", "Widget", &[]), "no kind \"Widget\" is registered for version \"v1\"");
    check(body("v1", "Pod", &[0x0a, 5, 1]), "unexpected EOF");
    check(body("v1", "Pod", &[0x08, 5]), "proto: wrong wireType = 0 for field metadata");
    check(body("v1", "Pod", &[0x0b]), "proto: illegal wireType 3");
    check(body("v1", "Pod", &[0x02, 0]), "proto: illegal tag 0");
    check(body("v1", "Pod", &[0xff; 11]), "proto: integer overflow");
    check(body("v1", "Pod", &field(1, &field(1, &[0xff]))), "field name contains invalid UTF-8");
    check(
        body("v1", "Namespace", &field(1, &field(8, &[[0x08].to_vec(), vec![0xff; 8], vec![0x7f]].concat()))),
        "is not a time",
    );
    check(body("apps/v1", "ControllerRevision", &field(2, &field(1, b"{"))), "unexpected end of JSON input");
    let empty: Vec<u8> = std::iter::repeat_n(field(2, &[]), VALUES_MAX + 1).flatten().collect();
    check(body("v1", "PodList", &empty), "more than 100000 values");
    let mut unknown = body("v1", "Pod", &[]);
    unknown.extend(field(4, b"text/xml"));
    check(unknown, "content type text/xml");
    let mut json = body("v1", "ConfigMap", br#"{"data":{"a":"b"}}"#);
    json.extend(field(4, b"application/json"));
    assert_eq!(
        decode(&json),
        Ok(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}, "data": {"a": "b"}}))
    );
}

/// Damaged bodies are decoded or refused, never more; what is decoded is canonical.
#[test]
fn hostile_bodies() {
    let mut seed = 5_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let bodies: Vec<_> = requests().map(|(body, _)| body).collect();
    let mut decoded = 0;
    for _ in 0..10_000 {
        let mut body = bodies[random(bodies.len())].clone();
        for _ in 0..=random(4) {
            let at = random(body.len());
            match random(4) {
                0 => body[at] ^= 1 << random(8),
                1 => body[at] = u8::try_from(random(256)).expect("a byte"),
                2 => body.truncate(at.max(1)),
                _ => body.insert(at, u8::try_from(random(256)).expect("a byte")),
            }
        }
        if let Ok(value) = decode(&body) {
            decoded += 1;
            let form = schema::kind(
                value["apiVersion"].as_str().expect("text"),
                value["kind"].as_str().expect("text"),
            );
            let again = decode::object(form.expect("known"), value.clone()).expect("it fits");
            assert_eq!(again.value, value);
        }
    }
    assert!(decoded > 300, "not everything is refused: {decoded}");
}
