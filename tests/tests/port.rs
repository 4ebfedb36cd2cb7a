//! The kubelet's HTTPS port, as an API server or a scraper calls it: who is let in, and who is not.

use anyhow::Result;
use coracle_tests::agent::{Board, binary, in_namespace};
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, pod};
use std::path::Path;
use std::process::{Command, Stdio};

/// Whom the caller says to be.
enum Credential<'a> {
    None,
    /// Of a client: certificate and key in PEM.
    Certificate(&'a Path),
    Token(&'a str),
}

/// Asks from within the board's network, since its door lets nobody in: status and body, or what TLS said.
fn ask(board: &Board, authority: &Path, credential: &Credential<'_>, path: &str) -> Result<(u16, String)> {
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--max-time", "60", "--write-out", "\n%{http_code}"]);
    command.arg("--cacert").arg(authority).args(["--resolve", "board-1:10250:127.0.0.1"]);
    match credential {
        Credential::None => {}
        Credential::Certificate(file) => {
            command.arg("--cert").arg(file).arg("--key").arg(file);
        }
        Credential::Token(token) => {
            command.args(["--header", &format!("Authorization: Bearer {token}")]);
        }
    }
    command.arg(format!("https://board-1:10250{path}")).stdin(Stdio::null());
    let output = in_namespace(board.netns()?, || command.output())??;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (body, status) = text.rsplit_once('\n').unwrap_or_default();
    let body = if output.status.success() {
        body.to_string()
    } else {
        String::from_utf8_lossy(&output.stderr).into()
    };
    Ok((status.parse().unwrap_or(0), body))
}

/// Certificate and key of an administrator.
fn certificate(fleet: &Fleet) -> std::path::PathBuf {
    let kubeconfig = fleet.data().join("made.conf");
    let mut command = Command::new(binary("coracle-control").expect("built"));
    command.args(["kubeconfig", "create", "--user", "ada", "--group", "system:masters", "--data-dir"]);
    command.arg(fleet.data()).args(["--server", &fleet.url(), "--output"]).arg(&kubeconfig);
    let made = in_namespace(fleet.netns(), || command.output()).expect("in there").expect("starts");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let field = |name: &str| {
        let path = format!("jsonpath={{.users[0].user.{name}}}");
        let mut command = Command::new("kubectl");
        command.args(["config", "view", "--raw", "-o", &path, "--kubeconfig"]).arg(&kubeconfig);
        base64(&String::from_utf8(command.output().expect("kubectl starts").stdout).expect("text"))
    };
    let file = kubeconfig.with_extension("pem");
    let pem = [field("client-certificate-data"), field("client-key-data")].concat();
    std::fs::write(&file, pem).expect("written");
    file
}

fn base64(text: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64")
}

#[test]
fn the_kubelets_port_knows_whom_it_lets_in() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let board = fleet.ready_board("").expect("a board");
    fleet.apply(&pod("boat", SLEEP, "  nodeName: board-1\n")).expect("applied");
    fleet.wait(&["pod/boat", "--for=condition=Ready"]).expect("runs");
    let authority = fleet.data().join("pki/kubelet-ca.crt");
    let ask =
        |credential: Credential<'_>, path: &str| ask(&board, &authority, &credential, path).expect("asked");
    let admin = certificate(&fleet);

    // The serving certificate is the cluster's, for this node's name: anything else curl would not have. It is asked for
    // once the node is there.
    let served =
        || Ok((ask(Credential::Certificate(&admin), "/healthz") == (200, "ok".into())).then_some(()));
    board.until("the cluster's certificate is there", served).expect("served");
    let (status, body) = ask(Credential::Certificate(&admin), "/containerLogs/default/boat/main");
    assert_eq!((status, body.as_str()), (200, "up\n"));
    let (status, body) = ask(Credential::Certificate(&admin), "/pods");
    assert!(status == 200 && body.contains("\"boat\""), "{status} {body}");
    // What changes the board is not for the cluster, whoever asks.
    assert_eq!(ask(Credential::Certificate(&admin), "/coracle/v1/images").0, 404);

    for path in ["/healthz", "/pods", "/containerLogs/default/boat/main", "/metrics", "/nothing"] {
        assert_eq!(ask(Credential::None, path), (401, "Unauthorized".into()), "{path}");
        assert_eq!(ask(Credential::Token("nobody's"), path), (401, "Unauthorized".into()), "{path}");
    }
    // Of another cluster, with the same names in it.
    let other = Fleet::start(&[]).expect("another control plane");
    let (status, said) = ask(Credential::Certificate(&certificate(&other)), "/healthz");
    assert!(status == 0 && said.contains("alert"), "{status} {said}");

    // A service account, without and with the right.
    fleet.kubectl(&["create", "serviceaccount", "scraper"]).expect("created");
    let token = fleet.kubectl(&["create", "token", "scraper"]).expect("a token");
    let (status, said) = ask(Credential::Token(&token), "/metrics");
    let expected = "Forbidden (user=system:serviceaccount:default:scraper, verb=get, resource=nodes, subresource(s)=[metrics])";
    assert_eq!((status, said.as_str()), (403, expected));
    fleet.kubectl(&["create", "serviceaccount", "reader"]).expect("created");
    let right = ["create", "clusterrole", "scrape", "--verb=get", "--resource=nodes/metrics"];
    fleet.kubectl(&right).expect("created");
    let bound =
        ["create", "clusterrolebinding", "scrape", "--clusterrole=scrape", "--serviceaccount=default:reader"];
    fleet.kubectl(&bound).expect("created");
    let can = [
        "auth",
        "can-i",
        "get",
        "nodes",
        "--subresource=metrics",
        "--as=system:serviceaccount:default:reader",
    ];
    board.until("the right holds", || Ok(fleet.kubectl(&can).ok())).expect("granted");
    let token = fleet.kubectl(&["create", "token", "reader"]).expect("a token");
    let (status, body) = ask(Credential::Token(&token), "/metrics");
    assert!(status == 200 && body.contains("kubelet_running_pods 1"), "{status} {body}");
    assert_eq!(ask(Credential::Token(&token), "/exec/default/boat/main?command=id").0, 403);
}
