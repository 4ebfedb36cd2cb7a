//! Events as both groups create and show them.

use crate::control::{Client, Control};
use serde_json::{Value, json};

const CORE: &str = "/api/v1/namespaces/default/events";
const NEW: &str = "/apis/events.k8s.io/v1/namespaces/default/events";

/// As client-go's recorder of events.k8s.io makes one.
fn event() -> Value {
    json!({
        "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.123456Z",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
        "related": {"kind": "Node", "name": "b1"},
        "reason": "Wet", "note": "water", "type": "Warning", "action": "Watching",
        "reportingController": "example.com/sensor", "reportingInstance": "sensor-b1",
    })
}

#[tokio::test]
async fn an_event_of_the_new_group_is_seen_in_both() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let (code, made) = client.json("POST", NEW, Some(&event())).await;
    assert_eq!(
        (code, &made["apiVersion"], &made["note"]),
        (201, &json!("events.k8s.io/v1"), &json!("water")),
        "{made}"
    );
    let (_, core) = client.json("GET", &format!("{CORE}/e"), None).await;
    for (key, value) in [
        ("/apiVersion", json!("v1")),
        ("/message", json!("water")),
        ("/involvedObject/name", json!("p")),
        ("/related/name", json!("b1")),
        ("/reportingComponent", json!("example.com/sensor")),
        ("/reportingInstance", json!("sensor-b1")),
        ("/eventTime", json!("2026-01-01T00:00:00.123456Z")),
        ("/action", json!("Watching")),
        ("/regarding", Value::Null),
    ] {
        assert_eq!(core.pointer(key).unwrap_or(&Value::Null), &value, "{key}: {core}");
    }
    // It goes on: a series, as the recorder patches it.
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:01:00.000000Z"}});
    let (code, patched) = client.json("PATCH", &format!("{NEW}/e"), Some(&series)).await;
    assert_eq!((code, &patched["series"]["count"]), (200, &json!(2)), "{patched}");
    let (_, found) = client.json("GET", &format!("{CORE}?fieldSelector=reason%3DWet"), None).await;
    assert_eq!(found["items"][0]["series"]["count"], 2, "{found}");
}

async fn refused(client: &mut Client, path: &str, change: &Value, whys: &[&str]) {
    let mut event = event();
    for (key, value) in change.as_object().expect("fields") {
        event[key] = value.clone();
    }
    let (code, refused) = client.json("POST", path, Some(&event)).await;
    assert_eq!(code, 422, "{change}: {refused}");
    let found: Vec<String> = refused["details"]["causes"]
        .as_array()
        .expect("causes")
        .iter()
        .map(|cause| {
            format!(
                "{}: {}",
                cause["field"].as_str().unwrap_or_default(),
                cause["message"].as_str().unwrap_or_default()
            )
        })
        .collect();
    assert_eq!(found, whys, "{change}");
}

#[tokio::test]
async fn an_event_of_the_new_group_says_who_what_when_and_why() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    for (change, whys) in [
        (json!({"eventTime": null}), &["eventTime: Required value"][..]),
        (json!({"action": ""}), &["action: Required value"]),
        (
            json!({"reason": null, "reportingInstance": ""}),
            &["reportingInstance: Required value", "reason: Required value"],
        ),
        (
            json!({"action": "x".repeat(129)}),
            &["action: Invalid value: \"\": can have at most 128 characters"],
        ),
        (
            json!({"note": "x".repeat(1025)}),
            &["message: Invalid value: \"\": can have at most 1024 characters"],
        ),
        (json!({"type": "Loud"}), &["type: Invalid value: \"\": has invalid value: Loud"]),
        (
            json!({"deprecatedCount": 3, "deprecatedSource": {"component": "kubelet"}}),
            &[
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
            ],
        ),
        (
            json!({"series": {"count": 1}}),
            &[
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
            ],
        ),
    ] {
        refused(&mut client, NEW, &change, whys).await;
    }
    // Of what has no namespace they are in two namespaces only.
    let node = json!({"regarding": {"kind": "Node", "name": "b1"}});
    let why = "involvedObject.namespace: Invalid value: \"\": does not match event.namespace";
    refused(&mut client, &NEW.replace("default", "kube-public"), &node, &[why]).await;
    // The core group asks the same of those that have a time of their own, and nothing of the others.
    let core = |time: Value| {
        json!({
            "metadata": {"generateName": "e"}, "eventTime": time,
            "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        })
    };
    let (code, answer) = client.json("POST", CORE, Some(&core("2026-01-01T00:00:00.000000Z".into()))).await;
    let causes = answer["details"]["causes"].as_array().map(Vec::len);
    assert_eq!((code, causes), (422, Some(6)), "the empty name is no name in two ways: {answer}");
    assert_eq!(client.json("POST", CORE, Some(&core(Value::Null))).await.0, 201);
}
