//! Rows as an upstream server makes them.

use super::*;

const NOW: &str = "2026-01-10T00:00:00Z";
const MADE: &str = "2026-01-09T23:55:00Z";

fn now() -> Timestamp {
    NOW.parse().expect("a time")
}

fn resource(text: &str) -> Resource<'_> {
    let (group_version, name) = text.rsplit_once('/').expect("version/resource");
    Resource { group_version, name }
}

/// Checks the cells of an object that was made five minutes ago.
fn check(of: &str, mut object: Value, expected: &[Value]) {
    object["metadata"]["creationTimestamp"] = MADE.into();
    if object["metadata"]["name"].is_null() {
        object["metadata"]["name"] = "x".into();
    }
    let found = cells(resource(of), &object, now());
    assert_eq!(found, expected, "{of}");
    assert_eq!(found.len(), columns(resource(of)).len(), "{of}: one cell a column");
}

fn row(values: Value) -> Vec<Value> {
    match values {
        Value::Array(values) => values,
        other => panic!("{other} is no row"),
    }
}

#[test]
fn every_resource_has_a_cell_for_each_column_of_anything() {
    let hostile = [
        json!({}),
        json!(null),
        json!({"metadata": 5, "spec": [], "status": "x", "subsets": {}, "subjects": [1]}),
    ];
    for line in COLUMNS.lines().filter(|line| !line.starts_with('#')) {
        let of = resource(line.split('|').next().expect("a resource"));
        for object in &hostile {
            assert_eq!(cells(of, object, now()).len(), columns(of).len(), "{line}");
        }
    }
}

#[test]
fn columns_are_upstreams() {
    let of = |name: &str| columns(resource(name));
    let pods = of("v1/pods");
    assert_eq!(pods[0], Column { name: "Name", kind: "string", format: "name", priority: 0 });
    assert_eq!(pods[8], Column { name: "Readiness Gates", kind: "string", format: "", priority: 1 });
    assert_eq!(of("apps/v1/daemonsets")[1].kind, "integer");
    assert_eq!(of("batch/v1/cronjobs")[3].kind, "boolean");
    assert_eq!(of("v1/limitranges")[1], Column { name: "Created At", kind: "date", format: "", priority: 0 });
    assert_eq!(of("v1/services")[4].name, "Port(s)");
    assert_eq!(of("example.com/v1/widgets").len(), 2);
}

#[test]
fn durations_are_short() {
    for (seconds, expected) in [
        (-2, "<invalid>"),
        (-1, "0s"),
        (0, "0s"),
        (119, "119s"),
        (120, "2m"),
        (125, "2m5s"),
        (599, "9m59s"),
        (600, "10m"),
        (10_799, "179m"),
        (10_800, "3h"),
        (11_100, "3h5m"),
        (28_800, "8h"),
        (172_799, "47h"),
        (172_800, "2d"),
        (176_400, "2d1h"),
        (691_200, "8d"),
        (63_072_000, "2y"),
        (63_158_400, "2y1d"),
        (252_288_000, "8y"),
    ] {
        assert_eq!(human_duration(seconds), expected, "{seconds}");
    }
}

fn pod(expected: [&str; 3], mut pod: Value) {
    let of = resource("v1/pods");
    pod["kind"] = "Pod".into();
    let found = cells(of, &pod, now());
    assert_eq!(found[1..4], expected.map(Value::from), "{pod}");
}

#[test]
fn pods_show_what_their_containers_come_to() {
    let running = || json!({"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}});
    let spec = |n: usize| json!({"containers": vec![json!({}); n]});
    let waiting = |reason: &str| {
        json!({"restartCount": 3, "state": {"waiting": {"reason": reason}},
            "lastState": {"terminated": {"finishedAt": "2026-01-09T23:55:00Z"}}})
    };
    pod(["0/1", "Pending", "0"], json!({"spec": spec(1), "status": {"phase": "Pending"}}));
    pod(
        ["1/1", "Running", "0"],
        json!({"spec": spec(1), "status": {"phase": "Running", "containerStatuses": [running()]}}),
    );
    pod(
        ["1/2", "CrashLoopBackOff", "3 (5m ago)"],
        json!({"spec": spec(2), "status": {"phase": "Running", "containerStatuses": [waiting("CrashLoopBackOff"), running()]}}),
    );
    let ended = |state: Value| json!({"spec": spec(1), "status": {"phase": "Failed", "containerStatuses": [{"state": {"terminated": state}}]}});
    pod(["0/1", "Completed", "0"], ended(json!({"reason": "Completed", "exitCode": 0})));
    pod(["0/1", "Error", "0"], ended(json!({"reason": "Error", "exitCode": 1})));
    pod(["0/1", "OOMKilled", "0"], ended(json!({"reason": "OOMKilled", "exitCode": 137})));
    pod(["0/1", "ExitCode:3", "0"], ended(json!({"exitCode": 3})));
    pod(["0/1", "Signal:9", "0"], ended(json!({"exitCode": 137, "signal": 9})));
    let mixed = |ready: &str| {
        json!({"spec": spec(2), "status": {"phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
            "containerStatuses": [{"state": {"terminated": {"reason": "Completed"}}}, running()]}})
    };
    pod(["1/2", "Running", "0"], mixed("True"));
    pod(["1/2", "NotReady", "0"], mixed("False"));
    pod(
        ["0/1", "Evicted", "0"],
        json!({"spec": spec(1), "status": {"phase": "Failed", "reason": "Evicted"}}),
    );
    let deleted =
        |status: Value| json!({"metadata": {"deletionTimestamp": NOW}, "spec": spec(1), "status": status});
    pod(["1/1", "Terminating", "0"], deleted(json!({"phase": "Running", "containerStatuses": [running()]})));
    pod(["0/1", "Unknown", "0"], deleted(json!({"phase": "Running", "reason": "NodeLost"})));
    pod(["0/1", "Succeeded", "0"], deleted(json!({"phase": "Succeeded"})));
    pod(
        ["0/1", "SchedulingGated", "0"],
        json!({"spec": spec(1), "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}}),
    );
}

#[test]
fn pods_show_how_far_their_init_containers_are() {
    let init = |statuses: Value| {
        json!({"spec": {"containers": [{}], "initContainers": [{"name": "i"}, {"name": "s", "restartPolicy": "Always"}]},
            "status": {"phase": "Pending", "initContainerStatuses": statuses,
                "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}})
    };
    let done = || json!({"name": "i", "state": {"terminated": {"exitCode": 0}}});
    pod(["0/2", "Init:0/2", "0"], init(json!([{"name": "i", "state": {"running": {}}}])));
    pod(
        ["0/2", "Init:1/2", "0"],
        init(json!([done(), {"name": "s", "state": {"waiting": {"reason": "PodInitializing"}}}])),
    );
    pod(
        ["0/2", "Init:Error", "2"],
        init(
            json!([{"name": "i", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
        ),
    );
    pod(
        ["0/2", "Init:ExitCode:7", "0"],
        init(json!([{"name": "i", "state": {"terminated": {"exitCode": 7}}}])),
    );
    pod(
        ["0/2", "Init:CrashLoopBackOff", "0"],
        init(json!([{"name": "i", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}])),
    );
    pod(
        ["1/2", "PodInitializing", "4"],
        init(
            json!([done(), {"name": "s", "started": true, "ready": true, "restartCount": 4, "state": {"running": {}}}]),
        ),
    );
}

#[test]
fn wide_pods() {
    check(
        "v1/pods",
        json!({"spec": {"nodeName": "n", "readinessGates": [{"conditionType": "a"}, {"conditionType": "b"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}], "conditions": [{"type": "a", "status": "True"}]}}),
        &row(json!(["x", "0/0", "Running", "0", "5m", "10.0.0.1", "n", "<none>", "1/2"])),
    );
}

fn template() -> Value {
    json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "j"}]}})
}

#[test]
fn workloads() {
    let selector = json!({"matchLabels": {"a": "b"}});
    check(
        "apps/v1/deployments",
        json!({"spec": {"replicas": 3, "selector": selector, "template": template()},
            "status": {"readyReplicas": 2, "updatedReplicas": 3, "availableReplicas": 1}}),
        &row(json!(["x", "2/3", 3, 1, "5m", "c,d", "i,j", "a=b"])),
    );
    check(
        "apps/v1/replicasets",
        json!({"spec": {"replicas": 3, "selector": selector, "template": template()}, "status": {"replicas": 2, "readyReplicas": 1}}),
        &row(json!(["x", 3, 2, 1, "5m", "c,d", "i,j", "a=b"])),
    );
    check(
        "apps/v1/daemonsets",
        json!({"spec": {"selector": selector, "template": template()}, "status": {"desiredNumberScheduled": 5,
            "currentNumberScheduled": 4, "numberReady": 3, "updatedNumberScheduled": 2, "numberAvailable": 1}}),
        &row(json!(["x", 5, 4, 3, 2, 1, "<none>", "5m", "c,d", "i,j", "a=b"])),
    );
    check(
        "apps/v1/statefulsets",
        json!({"spec": {"replicas": 1, "template": template()}, "status": {}}),
        &row(json!(["x", "0/1", "5m", "c,d", "i,j"])),
    );
    check(
        "apps/v1/controllerrevisions",
        json!({"metadata": {"ownerReferences": [{"controller": true, "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "d"}]}, "revision": 2}),
        &row(json!(["x", "daemonset.apps/d", 2, "5m"])),
    );
    check(
        "batch/v1/jobs",
        json!({"spec": {"completions": 2, "template": template(), "selector": selector},
            "status": {"succeeded": 2, "startTime": MADE, "completionTime": "2026-01-09T23:55:07Z", "conditions": [{"type": "Complete", "status": "True"}]}}),
        &row(json!(["x", "Complete", "2/2", "7s", "5m", "c,d", "i,j", "a=b"])),
    );
    check(
        "batch/v1/jobs",
        json!({"spec": {"parallelism": 3}, "status": {"startTime": MADE}}),
        &row(json!(["x", "Running", "0/1 of 3", "5m", "5m", "", "", "<none>"])),
    );
    check(
        "batch/v1/cronjobs",
        json!({"spec": {"schedule": "* * * * *", "suspend": false, "jobTemplate": {"spec": {"template": template()}}},
            "status": {"active": [{}], "lastScheduleTime": MADE}}),
        &row(json!(["x", "* * * * *", "<none>", "False", 1, "5m", "5m", "c,d", "i,j", "<none>"])),
    );
    check(
        "policy/v1/poddisruptionbudgets",
        json!({"spec": {"minAvailable": "50%"}, "status": {"disruptionsAllowed": 1}}),
        &row(json!(["x", "50%", "N/A", 1, "5m"])),
    );
    check("v1/podtemplates", json!({"template": template()}), &row(json!(["x", "c,d", "i,j", "a=b"])));
}

#[test]
fn autoscalers_show_their_targets() {
    let check = |metrics: Value, current: Value, expected: &str| {
        check(
            "autoscaling/v2/horizontalpodautoscalers",
            json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "d"}, "maxReplicas": 5, "minReplicas": 1, "metrics": metrics},
                "status": {"currentReplicas": 2, "currentMetrics": current}}),
            &row(json!(["x", "Deployment/d", expected, "1", 5, 2, "5m"])),
        );
    };
    let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 50}}});
    check(json!([]), json!(null), "<none>");
    check(json!([cpu]), json!(null), "cpu: <unknown>/50%");
    check(json!([cpu]), json!([{"resource": {"current": {"averageUtilization": 7}}}]), "cpu: 7%/50%");
    let memory =
        json!({"type": "Resource", "resource": {"name": "memory", "target": {"averageValue": "1Gi"}}});
    let pods = json!({"type": "Pods", "pods": {"target": {"averageValue": "10"}}});
    check(json!([cpu, memory, pods]), json!(null), "cpu: <unknown>/50%, memory: <unknown>/1Gi + 1 more...");
    let external = json!({"type": "External", "external": {"target": {"averageValue": "3"}}});
    check(json!([external]), json!([{"external": {"current": {"averageValue": "2"}}}]), "2/3 (avg)");
    let v1 = json!({"spec": {"targetCPUUtilizationPercentage": 50}, "status": {}});
    assert_eq!(
        cells(resource("autoscaling/v1/horizontalpodautoscalers"), &v1, now())[2],
        "cpu: <unknown>/50%"
    );
}

#[test]
fn network() {
    let service = |spec: Value, status: Value, expected: Value| {
        check("v1/services", json!({"spec": spec, "status": status}), &row(expected));
    };
    service(
        json!({"type": "NodePort", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30000}, {"port": 53, "protocol": "UDP"}], "selector": {"a": "b"}}),
        json!({}),
        json!(["x", "NodePort", "10.0.0.1", "<none>", "80:30000/TCP,53/UDP", "5m", "a=b"]),
    );
    service(
        json!({"type": "LoadBalancer", "clusterIPs": ["None"]}),
        json!({"loadBalancer": {}}),
        json!(["x", "LoadBalancer", "None", "<pending>", "<none>", "5m", "<none>"]),
    );
    service(
        json!({"type": "LoadBalancer", "externalIPs": ["9.9.9.9"]}),
        json!({"loadBalancer": {"ingress": [{"ip": "2.2.2.2"}, {"hostname": "a"}]}}),
        json!(["x", "LoadBalancer", "<none>", "2.2.2.2,a,9.9.9.9", "<none>", "5m", "<none>"]),
    );
    service(
        json!({"type": "ExternalName", "externalName": "foo"}),
        json!({}),
        json!(["x", "ExternalName", "<none>", "foo", "<none>", "5m", "<none>"]),
    );
    let addresses: Vec<_> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
    check(
        "v1/endpoints",
        json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
        &row(json!(["x", "10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more...", "5m"])),
    );
    check("v1/endpoints", json!({}), &row(json!(["x", "<none>", "5m"])));
    check(
        "discovery.k8s.io/v1/endpointslices",
        json!({"addressType": "IPv4", "ports": [{"port": 80}, {}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        &row(json!(["x", "IPv4", "80,*", "10.0.0.1", "5m"])),
    );
    check(
        "networking.k8s.io/v1/networkpolicies",
        json!({"spec": {"podSelector": {}}}),
        &row(json!(["x", "<none>", "5m"])),
    );
    check(
        "networking.k8s.io/v1/ingresses",
        json!({"spec": {"rules": [{"host": "a"}, {}], "tls": [{}]}}),
        &row(json!(["x", "<none>", "a", "", "80, 443", "5m"])),
    );
}

#[test]
fn cluster() {
    check(
        "v1/nodes",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/edge": "", "kubernetes.io/role": "board"}},
            "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}], "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}],
                "nodeInfo": {"kubeletVersion": "v1.36.3", "osImage": "Debian", "kernelVersion": "6.1"}}}),
        &row(json!([
            "x",
            "Ready,SchedulingDisabled",
            "board,edge",
            "5m",
            "v1.36.3",
            "1.2.3.4",
            "<none>",
            "Debian",
            "6.1",
            "<unknown>"
        ])),
    );
    check(
        "v1/events",
        json!({"firstTimestamp": MADE, "lastTimestamp": NOW, "count": 2, "type": "Normal", "reason": "Pulled", "message": " m\n",
            "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n"}}),
        &row(json!(["0s", "Normal", "Pulled", "pod/p", "spec", "kubelet, n", "m", "5m", 2, "x"])),
    );
    check(
        "events.k8s.io/v1/events",
        json!({"eventTime": "2026-01-09T23:59:00.000000Z", "type": "Warning", "reason": "R", "note": "n", "regarding": {"kind": "Pod", "name": "p"}, "reportingController": "c"}),
        &row(json!(["60s", "Warning", "R", "pod/p", "", "c", "n", "60s", 1, "x"])),
    );
    check("v1/namespaces", json!({"status": {"phase": "Active"}}), &row(json!(["x", "Active", "5m"])));
    check(
        "v1/configmaps",
        json!({"data": {"a": "", "b": ""}, "binaryData": {"c": ""}}),
        &row(json!(["x", 3, "5m"])),
    );
    check("v1/secrets", json!({"type": "Opaque", "data": {"a": ""}}), &row(json!(["x", "Opaque", 1, "5m"])));
    check(
        "v1/persistentvolumes",
        json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany", "ReadWriteOnce"], "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": {"namespace": "n", "name": "c"}, "storageClassName": "s", "volumeMode": "Filesystem"}, "status": {"phase": "Bound"}}),
        &row(json!([
            "x",
            "1Gi",
            "RWO,RWX",
            "Retain",
            "Bound",
            "n/c",
            "s",
            "<unset>",
            "",
            "5m",
            "Filesystem"
        ])),
    );
    check(
        "v1/persistentvolumeclaims",
        json!({"spec": {"volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
        &row(json!(["x", "Pending", "", "", "", "", "<unset>", "5m", "Filesystem"])),
    );
    check(
        "v1/resourcequotas",
        json!({"status": {"hard": {"pods": "5", "limits.cpu": "2"}, "used": {"pods": "1"}}}),
        &row(json!(["x", "pods: 1/5", "limits.cpu: 0/2", "5m"])),
    );
    check("v1/limitranges", json!({}), &row(json!(["x", MADE])));
    check(
        "certificates.k8s.io/v1/certificatesigningrequests",
        json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 3600}, "status": {"conditions": [{"type": "Approved"}], "certificate": "YQ=="}}),
        &row(json!(["x", "5m", "s", "u", "60m", "Approved,Issued"])),
    );
    check(
        "rbac.authorization.k8s.io/v1/rolebindings",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
        &row(json!(["x", "Role/r", "5m", "u", "", "n/s"])),
    );
    check(
        "storage.k8s.io/v1/storageclasses",
        json!({"metadata": {"annotations": {"storageclass.kubernetes.io/is-default-class": "true"}, "name": "l"}, "provisioner": "p"}),
        &row(json!(["l (default)", "p", "Delete", "Immediate", false, "5m"])),
    );
    check(
        "scheduling.k8s.io/v1/priorityclasses",
        json!({"value": 7, "preemptionPolicy": "Never"}),
        &row(json!(["x", 7, false, "5m", "Never"])),
    );
}

#[test]
fn tables_carry_what_was_asked_for() {
    let object = json!({"metadata": {"name": "x"}, "status": {"phase": "Succeeded"}});
    let make = |include, headed| {
        table(resource("v1/pods"), &json!({"resourceVersion": "5"}), [&object], include, headed, now())
    };
    let full = make(IncludeObject::Metadata, true);
    assert_eq!(
        (&full["kind"], &full["apiVersion"], &full["metadata"]["resourceVersion"]),
        (&json!("Table"), &json!("meta.k8s.io/v1"), &json!("5"))
    );
    assert_eq!(
        full["columnDefinitions"][0],
        json!({"name": "Name", "type": "string", "format": "name", "description": "", "priority": 0})
    );
    assert_eq!(
        full["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "x"}})
    );
    assert_eq!(full["rows"][0]["conditions"][0]["reason"], "Succeeded");
    assert_eq!(make(IncludeObject::Object, false)["rows"][0]["object"], object);
    let bare = make(IncludeObject::None, false);
    assert_eq!((&bare["rows"][0]["object"], &bare["columnDefinitions"]), (&Value::Null, &json!([])));
    assert_eq!(IncludeObject::parse("Some"), None);
}
