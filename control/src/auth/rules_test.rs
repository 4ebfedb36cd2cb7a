use super::*;

fn rule(groups: &str, resources: &str, names: &str, paths: &str, verbs: &str) -> PolicyRule {
    let words = |text: &str| text.split_whitespace().map(|word| word.replace("core", "")).collect::<Vec<_>>();
    PolicyRule {
        api_groups: words(groups),
        resources: words(resources),
        resource_names: words(names),
        non_resource_urls: words(paths),
        verbs: words(verbs),
    }
}

/// `VERB GROUP RESOURCE[/PART] [NAME]`, or `VERB /PATH`.
fn allows(rule: &PolicyRule, asked: &str) -> bool {
    let words: Vec<&str> = asked.split(' ').collect();
    match words.as_slice() {
        [verb, path] => rule.allows(&Attributes::Path { verb, path }),
        [verb, group, resource, rest @ ..] => {
            let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let group = if *group == "core" { "" } else { group };
            let name = rest.first().copied().unwrap_or_default();
            let fields = None;
            rule.allows(&Attributes::Resource {
                verb,
                group,
                resource,
                subresource,
                namespace: "n",
                name,
                fields,
            })
        }
        _ => panic!("{asked}"),
    }
}

#[test]
fn a_rule_allows_what_it_names_and_nothing_else() {
    let check = |rule: &PolicyRule, asked: &str, expected: bool| {
        assert_eq!(allows(rule, asked), expected, "{rule} {asked}");
    };
    let pods = rule("core", "pods pods/log", "", "", "get list");
    check(&pods, "get core pods", true);
    check(&pods, "get core pods a", true);
    check(&pods, "list core pods/log", true);
    check(&pods, "get core pods/exec", false);
    check(&pods, "delete core pods", false);
    check(&pods, "get apps pods", false);
    check(&pods, "get /pods", false);
    let named = rule("core", "secrets", "a b", "", "get update create");
    check(&named, "get core secrets a", true);
    check(&named, "get core secrets c", false);
    // No name is no name of the list: lists, and what is created.
    check(&named, "create core secrets", false);
    let scales = rule("apps", "*/scale", "", "", "*");
    check(&scales, "patch apps deployments/scale a", true);
    check(&scales, "patch apps deployments a", false);
    check(&scales, "patch apps deployments/rescale a", false);
    let any = rule("*", "*", "", "", "*");
    check(&any, "delete x y/z a", true);
    check(&any, "get /metrics", false);
    let paths = rule("", "", "", "/healthz /apis/*", "get");
    check(&paths, "get /healthz", true);
    check(&paths, "get /healthz/etcd", false);
    check(&paths, "get /apis/apps/v1", true);
    check(&paths, "get /apis", false);
    check(&paths, "post /apis/x", false);
    check(&rule("", "", "", "*", "get"), "get /x/y", true);
}

#[test]
fn nobody_covers_what_they_do_not_have() {
    let check = |own: &[PolicyRule], wanted: &PolicyRule, expected: &str| {
        assert_eq!(describe(uncovered(own, std::slice::from_ref(wanted))), expected, "{wanted}");
    };
    let own = [
        rule("core", "pods */scale", "", "", "get list"),
        rule("core", "secrets", "a", "", "get"),
        rule("", "", "", "/a/*", "get"),
    ];
    check(&own, &rule("core", "pods", "", "", "get list"), "");
    check(&own, &rule("core", "pods", "x", "", "get"), "");
    check(&own, &rule("core", "things/scale", "", "", "list"), "");
    check(&own, &rule("core", "secrets", "a", "", "get"), "");
    check(
        &own,
        &rule("core", "secrets", "", "", "get"),
        r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get"]}"#,
    );
    check(
        &own,
        &rule("core", "secrets", "a b", "", "get"),
        r#"{APIGroups:[""], Resources:["secrets"], ResourceNames:["b"], Verbs:["get"]}"#,
    );
    check(
        &own,
        &rule("core apps", "pods nodes", "", "", "get delete"),
        "{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\"]}\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}\n{APIGroups:[\"apps\"], Resources:[\"nodes\"], Verbs:[\"get\" \"delete\"]}\n{APIGroups:[\"apps\"], Resources:[\"pods\"], Verbs:[\"get\" \"delete\"]}",
    );
    check(&own, &rule("", "", "", "/a/b", "get"), "");
    check(&own, &rule("", "", "", "/a/*", "get"), "");
    check(&own, &rule("", "", "", "*", "get"), r#"{NonResourceURLs:["*"], Verbs:["get"]}"#);
    // A rule about resources gives no path, and the other way round.
    check(
        &[rule("*", "*", "", "", "*")],
        &rule("", "", "", "/x", "get"),
        r#"{NonResourceURLs:["/x"], Verbs:["get"]}"#,
    );
    check(
        &[rule("", "", "", "*", "*")],
        &rule("core", "pods", "", "", "get"),
        r#"{APIGroups:[""], Resources:["pods"], Verbs:["get"]}"#,
    );
    check(&PolicyRule::everything(), &rule("*", "*", "", "", "*"), "");
    check(
        &[rule("core", "*", "", "", "*")],
        &rule("*", "*", "", "", "*"),
        r#"{APIGroups:["*"], Resources:["*"], Verbs:["*"]}"#,
    );
}
