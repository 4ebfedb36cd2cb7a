//! One object of every kind that is served, through everything that kubectl does with an object.

use crate::control::Control;
use crate::kinds_table::KINDS;
use crate::kubectl::Kubectl;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// A kind: its name for `kubectl api-resources`, the cells of its row in the order of upstream's columns (those of
/// `-o wide` too; `AGE`, `TIME` and `UID` stand for any), lines of `describe`, and an object of it without its kind.
pub struct Kind(pub &'static str, pub &'static [&'static str], pub &'static [&'static str], pub &'static str);

/// Kinds that are only created or only read: other tests have them.
const NOT_STORED: &[&str] = &[
    "localsubjectaccessreviews.authorization.k8s.io",
    "nodes.metrics.k8s.io",
    "pods.metrics.k8s.io",
    "selfsubjectaccessreviews.authorization.k8s.io",
    "selfsubjectreviews.authentication.k8s.io",
    "selfsubjectrulesreviews.authorization.k8s.io",
    "subjectaccessreviews.authorization.k8s.io",
    "tokenreviews.authentication.k8s.io",
];

/// `GROUP/VERSION/PLURAL` of upstream's columns.
fn columns() -> BTreeMap<String, Vec<Value>> {
    serde_json::from_str(include_str!("../fixtures/columns.json")).expect("the fixture")
}

fn is_age(text: &str) -> bool {
    let mut digits = 0;
    !text.is_empty()
        && text.chars().all(|c| {
            digits = if c.is_ascii_digit() { digits + 1 } else { 0 };
            digits > 0 || "smhdy".contains(c)
        })
        && text.ends_with(['s', 'm', 'h', 'd', 'y'])
}

/// The cell, with what differs from run to run as its name.
fn cell(found: &str, expected: &str) -> String {
    let uid = expected.strip_suffix("UID").filter(|prefix| {
        found.strip_prefix(prefix).is_some_and(|uid| uid.len() == 36 && uid.matches('-').count() == 4)
    });
    match expected {
        "AGE" if is_age(found) => "AGE".into(),
        "TIME" if found.len() == 20 && found.ends_with('Z') => "TIME".into(),
        expected if uid.is_some() => expected.into(),
        _ => found.into(),
    }
}

/// One printed table: cells stand under the beginnings of their columns' names.
fn cells(header: &str, row: &str, names: &[String]) -> Vec<String> {
    let mut starts = Vec::new();
    for name in names {
        let after = starts.last().map_or(0, |last| last + 1);
        let found = header[after..].find(name.as_str());
        starts.push(after + found.unwrap_or_else(|| panic!("no column {name}: {header}")));
    }
    let row: Vec<char> = row.chars().collect();
    let end = |n: usize| starts.get(n + 1).copied().unwrap_or(row.len()).min(row.len());
    let cell = |n: usize| row[starts[n].min(row.len())..end(n)].iter().collect::<String>().trim().to_string();
    (0..names.len()).map(cell).collect()
}

#[test]
fn every_kind_goes_through_all_that_kubectl_does_with_an_object() {
    let control = Control::start_patient();
    let kubectl = Kubectl(&control);
    let every: BTreeSet<String> =
        kubectl.ok(&["api-resources", "-o", "name"]).lines().map(String::from).collect();
    let here = KINDS.iter().map(|kind| kind.0).chain(NOT_STORED.iter().copied()).map(String::from).collect();
    assert_eq!(every, here, "a kind is missing in this table");

    let manifest: String = KINDS.iter().map(|kind| format!("---\n{}\n", kind.3)).collect();
    // `KIND.GROUP/NAME` of each, in the order of the table.
    let made = kubectl.run(&["create", "-f", "-"], &manifest).expect("all are made");
    let names: Vec<&str> = made.lines().filter_map(|line| line.strip_suffix(" created")).collect();
    assert_eq!(names.len(), KINDS.len(), "{made}");
    // What controllers and the scheduler say of them.
    kubectl.ok(&["wait", "--for=condition=PodScheduled", "pod/p", "--timeout=60s"]);
    kubectl.ok(&["wait", "--for=condition=Suspended", "job/job", "--timeout=60s"]);
    kubectl.ok(&["wait", "--for=jsonpath={.status.used.limits\\.cpu}=100m", "quota/rq", "--timeout=60s"]);
    kubectl.ok(&["wait", "--for=jsonpath={.status.observedGeneration}=1", "pdb/pdb", "--timeout=60s"]);

    tables_are_upstreams(&kubectl, &manifest, &names);

    let all = |arguments: &[&str]| kubectl.run(&[arguments, &["-f", "-"]].concat(), &manifest);
    let said = |what: &str| names.iter().map(|name| format!("{name} {what}")).collect::<Vec<_>>().join("\n");
    let described = all(&["describe"]).expect("described");
    let mut differ = Vec::new();
    let described: Vec<&str> = described.split("\nName:").collect();
    assert_eq!(described.len(), KINDS.len());
    for (kind, told) in KINDS.iter().zip(&described) {
        let lines: BTreeSet<String> =
            told.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for line in kind.2 {
            if !lines.contains(*line) {
                differ.push(format!("{}: {line}: {told}", kind.0));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));

    let json = |path: &str| format!("jsonpath={{range .items[*]}}{{{path}}}{{\"\\n\"}}{{end}}");
    let each = |path: &str, value: &str| {
        let found = all(&["get", "-o", &json(path)]).expect("read");
        assert_eq!(found.lines().filter(|line| *line == value).count(), KINDS.len(), "{path}: {found}");
    };
    let patch = r#"{"metadata": {"labels": {"patched": "yes"}}}"#;
    assert_eq!(all(&["patch", "-p", patch]).expect("patched"), said("patched"));
    each(".metadata.labels.patched", "yes");
    let patch = r#"[{"op": "replace", "path": "/metadata/labels/patched", "value": "again"}]"#;
    assert_eq!(all(&["patch", "--type=json", "-p", patch]).expect("patched"), said("patched"));
    each(".metadata.labels.patched", "again");
    for (verb, done, set) in [("label", "labeled", "tier=back"), ("annotate", "annotated", "note=x")] {
        assert_eq!(all(&[verb, set]).expect(verb), said(done));
    }
    each(".metadata.labels.tier", "back");
    each(".metadata.annotations.note", "x");

    // As it is, with one more label. A controller may have written meanwhile: that is a conflict, and tried again.
    let deadline = Instant::now() + Duration::from_secs(60);
    let replaced = loop {
        let read = all(&["get", "-o", "json"]).expect("read");
        let mut list: Value = serde_json::from_str(&read).expect("JSON");
        for object in list["items"].as_array_mut().expect("items") {
            object["metadata"]["labels"]["replaced"] = "yes".into();
        }
        match kubectl.run(&["replace", "-f", "-"], &list.to_string()) {
            Ok(replaced) => break replaced,
            Err(error) => {
                assert!(error.contains("(Conflict)") && Instant::now() < deadline, "{error}");
            }
        }
    };
    assert_eq!(replaced, said("replaced"));
    each(".metadata.labels.replaced", "yes");

    let deleted = all(&["delete", "--timeout=60s"]).expect("deleted");
    assert_eq!(deleted.lines().count(), KINDS.len(), "{deleted}");
    assert_eq!(all(&["get", "--ignore-not-found", "-o", "name"]).expect("read"), "");
}

/// What is refused of kinds that no other test refuses anything of.
#[test]
fn classes_and_leases_are_checked() {
    let control = Control::start(&[]);
    let kubectl = Kubectl(&control);
    let named = |kind: &str, rest: &str| {
        let group = match kind {
            "StorageClass" => "storage",
            "RuntimeClass" => "node",
            _ => "coordination",
        };
        format!("apiVersion: {group}.k8s.io/v1\nkind: {kind}\nmetadata: {{name: x}}\n{rest}\n")
    };
    for (kind, rest) in [
        ("StorageClass", "provisioner: example.com/disk\nparameters: {type: slow}"),
        ("RuntimeClass", "handler: runc"),
        ("Lease", "spec: {leaseDurationSeconds: 40}"),
    ] {
        kubectl.run(&["apply", "-f", "-"], &named(kind, rest)).expect("made");
    }
    let kept = "jsonpath={.reclaimPolicy} {.volumeBindingMode}";
    assert_eq!(kubectl.ok(&["get", "storageclass", "x", "-o", kept]), "Delete Immediate");
    let check = |verb: &str, kind: &str, rest: &str, why: &str| {
        let mut manifest = named(kind, rest);
        if verb == "create" {
            manifest = manifest.replace("name: x", "name: other");
        }
        let refused = kubectl.run(&[verb, "-f", "-"], &manifest).expect_err(why);
        assert!(refused.contains(why), "{why}: {refused}");
    };
    check("create", "StorageClass", "parameters: {}", "provisioner: Required value");
    check(
        "create",
        "StorageClass",
        "provisioner: p\nreclaimPolicy: Recycle",
        r#"reclaimPolicy: Unsupported value: "Recycle": supported values: "Delete", "Retain""#,
    );
    check(
        "create",
        "StorageClass",
        "provisioner: p\nvolumeBindingMode: Never",
        r#"volumeBindingMode: Unsupported value: "Never": supported values: "Immediate", "WaitForFirstConsumer""#,
    );
    check(
        "replace",
        "StorageClass",
        "provisioner: p\nreclaimPolicy: Retain\nvolumeBindingMode: WaitForFirstConsumer",
        concat!(
            "* parameters: Forbidden: updates to parameters are forbidden.\n",
            "* provisioner: Forbidden: updates to provisioner are forbidden.\n",
            "* reclaimPolicy: Forbidden: updates to reclaimPolicy are forbidden.\n",
            "* volumeBindingMode: Invalid value: \"WaitForFirstConsumer\": field is immutable"
        ),
    );
    check(
        "create",
        "RuntimeClass",
        "handler: Not_A_Label",
        r#"handler: Invalid value: "Not_A_Label": a lowercase RFC 1123 label"#,
    );
    check(
        "replace",
        "RuntimeClass",
        "handler: kata",
        r#"handler: Invalid value: "kata": field is immutable"#,
    );
    check(
        "create",
        "Lease",
        "spec: {leaseDurationSeconds: 0}",
        "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
    );
    check(
        "create",
        "Lease",
        "spec: {leaseTransitions: -1}",
        "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
    );
}

fn tables_are_upstreams(kubectl: &Kubectl<'_>, manifest: &str, names: &[&str]) {
    let columns = columns();
    let mut differ = Vec::new();
    for wide in [false, true] {
        let format: &[&str] = if wide { &["-o", "wide"] } else { &[] };
        let printed = kubectl.run(&[&["get", "-f", "-"], format].concat(), manifest).expect("printed");
        let tables: Vec<&str> = printed.split("\n\n").collect();
        assert_eq!(tables.len(), KINDS.len(), "{printed}");
        for ((kind, table), name) in KINDS.iter().zip(tables).zip(names) {
            let key = columns.keys().find(|key| {
                let parts: Vec<&str> = key.split('/').collect();
                match parts[..] {
                    [_, plural] => kind.0 == plural,
                    [group, _, plural] => kind.0 == plural || kind.0 == format!("{plural}.{group}"),
                    _ => false,
                }
            });
            let upstream = &columns[key.unwrap_or_else(|| panic!("no columns of {}", kind.0))];
            assert_eq!(upstream.len(), kind.1.len(), "cells of {}", kind.0);
            let shown = |column: &Value| wide || column["priority"] == 0;
            let (header, row) = table.split_once('\n').expect("two lines");
            let heads: Vec<String> = upstream
                .iter()
                .filter(|column| shown(column))
                .map(|column| column["name"].as_str().expect("a name").to_uppercase())
                .collect();
            let expected: Vec<&str> = upstream
                .iter()
                .zip(kind.1)
                .filter(|(column, _)| shown(column))
                .map(|(_, cell)| *cell)
                .collect();
            let header_found: Vec<&str> =
                header.split("  ").map(str::trim).filter(|h| !h.is_empty()).collect();
            let found: Vec<String> = cells(header, row, &heads)
                .iter()
                .zip(&expected)
                .map(|(found, expected)| {
                    cell(found.strip_prefix(*name).map_or(found, |_| expected), expected)
                })
                .collect();
            if found != expected || header_found != heads {
                differ.push(format!(
                    "{} {header_found:?}\n  found    {found:?}\n  upstream {expected:?}",
                    kind.0
                ));
            }
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n"));
}
