//! Where HTTP sends its clients on to.

use hyper::Uri;

/// Where a `Location` leads from `url`. RFC 9110, section 10.2.2, without `..`. `None` unless it is HTTP.
pub(crate) fn redirected(url: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (url.scheme_str()?, url.authority()?);
    let absolute = if location.contains("://") {
        location.to_string()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let (directory, _) = url.path().rsplit_once('/')?;
        format!("{scheme}://{authority}{directory}/{location}")
    };
    let next: Uri = absolute.split('#').next()?.parse().ok()?;
    (!location.is_empty() && matches!(next.scheme_str(), Some("http" | "https"))).then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_leads_on_from_where_it_was_met() {
        let check = |location: &str, expected: Option<&str>| {
            let from: Uri = "https://cdn.example:444/v2/a/blobs/x?y=1".parse().expect("a URI");
            let found = redirected(&from, location).map(|uri| uri.to_string());
            assert_eq!(found.as_deref(), expected, "{location}");
        };
        check("https://o.example/z?t=1", Some("https://o.example/z?t=1"));
        check("/z", Some("https://cdn.example:444/z"));
        check("z?t=1", Some("https://cdn.example:444/v2/a/blobs/z?t=1"));
        check("//o.example/z#part", Some("https://o.example/z"));
        check("file:///etc/passwd", None);
        check("", None);
    }
}
