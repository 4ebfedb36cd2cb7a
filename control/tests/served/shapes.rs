//! The shapes in which objects are shown: tables that go on, metadata alone, bookmarks.

use crate::control::{Ask, Control, Events};
use crate::etcd::Owned;
use crate::kubectl::Kubectl;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::process::Stdio;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json";
const METADATA_LIST: &str =
    "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn config_map(name: &str, colour: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "labels": {"app": "shop"}}, "data": {"colour": colour},
    })
}

#[test]
fn a_watched_table_has_its_header_once_and_a_row_for_each_change() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    kubectl.run(&["create", "-f", "-"], &config_map("a", "red").to_string()).expect("made");
    let watch = |more: &[&str]| {
        let arguments = [&["get", "configmaps", "-l", "app=shop", "--watch"], more].concat();
        let mut watch =
            Owned(kubectl.command(&arguments).stdout(Stdio::piped()).spawn().expect("kubectl starts"));
        let mut lines = BufReader::new(watch.0.stdout.take().expect("piped")).lines();
        let next = move || {
            let line = lines.next().expect("a line").expect("text");
            let mut words: Vec<String> = line.split_whitespace().map(String::from).collect();
            if words.last().is_some_and(|age| age.ends_with('s')) {
                words.pop();
            }
            words.join(" ")
        };
        (watch, next)
    };
    let (_plain, mut plain) = watch(&[]);
    let (_told, mut told) = watch(&["--output-watch-events"]);
    assert_eq!((plain(), plain()), ("NAME DATA AGE".into(), "a 1".into()));
    assert_eq!((told(), told()), ("EVENT NAME DATA AGE".into(), "ADDED a 1".into()));
    kubectl.run(&["create", "-f", "-"], &config_map("b", "red").to_string()).expect("made");
    kubectl.ok(&["patch", "configmap", "a", "-p", r#"{"data":{"size":"5"}}"#]);
    kubectl.ok(&["delete", "configmap", "b"]);
    for (row, event) in [("b 1", "ADDED"), ("a 2", "MODIFIED"), ("b 1", "DELETED")] {
        assert_eq!(plain(), row);
        assert_eq!(told(), format!("{event} {row}"));
    }
}

/// Metadata alone, whatever the object has besides.
fn assert_bare(object: &Value, name: &str) {
    assert_eq!(object["kind"], "PartialObjectMetadata", "{object}");
    assert_eq!(object["apiVersion"], "meta.k8s.io/v1", "{object}");
    assert_eq!(
        (&object["metadata"]["name"], &object["metadata"]["labels"]["app"]),
        (&json!(name), &json!("shop"))
    );
    assert!(object["metadata"]["uid"].is_string(), "{object}");
    assert_eq!(object.as_object().map(serde_json::Map::len), Some(3), "{object}");
}

fn asked<'a>(method: &'a str, path: &'a str, body: Option<Value>, accept: &'a str) -> Ask<'a> {
    let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
    Ask { method, path, body: body.map(|body| body.to_string().into()), content_type, accept }
}

#[tokio::test]
async fn metadata_is_shown_alone_to_who_asks_for_no_more() {
    let control = Control::start(&[]);
    let mut client = control.connect().await;
    // As kube-rs and controller-runtime ask; every verb that shows an object does so.
    for (method, path, body, code) in [
        ("POST", CONFIG_MAPS.to_string(), Some(config_map("a", "red")), 201),
        ("GET", format!("{CONFIG_MAPS}/a"), None, 200),
        ("PATCH", format!("{CONFIG_MAPS}/a"), Some(json!({"data": {"x": "y"}})), 200),
        ("PUT", format!("{CONFIG_MAPS}/a"), Some(config_map("a", "blue")), 200),
    ] {
        let (found, text) = client.ask(asked(method, &path, body, METADATA)).await;
        assert_eq!(found, code, "{method} {text}");
        assert_bare(&serde_json::from_str(&text).expect("JSON"), "a");
    }
    let (_, whole) = client.json("GET", &format!("{CONFIG_MAPS}/a"), None).await;
    assert_eq!(whole["data"]["colour"], "blue", "what was written is whole");

    let selected = format!("{CONFIG_MAPS}?labelSelector=app%3Dshop");
    let (_, text) = client.ask(asked("GET", &selected, None, METADATA_LIST)).await;
    let list: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PartialObjectMetadataList"), &json!("meta.k8s.io/v1"))
    );
    let version = list["metadata"]["resourceVersion"].as_str().expect("a version").to_string();
    assert_eq!(list["items"].as_array().map(Vec::len), Some(1));
    assert_bare(&list["items"][0], "a");
    // What is not there is a Status, in no other shape.
    let (code, text) = client.ask(asked("GET", &format!("{CONFIG_MAPS}/none"), None, METADATA)).await;
    assert_eq!((code, text.contains(r#""kind":"Status""#)), (404, true), "{text}");

    let path = format!("{selected}&watch=true&resourceVersion={version}");
    let mut watching = control.connect().await;
    let response = watching.send(asked("GET", &path, None, METADATA)).await;
    let mut events = Events::of(response, watching);
    client.json("PATCH", &format!("{CONFIG_MAPS}/a"), Some(&json!({"data": {"x": "z"}}))).await;
    client.json("DELETE", &format!("{CONFIG_MAPS}/a"), None).await;
    for told in ["MODIFIED", "DELETED"] {
        let event = events.next().await.expect("an event");
        assert_eq!(event["type"], told);
        assert_bare(&event["object"], "a");
    }
}

/// The bookmark that ends the initial events is in the shape of the rest.
#[tokio::test]
async fn bookmarks_have_the_shape_that_was_asked_for() {
    let control = Control::start(&[]);
    let initial =
        "watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let path = format!("{CONFIG_MAPS}?fieldSelector=metadata.name%3Dnone&{initial}");
    for (accept, kind, at) in [
        (METADATA, "PartialObjectMetadata", "/object/metadata"),
        (TABLE, "Table", "/object/rows/0/object/metadata"),
        ("application/json", "ConfigMap", "/object/metadata"),
    ] {
        let mut client = control.connect().await;
        let response = client.send(Ask { method: "GET", path: &path, accept, ..Ask::default() }).await;
        let mark = Events::of(response, client).next().await.expect("an event");
        assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!(kind)), "{mark}");
        let metadata = mark.pointer(at).unwrap_or(&Value::Null);
        assert_eq!(metadata["annotations"]["k8s.io/initial-events-end"], "true", "{mark}");
        assert!(metadata["resourceVersion"].is_string(), "{mark}");
    }
}
