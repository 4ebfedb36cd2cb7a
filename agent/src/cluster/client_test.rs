//! Against a small server of our own, which answers what the test says.

use super::*;
use crate::cluster::access::Trust;
use hyper::body::Body;
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::time_provider::DefaultTimeProvider;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

/// What the server says to one request: the code, and the body in chunks.
pub(crate) type Answer = (u16, Vec<String>);

/// A served script.
pub(crate) struct Server {
    pub address: String,
    pub ca: String,
    /// `METHOD PATH CONNECTION AUTHORIZATION BODY` of each request.
    pub asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Answers each request with the next of `answers`; a connection is closed once there are none.
    pub(crate) async fn start(answers: impl IntoIterator<Item = Answer>) -> Server {
        let key = rcgen::KeyPair::generate().expect("a key");
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".into()]).expect("names");
        let certificate = parameters.self_signed(&key).expect("a certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivatePkcs8KeyDer::from(key.serialize_der()).into(),
            )
            .expect("a certificate and its key");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (acceptor, seen) = (TlsAcceptor::from(Arc::new(config)), asked.clone());
        let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
        tokio::spawn(async move {
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                count += 1;
                let (seen, answers, acceptor) = (seen.clone(), answers.clone(), acceptor.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(move |request: hyper::Request<Incoming>| {
                        answer(request, count, seen.clone(), answers.clone())
                    });
                    // A client that goes away is no failure of the test.
                    drop(server::Builder::new().serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Server { address, ca: certificate.pem(), asked }
    }

    pub(crate) fn client(&self) -> Client {
        let trust = Trust::Authorities(self.ca.clone().into_bytes());
        let server = format!("https://{}/prefix/", self.address);
        let access = Access::new(&server, trust, None, Some("T0"), Arc::new(DefaultTimeProvider));
        Client::with(access.expect("an access"))
    }

    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("not poisoned").clone()
    }
}

async fn answer(
    request: hyper::Request<Incoming>,
    connection: usize,
    seen: Arc<Mutex<Vec<String>>>,
    answers: Arc<Mutex<VecDeque<Answer>>>,
) -> Result<Response<impl Body<Data = Bytes, Error = Infallible>>, String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.expect("a body").to_bytes();
    let header = |name: &str| head.headers.get(name).map_or("-", |v| v.to_str().expect("text")).to_string();
    let line = format!(
        "{} {} {connection} {} {}",
        head.method,
        head.uri,
        header("authorization"),
        String::from_utf8_lossy(&body)
    );
    seen.lock().expect("not poisoned").push(line);
    let next = answers.lock().expect("not poisoned").pop_front();
    let (code, chunks) = next.ok_or("no more answers")?;
    let chunks = chunks.into_iter().map(|c| Ok::<_, Infallible>(hyper::body::Frame::data(Bytes::from(c))));
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(chunks));
    Ok(Response::builder().status(code).body(body).expect("a response"))
}

pub(crate) fn whole(code: u16, body: &Value) -> Answer {
    (code, vec![body.to_string()])
}

#[tokio::test]
async fn requests_share_a_connection_and_say_who_we_are() {
    let server =
        Server::start([whole(200, &json!({"a": 1})), whole(201, &json!({})), whole(200, &json!({}))]).await;
    let client = server.client();
    let got: Value = client.get("/api/v1/nodes/a").await.expect("answered");
    assert_eq!(got, json!({"a": 1}));
    client.create::<Value>("/api/v1/nodes", &json!({"b": 2})).await.expect("answered");
    client.delete("/api/v1/nodes/a", &json!({"kind": "DeleteOptions"})).await.expect("answered");
    assert_eq!(
        server.asked(),
        [
            "GET /prefix/api/v1/nodes/a 1 Bearer T0 ",
            "POST /prefix/api/v1/nodes 1 Bearer T0 {\"b\":2}",
            "DELETE /prefix/api/v1/nodes/a 1 Bearer T0 {\"kind\":\"DeleteOptions\"}",
        ]
    );
}

#[tokio::test]
async fn a_list_is_read_page_by_page() {
    let page = |items: Value, next: &str| {
        whole(200, &json!({"metadata": {"resourceVersion": "7", "continue": next}, "items": items}))
    };
    let server = Server::start([page(json!([1, 2]), "a/b"), page(json!([3]), "")]).await;
    let query = [("fieldSelector", "spec.nodeName=n")];
    let listed: (Vec<u8>, String) = server.client().list("/api/v1/pods", &query).await.expect("listed");
    assert_eq!(listed, (vec![1, 2, 3], "7".into()));
    let selector = "/prefix/api/v1/pods?fieldSelector=spec.nodeName%3Dn&limit=100";
    assert_eq!(
        server.asked(),
        [format!("GET {selector} 1 Bearer T0 "), format!("GET {selector}&continue=a%2Fb 1 Bearer T0 ")]
    );
}

#[tokio::test]
async fn a_refusal_is_the_servers_own() {
    let gone = json!({"kind": "Status", "status": "Failure", "reason": "Expired", "code": 410, "message": "too old"});
    let server = Server::start([whole(410, &gone), (404, vec!["404 page not found\n".into()])]).await;
    let client = server.client();
    let error = client.get::<Value>("/a").await.expect_err("refused");
    assert!(error.reason() == Some(Reason::Expired) && error.to_string() == "too old", "{error}");
    let error = client.get::<Value>("/b").await.expect_err("refused");
    assert!(error.is_not_found(), "{error}");
}

#[tokio::test]
async fn a_server_of_another_authority_is_not_believed() {
    let (server, other) = (Server::start([whole(200, &json!({}))]).await, Server::start([]).await);
    let stranger = Server { address: server.address.clone(), ca: other.ca, asked: Arc::default() };
    let error = stranger.client().get::<Value>("/a").await.expect_err("refused");
    assert!(matches!(error, ClientError::Access(AccessError::Connect { .. })), "{error}");
    assert_eq!(server.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn credentials_that_change_are_used_from_the_next_request_on() {
    let server = Server::start((0..3).map(|_| whole(200, &json!({})))).await;
    let dir = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("ca.crt", &server.ca);
    write("token", "one");
    let path = dir.path().join("kubeconfig");
    let client = Client::of_kubeconfig(path, Arc::new(DefaultTimeProvider));
    let error = client.get::<Value>("/a").await.expect_err("no kubeconfig yet");
    assert!(matches!(error, ClientError::Access(AccessError::Kubeconfig(_))), "{error}");
    write(
        "kubeconfig",
        &format!(
            "current-context: c\ncontexts: [{{name: c, context: {{cluster: k, user: u}}}}]\nclusters: [{{name: k, cluster: {{server: 'https://{}', certificate-authority: ca.crt}}}}]\nusers: [{{name: u, user: {{tokenFile: token}}}}]\n",
            server.address
        ),
    );
    client.get::<Value>("/a").await.expect("answered");
    client.get::<Value>("/b").await.expect("answered");
    write("token", "three");
    client.get::<Value>("/c").await.expect("answered");
    assert_eq!(server.asked(), ["GET /a 1 Bearer one ", "GET /b 1 Bearer one ", "GET /c 2 Bearer three "]);
}

#[test]
fn no_name_leaves_its_place_in_a_path() {
    let check = |name: &str, expected: &str| {
        assert_eq!(Collection::SECRETS.object("n", name), format!("/api/v1/namespaces/n/secrets/{expected}"));
    };
    check("a.b-c", "a.b-c");
    check("..", "%2E%2E");
    check("../../nodes", "..%2F..%2Fnodes");
    check("a?b#c d\r\n", "a%3Fb%23c%20d%0D%0A");
    assert_eq!(Collection::NODES.part("", "n", "status"), "/api/v1/nodes/n/status");
}
