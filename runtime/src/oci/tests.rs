//! Golden documents: what a container gets, field by field, for the settings that matter.

use super::*;
use coracle_pod::spec::PodSpec;

fn pod(container: &str) -> PodSpec {
    let text = format!(
        "{{\"metadata\": {{\"name\": \"web\", \"namespace\": \"default\", \"uid\": \"u\"}}, \"spec\": {{\"containers\": [{{\"name\": \"web\", \"image\": \"i:1\"{container}}}]}}}}"
    );
    PodSpec::from_api(&serde_json::from_str(&text).expect("JSON")).expect("a valid pod")
}

fn document_of(pod: &PodSpec, filtered: bool, cgroup2: bool) -> Value {
    let container = &pod.containers[0];
    document(&Input {
        pod,
        container,
        args: vec!["/bin/web".into()],
        env: vec!["PATH=/bin".into(), "HOME=/".into()],
        image_working_dir: Some("/srv".into()),
        identity: Identity { uid: 7, gid: 8, groups: vec![9], home: "/".into() },
        capabilities: capabilities(container, u64::MAX),
        filtered,
        rootfs: "/run/b/rootfs".into(),
        cgroup_path: "/coracle/kubepods/podu/web.0".into(),
        net: Some("/run/p/net".into()),
        ipc: Some("/run/p/ipc".into()),
        uts: Some("/run/p/uts".into()),
        shared_pid: None,
        binds: vec![Bind { source: "/data/v".into(), destination: "/v".into(), read_only: true }],
        devices: Vec::new(),
        oom_score_adj: Some(1000),
        pids_max: 100,
        cgroup2,
        cgroup_views: vec!["/sys/fs/cgroup".into(), "/sys/fs/cgroup/cpu".into()],
    })
}

#[test]
fn a_plain_container() {
    let document = document_of(&pod(""), true, false);
    let expected = json!({
        "terminal": false,
        "user": {"uid": 7, "gid": 8, "additionalGids": [9]},
        "args": ["/bin/web"],
        "env": ["PATH=/bin", "HOME=/"],
        "cwd": "/srv",
        "capabilities": document["process"]["capabilities"],
        "oomScoreAdj": 1000,
    });
    assert_eq!(document["process"], expected, "noNewPrivileges is left out rather than false");
    let bounding: Vec<&str> = document["process"]["capabilities"]["bounding"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert!(bounding.contains(&"CAP_SYS_ADMIN"), "kept for the filter's installation");
    assert_eq!(document["annotations"][DROP_CAPABILITIES], "CAP_SYS_ADMIN", "and dropped by the helper");
    assert_eq!(
        document["linux"]["namespaces"],
        json!([
            {"type": "mount"}, {"type": "network", "path": "/run/p/net"}, {"type": "ipc", "path": "/run/p/ipc"},
            {"type": "uts", "path": "/run/p/uts"}, {"type": "pid"},
        ])
    );
    assert_eq!(
        document["linux"]["resources"],
        json!({
            "devices": [{"allow": false, "access": "rwm"}], "cpu": {"shares": 2}, "pids": {"limit": 100},
        })
    );
    assert_eq!(document["linux"]["rootfsPropagation"], "private");
    assert_eq!(document["linux"]["maskedPaths"].as_array().map(Vec::len), Some(MASKED.len()));
    let last = document["mounts"].as_array().and_then(|m| m.last()).cloned();
    assert_eq!(
        last,
        Some(json!({"destination": "/v", "type": "bind", "source": "/data/v", "options": ["rbind", "ro"]}))
    );
}

#[test]
fn settings_reach_their_places() {
    let check = |container: &str, filtered: bool, pointer: &str, expected: Value| {
        let document = document_of(&pod(container), filtered, true);
        assert_eq!(document.pointer(pointer).cloned().unwrap_or_default(), expected, "{container} {pointer}");
    };
    let nnp = ", \"securityContext\": {\"allowPrivilegeEscalation\": false, \"capabilities\": {\"drop\": [\"ALL\"], \"add\": [\"NET_BIND_SERVICE\"]}}";
    check(nnp, true, "/process/noNewPrivileges", json!(true));
    check(nnp, true, "/process/capabilities/bounding", json!(["CAP_NET_BIND_SERVICE"]));
    check(nnp, true, "/annotations/dev.coracle.drop-capabilities", json!(""));
    let limits = ", \"resources\": {\"limits\": {\"memory\": \"64Mi\", \"cpu\": \"250m\"}}";
    check(limits, true, "/linux/resources/memory", json!({"limit": 64 << 20}));
    check(limits, true, "/linux/resources/cpu", json!({"shares": 256, "quota": 25_000, "period": 100_000}));
    check(limits, true, "/linux/resources/unified/memory.min", json!((64 << 20).to_string()));
    check("", true, "/linux/resources/unified", json!({"cpu.weight": "1", "memory.oom.group": "1"}));
    check("", false, "/linux/namespaces/5", json!({"type": "cgroup"}));
    let privileged = ", \"securityContext\": {\"privileged\": true}";
    check(privileged, false, "/linux/maskedPaths", Value::Null);
    check(privileged, false, "/linux/readonlyPaths", Value::Null);
    check("", false, "/linux/readonlyPaths/6", json!("/sys/fs/cgroup/cpu"));
    check(privileged, false, "/linux/resources/devices", json!([{"allow": true, "access": "rwm"}]));
    check(", \"securityContext\": {\"readOnlyRootFilesystem\": true}", false, "/root/readonly", json!(true));
    check(", \"workingDir\": \"/tmp\"", false, "/process/cwd", json!("/tmp"));
}

#[test]
fn every_document_follows_the_schema() {
    for container in ["", ", \"securityContext\": {\"privileged\": true}", ", \"tty\": true, \"stdin\": true"]
    {
        let pod = pod(container);
        let parsed: Result<oci_spec::runtime::Spec, _> =
            serde_json::from_value(document_of(&pod, false, false));
        assert!(parsed.is_ok(), "{container}: {parsed:?}");
    }
}
