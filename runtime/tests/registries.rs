//! Pulling from registries that lie, stall, redirect and ask for what is not theirs: one clear error, and nothing left.

use coracle_runtime::image::{Credential, Digest, Image, ImageConfig, ImageError, ImageStore};
use serde_json::json;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One request: its path and its `Authorization`.
type Asked = (String, Option<String>);

/// An answer: status line, further headers, body.
struct Answer(&'static str, String, Vec<u8>);

/// An HTTP server on loopback, until the test's process ends, and what it was asked.
struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Server {
    fn start(answer: impl Fn(&str) -> Answer + Send + Sync + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listens");
        let address = listener.local_addr().expect("bound");
        let (asked, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(answer));
        let log = asked.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().filter_map(Result::ok) {
                let (answer, log) = (answer.clone(), log.clone());
                std::thread::spawn(move || serve(&stream, &*answer, &log));
            }
        });
        Server { address, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn serve(mut stream: &TcpStream, answer: &dyn Fn(&str) -> Answer, log: &Mutex<Vec<Asked>>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let Some(first) = lines.next() else { return };
    let path = first.split(' ').nth(1).unwrap_or_default().to_string();
    let mut authorization = None;
    for line in lines.take_while(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(": ") {
            authorization =
                name.eq_ignore_ascii_case("authorization").then(|| value.to_string()).or(authorization);
        }
    }
    log.lock().expect("no panic").push((path.clone(), authorization));
    let Answer(status, headers, body) = answer(&path);
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n", body.len());
    // A client that hangs up has heard enough.
    drop(stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&body)));
}

fn ok(body: impl Into<Vec<u8>>) -> Answer {
    Answer("200 OK", String::new(), body.into())
}

fn redirect(to: &str) -> Answer {
    Answer("302 Found", format!("Location: {to}\r\n"), Vec::new())
}

/// The blobs of an image of `layers`; the manifest says that each has `size(its size)` bytes.
#[derive(Clone)]
struct Blobs {
    manifest: Vec<u8>,
    config: Vec<u8>,
    layers: Vec<Vec<u8>>,
}

impl Blobs {
    fn of(layers: Vec<Vec<u8>>, size: impl Fn(usize) -> usize) -> Blobs {
        let digests: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"architecture": architecture, "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests}});
        let config = config.to_string().into_bytes();
        let descriptor = |kind: &str, bytes: &[u8], size: usize| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": Digest::of(bytes).to_string(), "size": size});
        let list: Vec<_> = layers.iter().map(|l| descriptor("layer.v1.tar", l, size(l.len()))).collect();
        let manifest = json!({"schemaVersion": 2, "config": descriptor("config.v1+json", &config, config.len()), "layers": list});
        Blobs { manifest: manifest.to_string().into_bytes(), config, layers }
    }

    fn answer(&self, path: &str) -> Answer {
        if path.contains("/manifests/") {
            return ok(self.manifest.clone());
        }
        let all = self.layers.iter().chain([&self.config]);
        let found = all.into_iter().find(|b| path.ends_with(&Digest::of(b).to_string()));
        found.map_or_else(|| Answer("404 Not Found", String::new(), Vec::new()), |b| ok(b.clone()))
    }
}

fn layer(name: &str, bytes: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, name, vec![7; bytes].as_slice()).expect("a tar in memory");
    tar.into_inner().expect("a tar in memory")
}

struct Store {
    store: Arc<ImageStore>,
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Store {
    fn open() -> Store {
        let dir = tempfile::tempdir().expect("a directory");
        let config = ImageConfig { dir: dir.path().into(), parallel_layers: 2, ..Default::default() };
        let store = Arc::new(ImageStore::open(config).expect("opens"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Store { store, dir, runtime: runtime.expect("a runtime") }
    }

    fn pull(&self, server: &Server) -> Result<Image, ImageError> {
        let name = format!("{}/team/web:1", server.address);
        let registry = server.address.to_string();
        let credential = Credential { registry, user: "boatswain".into(), password: "whistle".into() };
        self.runtime.block_on(self.store.pull(&name, &[credential], |_| {}))
    }

    /// Names of what is in a directory of the store.
    fn left(&self, name: &str) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.path().join(name)).expect("lists");
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
    }
}

/// CVE-2020-15157 of containerd: a blob's host asks for a token of a server of its choice, and gets the password.
#[test]
fn another_host_that_is_redirected_to_gets_no_credentials() {
    let thief = Server::start(|_| Answer("200 OK", String::new(), b"{\"token\": \"t\"}".to_vec()));
    let realm = format!("WWW-Authenticate: Bearer realm=\"http://{}/token\"\r\n", thief.address);
    let other = Server::start(move |_| Answer("401 Unauthorized", realm.clone(), Vec::new()));
    let to = format!("http://{}/blob", other.address);
    let registry = Server::start(move |_| redirect(&to));
    let refused = Store::open().pull(&registry).expect_err("no image").to_string();
    assert!(refused.contains("credential") || refused.contains("401"), "{refused}");
    assert_eq!(thief.asked(), [], "nobody was sent there");
    assert!(other.asked().iter().all(|(_, authorization)| authorization.is_none()), "{:?}", other.asked());
}

/// A registry without TLS may name a token server, but a password does not cross the network to it in the clear.
#[test]
fn a_token_server_elsewhere_has_to_have_tls() {
    let check = |realm: &str| {
        let header = format!("WWW-Authenticate: Bearer realm=\"{realm}\"\r\n");
        let registry = Server::start(move |_| Answer("401 Unauthorized", header.clone(), Vec::new()));
        let refused = Store::open().pull(&registry).expect_err("no image").to_string();
        assert!(refused.contains("token server") && refused.lines().count() == 1, "{realm}: {refused}");
    };
    check("http://192.0.2.1/token");
    check("file:///etc/passwd");
    check("");
}

#[test]
fn redirects_lead_on_from_where_they_are_met_and_end() {
    let blobs = Blobs::of(vec![layer("a", 10)], |size| size);
    let honest = blobs.clone();
    let store = Server::start(move |path| match path.strip_prefix("/moved") {
        Some(path) => honest.answer(path),
        None => redirect(&format!("/moved{path}")),
    });
    let to = format!("http://{}", store.address);
    let registry = Server::start(move |path| redirect(&format!("{to}{path}")));
    Store::open().pull(&registry).expect("pulled from where it lies");

    let loops = Server::start(redirect);
    let refused = Store::open().pull(&loops).expect_err("no image").to_string();
    assert!(refused.contains("too many redirects") && loops.asked().len() < 10, "{refused}");
    let file = Server::start(|_| redirect("file:///etc/passwd"));
    let refused = Store::open().pull(&file).expect_err("no image").to_string();
    assert!(refused.contains("a redirect to \"file:///etc/passwd\""), "{refused}");
}

#[test]
fn lies_are_told_and_leave_nothing() {
    let check = |blobs: Blobs, lie: &(dyn Fn(&Blobs, &str) -> Answer + Send + Sync), expected: &str| {
        let (known, paths) =
            (blobs.clone(), [&blobs.manifest, &blobs.config].map(|b| Digest::of(b).to_string()));
        let layers: Vec<String> = blobs.layers.iter().map(|l| Digest::of(l).to_string()).collect();
        let mut table = std::collections::BTreeMap::new();
        for path in paths
            .iter()
            .chain(&layers)
            .map(|d| format!("/v2/team/web/blobs/{d}"))
            .chain(["/v2/team/web/manifests/1".into()])
        {
            let Answer(status, headers, body) = lie(&known, &path);
            table.insert(path, (status, headers, body));
        }
        let registry = Server::start(move |path| {
            let (status, headers, body) =
                table.get(path).cloned().unwrap_or(("404 Not Found", String::new(), Vec::new()));
            Answer(status, headers, body)
        });
        let store = Store::open();
        let told = store.pull(&registry).expect_err(expected).to_string();
        assert!(told.contains(expected) && told.lines().count() == 1, "{expected}: {told}");
        assert_eq!(store.left("layers"), Vec::<String>::new(), "{expected}");
        let bytes: u64 = store
            .left("tmp")
            .iter()
            .map(|n| std::fs::metadata(store.dir.path().join("tmp").join(n)).expect("there").len())
            .sum();
        assert!(bytes <= 20_000, "{expected}: {bytes} bytes are left");
    };
    let honest = |blobs: &Blobs, path: &str| blobs.answer(path);
    let plain = || Blobs::of(vec![layer("a", 10_000)], |size| size);
    check(Blobs::of(vec![layer("a", 10_000)], |size| size - 512), &honest, "longer than the manifest says");
    check(Blobs::of(vec![layer("a", 10_000)], |size| size + 512), &honest, "the stream ended after");
    check(Blobs::of(vec![layer("a", 10)], |_| usize::MAX >> 1), &honest, "says that it has");
    let changed = |blobs: &Blobs, path: &str| {
        let Answer(status, headers, mut body) = blobs.answer(path);
        if body.len() == blobs.layers[0].len() {
            body[600] ^= 1;
        }
        Answer(status, headers, body)
    };
    check(plain(), &changed, "a layer should be sha256:");
    let config = |blobs: &Blobs, path: &str| {
        let answer = blobs.answer(path);
        if answer.2 == blobs.config { ok("{}") } else { answer }
    };
    check(plain(), &config, "the configuration should be sha256:");
    let endless = |_: &Blobs, _: &str| ok(vec![b' '; 5 << 20]);
    check(plain(), &endless, "length limit exceeded");
    let garbage = |_: &Blobs, _: &str| ok("\u{1b}[31mno manifest");
    check(plain(), &garbage, "its manifest");
    let heads = |_: &Blobs, _: &str| Answer("200 OK", format!("X: {}\r\n", "x".repeat(1 << 20)), Vec::new());
    check(plain(), &heads, "unavailable");
}

/// Both wrote to the one file of the blob, and what they made of it together was refused as damaged.
#[test]
fn one_layer_pulled_twice_at_once_is_fetched_once() {
    let shared = layer("shared", 4 << 20);
    let first = Blobs::of(vec![shared.clone(), shared.clone(), layer("a", 10)], |size| size);
    let second = Blobs::of(vec![shared.clone(), layer("b", 10)], |size| size);
    let registry =
        Server::start(
            move |path| if path.contains("/other/") { second.answer(path) } else { first.answer(path) },
        );
    let store = Store::open();
    let names = ["team/web", "other/web", "team/web"].map(|name| format!("{}/{name}:1", registry.address));
    store.runtime.block_on(async {
        let pulls: Vec<_> = names
            .into_iter()
            .map(|name| {
                let store = store.store.clone();
                tokio::spawn(async move { store.pull(&name, &[], |_| {}).await })
            })
            .collect();
        for pull in pulls {
            pull.await.expect("no panic").expect("pulled");
        }
    });
    let digest = Digest::of(&shared).to_string();
    assert_eq!(registry.asked().iter().filter(|(path, _)| path.ends_with(&digest)).count(), 1);
    assert_eq!(store.left("tmp"), Vec::<String>::new());
}
