//! Against the small server of the client's tests.

use super::*;
use crate::cluster::client::tests::{Server, whole};
use serde_json::{Value, json};

fn list(version: &str, names: &[&str]) -> Value {
    let items: Vec<Value> = names.iter().map(|n| json!({"metadata": {"name": n}})).collect();
    json!({"metadata": {"resourceVersion": version}, "items": items})
}

fn line(kind: &str, name: &str, version: &str) -> String {
    let object = json!({"metadata": {"name": name, "resourceVersion": version}});
    format!("{}\n", json!({"type": kind, "object": object}))
}

fn said(delta: &Delta<Value>) -> String {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap_or("?").to_string();
    match delta {
        Delta::All(items) => format!("all {}", items.iter().map(name).collect::<Vec<_>>().join(" ")),
        Delta::Changed(object) => format!("changed {}", name(object)),
        Delta::Deleted(object) => format!("deleted {}", name(object)),
    }
}

/// What a follower hears of such answers, and the versions that it asks for.
async fn check(answers: Vec<(u16, Vec<String>)>, expected: &[&str], versions: &[&str]) {
    let server = Server::start(answers).await;
    let (send, mut receive) = mpsc::channel(1);
    let follower = tokio::spawn(follow(server.client(), "/api/v1/pods".into(), Vec::new(), send, |d| d));
    for expected in expected {
        let delta = tokio::time::timeout(Duration::from_secs(30), receive.recv()).await.expect("in time");
        assert_eq!(said(&delta.expect("a delta")), *expected);
    }
    drop(receive);
    tokio::time::timeout(Duration::from_secs(30), follower).await.expect("ends unheard").expect("no panic");
    let asked = server.asked();
    let found: Vec<&str> = asked
        .iter()
        .map(|line| match line.split_once("resourceVersion=") {
            Some((_, rest)) => rest.split(' ').next().expect("a word"),
            None => "list",
        })
        .collect();
    assert!(found.starts_with(versions), "{found:?}");
}

#[tokio::test]
async fn a_watch_goes_on_from_the_last_version_that_was_seen() {
    let (added, gone) = (line("ADDED", "b", "6"), line("DELETED", "a", "8"));
    let (head, tail) = added.split_at(20);
    let answers = vec![
        whole(200, &list("5", &["a"])),
        (200, vec![head.into(), format!("{tail}\n{}", line("BOOKMARK", "", "7"))]),
        (200, vec![gone]),
    ];
    check(answers, &["all a", "changed b", "deleted a"], &["list", "5", "7"]).await;
}

#[tokio::test]
async fn a_version_that_is_forgotten_is_listed_anew() {
    let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410});
    let answers = vec![
        whole(200, &list("5", &["a"])),
        whole(200, &json!({"type": "ERROR", "object": gone})).into_line(),
        whole(200, &list("9", &["b"])),
        (200, vec![line("MODIFIED", "b", "10")]),
    ];
    check(answers, &["all a", "all b", "changed b"], &["list", "5", "list", "9"]).await;
}

#[tokio::test]
async fn nonsense_is_not_believed() {
    let long = format!("{{\"type\":\"ADDED\",\"object\":\"{}", "x".repeat(LINE_BYTES_MAX));
    for nonsense in ["nonsense\n".to_string(), "{\"type\":\"ADDED\"}\n".into(), long] {
        let answers = vec![
            whole(200, &list("5", &["a"])),
            (200, vec![line("ADDED", "b", "6"), nonsense]),
            whole(200, &list("7", &["c"])),
            (200, vec![line("ADDED", "d", "8")]),
        ];
        check(answers, &["all a", "changed b", "all c", "changed d"], &["list", "5", "list", "7"]).await;
    }
}

trait IntoLine {
    fn into_line(self) -> Self;
}

impl IntoLine for (u16, Vec<String>) {
    fn into_line(mut self) -> Self {
        self.1.push("\n".into());
        self
    }
}
