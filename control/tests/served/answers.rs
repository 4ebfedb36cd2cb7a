//! The same requests, the same answers: what a running upstream server (1.36) said to fifty requests, against ours.
//!
//! Whole answers are compared. What differs from run to run is taken out of both sides: uid, times, versions,
//! managedFields, allocated addresses and ports, and what is made of random letters.

use crate::control::{Ask, Control};
use serde_json::Value;

const ANSWERS: &str = include_str!("../fixtures/answers.json");

#[tokio::test]
async fn fifty_requests_are_answered_as_upstream_does() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    let cases: Vec<Value> = serde_json::from_str(ANSWERS).expect("the fixture");
    assert_eq!(cases.len(), 50);
    let mut unequal = Vec::new();
    for case in &cases {
        let text = |key: &str| case[key].as_str().unwrap_or_default();
        let body = match &case["body"] {
            Value::Null => None,
            // What is no JSON is kept as text.
            Value::String(text) => Some(text.clone().into()),
            body => Some(body.to_string().into()),
        };
        let content_type = match (text("type"), &body) {
            ("", Some(_)) => "application/json",
            (given, _) => given,
        };
        let ask =
            Ask { method: text("method"), path: text("path"), body, content_type, accept: text("accept") };
        let (code, answer) = client.ask(ask).await;
        let answer: Value = serde_json::from_str(&answer).unwrap_or(Value::String(answer));
        let (ours, theirs) = (normalised(answer), normalised(case["answer"].clone()));
        if u64::from(code) != case["status"].as_u64().expect("a status") || ours != theirs {
            unequal.push(format!("{}: {code}\n  ours   {ours}\n  theirs {theirs}", text("name")));
        }
    }
    println!("{} of {} answers equal", cases.len() - unequal.len(), cases.len());
    assert!(unequal.is_empty(), "{} unequal:\n{}", unequal.len(), unequal.join("\n"));
}

/// Without what differs from run to run.
fn normalised(mut answer: Value) -> Value {
    let mut uid = String::new();
    // A job's uid is in its labels and selector: the fixture kept it there.
    for path in ["/spec/selector/matchLabels/batch.kubernetes.io~1controller-uid", "/metadata/uid"] {
        if let Some(found) = answer.pointer(path).and_then(Value::as_str) {
            uid = found.to_string();
            break;
        }
    }
    strip(&mut answer, &uid);
    answer
}

fn strip(value: &mut Value, uid: &str) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::Object(metadata)) = fields.get_mut("metadata") {
                for key in ["uid", "creationTimestamp", "resourceVersion", "managedFields"] {
                    metadata.remove(key);
                }
            }
            for key in ["clusterIP", "clusterIPs", "healthCheckNodePort"] {
                fields.remove(key);
            }
            // A port that was asked for is not allocated: those are in errors only, which are texts.
            fields.remove("nodePort");
            fields.values_mut().for_each(|value| strip(value, uid));
        }
        Value::Array(items) => items.iter_mut().for_each(|value| strip(value, uid)),
        Value::String(text) if !uid.is_empty() && text == uid => *text = "UID".into(),
        Value::String(text) => {
            if let Some(random) = text.strip_prefix("kube-api-access-")
                && random.len() == 5
                && random.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c))
            {
                *text = "kube-api-access-RANDOM".into();
            }
        }
        _ => {}
    }
}
