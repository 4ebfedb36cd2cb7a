//! Selectors of every form, what they match, and upstream's words for those that are none.

use serde_json::json;

use super::*;

#[test]
fn label_selectors_are_read_and_matched() {
    let labels = json!({"app": "a", "tier": "front", "n": "5", "empty": ""});
    let check = |text: &str, shown: &str, matches: bool| {
        let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(selector.to_string(), shown, "{text}");
        assert_eq!(selector.matches_labels(&labels), matches, "{text}");
        assert_eq!(
            LabelSelector::parse(&selector.to_string()),
            Ok(selector),
            "{text}: its text reads as itself"
        );
    };
    check("", "", true);
    check("  ", "", true);
    check("app=a", "app=a", true);
    check("app==a", "app==a", true);
    check("app = a , tier", "app=a,tier", true);
    check("tier,app=b", "app=b,tier", false);
    check("app!=a", "app!=a", false);
    check("gone!=a", "gone!=a", true);
    check("gone", "gone", false);
    check("!gone", "!gone", true);
    check("!app", "!app", false);
    check("app in (b,a)", "app in (a,b)", true);
    check("app notin (b)", "app notin (b)", true);
    check("gone notin (b)", "gone notin (b)", true);
    check("in in (in,notin)", "in in (in,notin)", false);
    check("empty in ()", "empty in ()", true);
    check("empty=", "empty=", true);
    check("app in (,)", "app in ()", false);
    check("app in (,a)", "app in (,a)", true);
    check("n>4", "n>4", true);
    check("n<5", "n<5", false);
    check("app>4", "app>4", false);
    check("example.com/a notin (x)", "example.com/a notin (x)", true);
}

#[test]
fn label_selectors_are_refused_in_upstreams_words() {
    let check = |text: &str, expected: &str| {
        let error = LabelSelector::parse(text).expect_err(text).to_string();
        assert_eq!(error, expected, "{text}");
    };
    check("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt");
    check("a=b=c", "found '=', expected: ',' or 'end of string'");
    check("a,", "found '', expected: identifier after ','");
    check("a,,b", "found ',', expected: identifier after ','");
    check("=a", "found '=', expected: !, identifier, or 'end of string'");
    check(",", "found ',', expected: !, identifier, or 'end of string'");
    check("!", "unable to parse requirement: found '', expected: identifier");
    check("!a=b", "found '=', expected: ',' or 'end of string'");
    check("a in b", "unable to parse requirement: found 'b' expected: '('");
    check("a in (b", "unable to parse requirement: found '', expected: ',' or ')'");
    check("a in (=)", "unable to parse requirement: found '=', expected: ',', ')' or identifier");
    check("a in (b,=)", "unable to parse requirement: found '=', expected: ',', or identifier");
    check("a==(", "unable to parse requirement: found '(', expected: identifier");
    check(
        "a>b",
        "unable to parse requirement: values[0]: Invalid value: \"b\": for 'Gt', 'Lt' operators, the value must be an integer",
    );
    let error = LabelSelector::parse("-a=b").expect_err("a bad key").to_string();
    assert!(
        error.starts_with("unable to parse requirement: <nil>: Invalid value: \"-a\": name part must"),
        "{error}"
    );
    let error = LabelSelector::parse("a=-").expect_err("a bad value").to_string();
    assert!(
        error.starts_with("unable to parse requirement: values[0][a]: Invalid value: \"-\": a valid label")
    );
    assert_eq!(LabelSelector::parse(&"a".repeat(SELECTOR_BYTES_MAX + 1)), Err(SelectorError::TooLong));
}

#[test]
fn objects_label_selectors() {
    let labels = json!({"a": "b", "c": "d"});
    let check = |selector: Value, expected: Result<(bool, &str), &str>| {
        let found = LabelSelector::from_value(&selector);
        let found =
            found.as_ref().map(|s| (s.matches_labels(&labels), s.to_string())).map_err(ToString::to_string);
        assert_eq!(found, expected.map(|(m, s)| (m, s.to_owned())).map_err(ToOwned::to_owned), "{selector}");
    };
    check(Value::Null, Ok((false, "")));
    check(json!({}), Ok((true, "")));
    check(json!({"matchLabels": {"a": "b"}}), Ok((true, "a=b")));
    check(json!({"matchLabels": {"a": "x"}, "matchExpressions": null}), Ok((false, "a=x")));
    check(
        json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "NotIn", "values": ["x", "y"]}, {"key": "e", "operator": "DoesNotExist"}]}),
        Ok((true, "a=b,c notin (x,y),!e")),
    );
    check(
        json!({"matchExpressions": [{"key": "c", "operator": "Near"}]}),
        Err("\"Near\" is not a valid label selector operator"),
    );
    check(
        json!({"matchExpressions": [{"key": "c", "operator": "In"}]}),
        Err(
            "unable to parse requirement: values: Invalid value: []: for 'in', 'notin' operators, values set can't be empty",
        ),
    );
    check(json!(7), Err("the label selector must be an object of matchLabels and matchExpressions"));
    let set = LabelSelector::from_labels([("c", "d"), ("a", "b")]);
    assert!(set.matches_object(&json!({"metadata": {"labels": labels}})) && !set.is_everything());
    assert_eq!(set.to_string(), "a=b,c=d");
}

#[test]
fn objects_label_selectors_are_validated() {
    let check = |selector: Value, expected: &[&str]| {
        let mut errors = Errors::default();
        validate(&selector, &Path::new("spec").child("selector"), &mut errors);
        let found: Vec<_> = errors.list().iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{found}");
        }
    };
    check(json!({"matchLabels": {"a": "b"}}), &[]);
    check(
        json!({"matchLabels": {"a": "-"}}),
        &["spec.selector.matchLabels: Invalid value: \"-\": a valid label"],
    );
    check(
        json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]},
            {"key": "-", "operator": "No"}, {"key": "a", "operator": "In", "values": ["-"]}]}),
        &[
            "spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
            "spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is",
            "spec.selector.matchExpressions[2].operator: Invalid value: \"No\": not a valid selector operator",
            "spec.selector.matchExpressions[2].key: Invalid value: \"-\": name part must consist",
            "spec.selector.matchExpressions[3].values[0]: Invalid value: \"-\": a valid label must",
        ],
    );
}

#[test]
fn field_selectors_are_read_and_matched() {
    let object = json!({"metadata": {"name": "a,b"}, "spec": {"nodeName": "n", "unschedulable": true}});
    let check = |text: &str, expected: Result<(&str, bool), &str>| {
        let found = FieldSelector::parse(text, |field| field != "spec.nope");
        let found = found.map(|s| (s.to_string(), s.matches_object(&object))).map_err(|e| e.to_string());
        assert_eq!(found, expected.map(|(s, m)| (s.to_owned(), m)).map_err(ToOwned::to_owned), "{text}");
    };
    check("", Ok(("", true)));
    check("spec.nodeName=n", Ok(("spec.nodeName=n", true)));
    check("spec.nodeName==m", Ok(("spec.nodeName=m", false)));
    check("spec.nodeName!=n", Ok(("spec.nodeName!=n", false)));
    check("spec.nodeName=n,metadata.name=a\\,b", Ok(("metadata.name=a\\,b,spec.nodeName=n", true)));
    check("status.phase=", Ok(("status.phase=", true)));
    check("spec.unschedulable=true", Ok(("spec.unschedulable=true", true)));
    check("spec.nope=x", Err("field label not supported: spec.nope"));
    check("nonsense", Err("invalid selector: 'nonsense'; can't understand 'nonsense'"));
    check("a=b\\c", Err("invalid field selector: invalid escape sequence: \\c"));
    check("a=b\\", Err("invalid field selector: invalid escape sequence: \\"));
    check("a=b=c", Err("invalid field selector: unescaped character in value: 61"));
    let selector = FieldSelector::parse("a=1,b!=2", |_| true).expect("good");
    assert_eq!((selector.exact("a"), selector.exact("b")), (Some("1"), None));
    assert!(selector.matches(|name| (name == "a").then_some("1")));
}

/// Any text is read or refused, and what was read prints as what reads the same.
#[test]
fn hostile_texts() {
    let mut seed = 7_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(seed >> 33).expect("31 bits") % below
    };
    let pieces =
        ["a", "b/c", " ", "=", "!", "(", ")", ",", "in", "notin", ">", "<", "5", "é", "\\", "\0", "==", "-"];
    for _ in 0..20_000 {
        let text: String = (0..random(12)).map(|_| pieces[random(pieces.len())]).collect();
        if let Ok(selector) = LabelSelector::parse(&text) {
            assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector), "{text:?}");
        }
        if let Ok(selector) = FieldSelector::parse(&text, |_| true) {
            assert_eq!(FieldSelector::parse(&selector.to_string(), |_| true), Ok(selector), "{text:?}");
        }
    }
}
