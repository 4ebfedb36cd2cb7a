//! `nodes/proxy`, `pods/proxy`, `services/proxy`: HTTP to what runs there.
//!
//! A pod's port is reached through its board, which dials the pod's address from within the pod's network: also from
//! where no route leads to it. Left out: rewriting of links in HTML, which upstream does.

use super::connect::{upgraded, wants_upgrade};
use super::kubelet::{self, forwarded};
use super::{Asked, Response, locate};
use crate::auth::Identity;
use crate::http::Context;
use crate::http::body::{self, Body};
use crate::object::{at, items, text};
use crate::registry::Target;
use crate::registry::options::ListOptions;
use crate::registry::options::Query;
use crate::tunnel::Io;
use bytes::Bytes;
use coracle_api::status::StatusError;
use http_body_util::BodyExt;
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use serde_json::Value;
use std::io;

/// Where a proxied request goes.
struct Destination {
    io: Box<dyn Io>,
    /// Of the `Host` header.
    host: String,
}

pub(super) async fn serve(asked: Asked) -> Result<Response, StatusError> {
    let Asked { context, who, of, request, .. } = asked;
    let (prefix, rest) = split(request.uri().path());
    let (prefix, rest) = (prefix.to_string(), rest.to_string());
    if rest.is_empty() {
        return Ok(moved(&request));
    }
    let Name { https, name, port } = Name::parse(&of.name).ok_or_else(|| {
        StatusError::bad_request(format!("invalid {} request {:?}", of.plural.trim_end_matches('s'), of.name))
    })?;
    if https {
        return Err(StatusError::bad_request("the scheme https is not proxied"));
    }
    let to = match of.plural.as_str() {
        "nodes" => {
            let node = locate::object(&context, "nodes", "", name).await?;
            let kubelet = at(&node, &["status", "daemonEndpoints", "kubeletEndpoint", "Port"]).as_u64();
            if !port.is_empty() && port.parse() != Ok(kubelet.unwrap_or(10250)) {
                return Err(StatusError::bad_request("only the kubelet's port of a node is proxied"));
            }
            Destination { io: kubelet::dial(&context, &who, &node).await?, host: name.to_string() }
        }
        "pods" => {
            let pod = locate::object(&context, "pods", &of.namespace, name).await?;
            let port = if port.is_empty() { first_port(&pod) } else { number(port)? };
            dial_port(&context, &who, &pod, port).await?
        }
        _ => service(&context, &who, &of.namespace, name, port).await?,
    };
    let (head, body) = request.into_parts();
    let mut onward: Request<Body> = Request::new(body::whole(Bytes::new()));
    *onward.method_mut() = head.method.clone();
    let query = head.uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = format!("{rest}{query}");
    *onward.uri_mut() = path.parse().map_err(|_| StatusError::bad_request(format!("{path:?} is no path")))?;
    let host = HeaderValue::try_from(&to.host).map_err(|_| StatusError::bad_request("no host name"))?;
    if wants_upgrade(&head.headers) {
        onward.headers_mut().insert(header::HOST, host);
        return upgraded(Request::from_parts(head, body), to.io, onward).await;
    }
    *onward.headers_mut() = forwarded(&head.headers);
    onward.headers_mut().insert(header::HOST, host);
    *onward.body_mut() = body.map_err(io::Error::other).boxed_unsync();
    let mut response = kubelet::relayed(kubelet::send(to.io, onward).await?);
    relocate(&mut response, &prefix, &to.host);
    Ok(response)
}

/// The path up to `/proxy`, and what is behind it, as it came.
pub(super) fn split(path: &str) -> (&str, &str) {
    let cluster =
        path.trim_start_matches('/').split('/').filter(|part| !part.is_empty()).nth(2) != Some("namespaces");
    // `api v1 nodes NAME proxy`, `api v1 namespaces NS pods NAME proxy`.
    let mut parts = if cluster { 5 } else { 7 };
    let mut in_part = false;
    for (index, byte) in path.bytes().enumerate() {
        match (byte, in_part) {
            (b'/', true) if parts == 0 => return path.split_at(index),
            (b'/', _) => in_part = false,
            (_, false) => {
                in_part = true;
                parts -= 1;
            }
            _ => {}
        }
    }
    (path, "")
}

/// Relative links work below a slash only.
fn moved(request: &Request<hyper::body::Incoming>) -> Response {
    let query = request.uri().query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = hyper::Response::new(body::whole(""));
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::try_from(format!("{}/{query}", request.uri().path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

/// A redirect within what is proxied stays within it.
fn relocate(response: &mut Response, prefix: &str, host: &str) {
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else { return };
    let own = location.strip_prefix("http://").and_then(|rest| rest.strip_prefix(host)).unwrap_or(location);
    let path = if own.is_empty() { "/" } else { own };
    if path.starts_with('/')
        && !path.starts_with("//")
        && let Ok(location) = HeaderValue::try_from(format!("{prefix}{path}"))
    {
        response.headers_mut().insert(header::LOCATION, location);
    }
}

/// `NAME`, `NAME:PORT` or `SCHEME:NAME:PORT`.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    https: bool,
    name: &'a str,
    port: &'a str,
}

impl Name<'_> {
    fn parse(text: &str) -> Option<Name<'_>> {
        let parts: Vec<&str> = text.split(':').collect();
        let (scheme, name, port) = match parts[..] {
            [name] => ("", name, ""),
            [name, port] => ("", name, port),
            [scheme, name, port] => (scheme, name, port),
            _ => return None,
        };
        let known = matches!(scheme, "" | "http" | "https") && !name.is_empty();
        known.then_some(Name { https: scheme == "https", name, port })
    }
}

fn number(port: &str) -> Result<u16, StatusError> {
    let port = port.parse().ok().filter(|port| *port != 0);
    port.ok_or_else(|| StatusError::bad_request("a port is a number from 1 to 65535"))
}

fn first_port(pod: &Value) -> u16 {
    let containers = items(pod, &["spec", "containers"]).iter();
    let mut ports = containers.filter_map(|container| items(container, &["ports"]).first());
    ports.find_map(|port| u16::try_from(at(port, &["containerPort"]).as_u64()?).ok()).unwrap_or(80)
}

/// A port of a pod, through its board.
async fn dial_port(
    context: &Context,
    who: &Identity,
    pod: &Value,
    port: u16,
) -> Result<Destination, StatusError> {
    let io = kubelet::dial_pod(context, who, pod).await?;
    let path = format!(
        "/coracle/v1/connect/{}/{}/{port}",
        text(pod, &["metadata", "namespace"]),
        text(pod, &["metadata", "name"])
    );
    let mut request = kubelet::get(&path)?;
    request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    request.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    let answer = kubelet::send(io, request).await?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        // What upstream says of a pod that does not answer.
        let why = kubelet::said(answer).await;
        return Err(StatusError::service_unavailable(format!("error trying to reach service: {why}")));
    }
    let io = hyper::upgrade::on(answer).await.map_err(StatusError::internal)?;
    let host = format!("{}:{port}", text(pod, &["status", "podIP"]));
    Ok(Destination { io: Box::new(hyper_util::rt::TokioIo::new(io)), host })
}

/// A ready endpoint of a service.
async fn service(
    context: &Context,
    who: &Identity,
    namespace: &str,
    name: &str,
    port: &str,
) -> Result<Destination, StatusError> {
    let service = locate::object(context, "services", namespace, name).await?;
    let port_name = if let Ok(wanted) = port.parse::<u64>() {
        let ports = items(&service, &["spec", "ports"]);
        let found = ports.iter().find(|port| at(port, &["port"]).as_u64() == Some(wanted));
        let none = || {
            StatusError::service_unavailable(format!("no service port {wanted} found for service {name:?}"))
        };
        text(found.ok_or_else(none)?, &["name"])
    } else {
        port
    };
    let resource = crate::kinds::find("discovery.k8s.io", "v1", "endpointslices")
        .ok_or_else(|| StatusError::generic(404, ""))?;
    let query = Query::parse(&format!("labelSelector=kubernetes.io%2Fservice-name%3D{name}"));
    let target = Target { resource, namespace: namespace.into(), name: String::new() };
    let listed = context.registry.list(&target, &ListOptions::parse(resource, &query)?).await?;
    for slice in &listed.items {
        let ports = items(slice, &["ports"]);
        let Some(port) = ports.iter().find(|port| text(port, &["name"]) == port_name) else { continue };
        let Some(port) = at(port, &["port"]).as_u64().and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        for endpoint in items(slice, &["endpoints"]) {
            let ready = at(endpoint, &["conditions", "ready"]).as_bool() != Some(false);
            if !ready || text(endpoint, &["targetRef", "kind"]) != "Pod" {
                continue;
            }
            let pod = text(endpoint, &["targetRef", "name"]);
            if let Ok(pod) = locate::object(context, "pods", namespace, pod).await {
                return dial_port(context, who, &pod, port).await;
            }
        }
    }
    Err(StatusError::service_unavailable(format!("no endpoints available for service {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_behind_proxy_goes_on_as_it_came() {
        let check = |path: &str, expected: (&str, &str)| assert_eq!(split(path), expected, "{path}");
        let pod = "/api/v1/namespaces/d/pods/p:80/proxy";
        check(pod, (pod, ""));
        check(&format!("{pod}/"), (pod, "/"));
        check(&format!("{pod}/a%2Fb//c/proxy/"), (pod, "/a%2Fb//c/proxy/"));
        check("/api/v1/nodes/n/proxy/pods", ("/api/v1/nodes/n/proxy", "/pods"));
        check("//api/v1/nodes/n/proxy/pods", ("//api/v1/nodes/n/proxy", "/pods"));
    }

    #[test]
    fn names_have_ports_and_schemes() {
        let check = |text: &str, expected: Option<(bool, &str, &str)>| {
            let found = Name::parse(text).map(|name| (name.https, name.name, name.port));
            assert_eq!(found, expected, "{text}");
        };
        check("p", Some((false, "p", "")));
        check("p:80", Some((false, "p", "80")));
        check("https:p:443", Some((true, "p", "443")));
        check("http:p:", Some((false, "p", "")));
        check("ftp:p:1", None);
        check(":80", None);
        check("a:b:c:d", None);
    }

    #[test]
    fn the_first_declared_port_is_the_one() {
        let check = |containers: Value, expected: u16| {
            assert_eq!(first_port(&json!({"spec": {"containers": containers}})), expected, "{containers}");
        };
        check(json!([]), 80);
        check(json!([{"name": "a"}, {"ports": [{"containerPort": 8080}, {"containerPort": 1}]}]), 8080);
        check(json!([{"ports": [{"containerPort": 99_999}]}]), 80);
    }
}
