use super::*;
use serde_json::json;

fn pod(name: &str, node: &str, spec: &Value) -> Value {
    let mut pod = json!({"metadata": {"namespace": "n", "name": name}, "spec": spec});
    pod["spec"]["nodeName"] = node.into();
    pod
}

#[test]
fn a_pod_needs_every_object_that_its_spec_names() {
    let check = |spec: Value, expected: &[(Needed, &str)]| {
        let mut found = references(&pod("p", "a", &spec));
        found.sort_unstable();
        let expected: Vec<_> = expected.iter().map(|(what, name)| (*what, (*name).to_string())).collect();
        assert_eq!(found, expected, "{spec}");
    };
    check(json!({}), &[]);
    check(json!({"serviceAccountName": "sa"}), &[(Needed::ServiceAccount, "sa")]);
    check(json!({"imagePullSecrets": [{"name": "pull"}]}), &[(Needed::Secret, "pull")]);
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        let container = json!({
            "envFrom": [{"secretRef": {"name": "s1"}}, {"configMapRef": {"name": "c1"}}],
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s2", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "c2", "key": "k"}}},
                {"name": "C", "value": "s3"},
            ],
        });
        let expected = [
            (Needed::Secret, "s1"),
            (Needed::Secret, "s2"),
            (Needed::ConfigMap, "c1"),
            (Needed::ConfigMap, "c2"),
        ];
        check(json!({list: [container]}), &expected);
    }
    let volumes = json!([
        {"name": "a", "secret": {"secretName": "s1"}},
        {"name": "b", "configMap": {"name": "c1"}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "v1"}},
        {"name": "d", "projected": {"sources": [{"secret": {"name": "s2"}}, {"configMap": {"name": "c2"}}]}},
        {"name": "e", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "s3"}}},
        {"name": "f", "ephemeral": {"volumeClaimTemplate": {}}},
    ]);
    let expected = [
        (Needed::Secret, "s1"),
        (Needed::Secret, "s2"),
        (Needed::Secret, "s3"),
        (Needed::ConfigMap, "c1"),
        (Needed::ConfigMap, "c2"),
        (Needed::Claim, "p-f"),
        (Needed::Claim, "v1"),
    ];
    check(json!({"volumes": volumes}), &expected);
}

#[test]
fn a_node_needs_what_its_pods_need_for_as_long_as_they_are_there() {
    let secret = json!({"imagePullSecrets": [{"name": "s"}]});
    let mut graph = Graph::default();
    let needs = |graph: &Graph, node: &str| graph.needs(node, Needed::Secret, "n", "s");
    graph.put_pod(&pod("p", "", &secret));
    assert!(!needs(&graph, ""), "a pod without a node gives nobody anything");
    graph.put_pod(&pod("p", "a", &secret));
    graph.put_pod(&pod("q", "a", &secret));
    graph.put_pod(&pod("q", "a", &secret));
    assert!(needs(&graph, "a") && !needs(&graph, "b"));
    assert!(!graph.needs("a", Needed::Secret, "other", "s"));
    assert!(!graph.needs("a", Needed::ConfigMap, "n", "s"));
    assert!(graph.needs("a", Needed::Pod, "n", "p"));
    graph.remove_pod("n", "p");
    assert!(needs(&graph, "a") && !graph.needs("a", Needed::Pod, "n", "p"));
    graph.put_pod(&pod("q", "b", &secret));
    assert!(!needs(&graph, "a") && needs(&graph, "b"), "it was made anew elsewhere");
    graph.replace_pods(&[]);
    assert!(!needs(&graph, "b") && graph.nodes.is_empty());
}

#[test]
fn a_mirror_pod_needs_nothing_but_itself() {
    let mut mirror = pod("p", "a", &json!({"imagePullSecrets": [{"name": "s"}]}));
    mirror["metadata"]["annotations"] = json!({MIRROR: "x"});
    let mut graph = Graph::default();
    graph.put_pod(&mirror);
    assert!(graph.needs("a", Needed::Pod, "n", "p") && !graph.needs("a", Needed::Secret, "n", "s"));
}

#[test]
fn a_node_needs_the_volumes_of_its_claims() {
    let mut graph = Graph::default();
    let volume = json!({"metadata": {"name": "pv"}, "spec": {"claimRef": {"namespace": "n", "name": "v"}}});
    graph.put_volume(&volume);
    assert!(!graph.needs_volume("a", "pv"));
    graph.put_pod(&pod("p", "a", &json!({"volumes": [{"persistentVolumeClaim": {"claimName": "v"}}]})));
    assert!(graph.needs_volume("a", "pv") && !graph.needs_volume("b", "pv") && !graph.needs_volume("a", "x"));
    graph.put_volume(&json!({"metadata": {"name": "pv"}, "spec": {}}));
    assert!(!graph.needs_volume("a", "pv"));
}
