//! What names, label keys and label values may look like.
//!
//! Follows `k8s.io/apimachinery/pkg/util/validation`; each check returns what is wrong, in upstream's words, or
//! nothing. Callers put the words into a field error.

/// Bytes of a label, a label's value, and the name part of a key.
pub const LABEL_BYTES_MAX: usize = 63;
/// Bytes of a subdomain, and the prefix of a key.
pub const SUBDOMAIN_BYTES_MAX: usize = 253;

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const QUALIFIED: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn too_long(most: usize) -> String {
    format!("must be no more than {most} bytes")
}

fn is_label(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
        && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
}

fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn verdict(text: &str, most: usize, fits: bool, message: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    if text.len() > most {
        wrong.push(too_long(most));
    }
    if !fits {
        wrong.push(message.to_owned());
    }
    wrong
}

/// `IsDNS1123Label`: names of namespaces, containers.
pub fn dns1123_label(text: &str) -> Vec<String> {
    verdict(text, LABEL_BYTES_MAX, is_label(text), LABEL)
}

/// `IsDNS1035Label`: names of services.
pub fn dns1035_label(text: &str) -> Vec<String> {
    let fits = is_label(text) && text.starts_with(|c: char| c.is_ascii_lowercase());
    verdict(text, LABEL_BYTES_MAX, fits, LABEL_1035)
}

/// `IsDNS1123Subdomain`: names of most objects.
pub fn dns1123_subdomain(text: &str) -> Vec<String> {
    verdict(text, SUBDOMAIN_BYTES_MAX, text.split('.').all(is_label), SUBDOMAIN)
}

/// `IsValidLabelValue`.
pub fn label_value(text: &str) -> Vec<String> {
    verdict(text, LABEL_BYTES_MAX, text.is_empty() || is_qualified(text), LABEL_VALUE)
}

/// `IsQualifiedName`: the key of a label, an annotation or an extended resource, `[subdomain/]name`.
pub fn qualified_name(text: &str) -> Vec<String> {
    let parts: Vec<_> = text.splitn(3, '/').collect();
    let (prefix, name) = match parts.as_slice() {
        [name] => (None, *name),
        [prefix, name] => (Some(*prefix), *name),
        _ => {
            return vec![format!(
                "a qualified name {QUALIFIED} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    let mut wrong = Vec::new();
    match prefix {
        Some("") => wrong.push("prefix part must be non-empty".to_owned()),
        Some(prefix) => wrong.extend(dns1123_subdomain(prefix).iter().map(|m| format!("prefix part {m}"))),
        None => {}
    }
    if name.is_empty() {
        wrong.push("name part must be non-empty".to_owned());
    }
    let message = format!("name part {QUALIFIED}");
    if name.len() > LABEL_BYTES_MAX {
        wrong.push(format!("name part {}", too_long(LABEL_BYTES_MAX)));
    }
    if !is_qualified(name) {
        wrong.push(message);
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_keys() {
        let check = |wrong: Vec<String>, expected: &[&str]| {
            assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
            for (found, part) in wrong.iter().zip(expected) {
                assert!(found.starts_with(part), "{found} / {part}");
            }
        };
        check(dns1123_label("a-1"), &[]);
        check(dns1123_label("a.b"), &["a lowercase RFC 1123 label"]);
        check(dns1035_label("a1"), &[]);
        check(dns1035_label("1a"), &["a DNS-1035 label"]);
        check(dns1123_subdomain("a.b-c.1"), &[]);
        check(dns1123_subdomain("Bad_Name"), &["a lowercase RFC 1123 subdomain"]);
        check(dns1123_subdomain(&"a".repeat(254)), &["must be no more than 253 bytes"]);
        check(label_value(""), &[]);
        check(label_value("A_b.c-1"), &[]);
        check(label_value("-a"), &["a valid label must be"]);
        check(label_value(&"a".repeat(64)), &["must be no more than 63 bytes"]);
        check(qualified_name("example.com/Name_1"), &[]);
        check(qualified_name("name"), &[]);
        check(qualified_name(""), &["name part must be non-empty", "name part must consist"]);
        check(qualified_name("/a"), &["prefix part must be non-empty"]);
        check(qualified_name("A/a"), &["prefix part a lowercase"]);
        check(qualified_name("a/b/c"), &["a qualified name must consist"]);
        check(
            qualified_name(&("é".repeat(40))),
            &["name part must be no more than 63 bytes", "name part must consist"],
        );
    }
}
