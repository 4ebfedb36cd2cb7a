//! Boards that join: the real agent and the real control plane, each in a network namespace of its own.

use anyhow::{Result, ensure};
use coracle_tests::agent::{Board, in_namespace};
use coracle_tests::fleet::Fleet;
use coracle_tests::manifest::{SLEEP, pod, running};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, Issuer, KeyPair, PublicKeyData,
};
use sha2::Digest;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

fn cluster(board: &Board) -> PathBuf {
    board.root().join("cluster")
}

/// What `coracle join` complains of, in its one line.
fn refused(board: &Board, line: &str) -> Result<String> {
    let words: Vec<&str> = line.split_whitespace().skip(1).collect();
    let config = board.config();
    let all = [&words[..], &["--config", &config]].concat();
    let output = in_namespace(board.netns()?, || board.coracle(&all))??;
    ensure!(!output.status.success(), "joined: {}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stderr)?;
    ensure!(!text.contains(words[3]), "the token is told: {text}");
    ensure!(!cluster(board).join("kubeconfig").exists(), "half joined");
    Ok(text)
}

fn ready(fleet: &Fleet, board: &Board, node: &str) {
    let there = || Ok(fleet.kubectl(&["get", "node", node]).ok());
    board.until("the node is there", there).expect("registered");
    fleet.wait(&[&format!("node/{node}"), "--for=condition=Ready"]).expect("ready");
}

#[test]
fn a_running_board_joins_with_one_line_and_its_pods_do_not_notice() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let mut board = fleet.board("").expect("a board");
    board.start_agent().expect("an agent");
    board.manifest("own.yaml", &pod("own", SLEEP, "")).expect("written");
    let before = board.wait("own", "running", running).expect("runs");
    let pid = board.agent_pid();
    let line = fleet.join_line_with(&["--labels", "site=harbour"]).expect("a token");
    let said = board.join(&format!("{line} --labels coracle.dev/row=3")).expect("joins");
    assert!(said.contains(&format!("joined {} as node board-1", fleet.url())), "{said}");
    ready(&fleet, &board, "board-1");
    assert_eq!(board.agent_pid(), pid, "the agent is the same process");
    let node = fleet.get(&["node/board-1"]).expect("a node");
    assert_eq!(node["metadata"]["labels"]["site"], "harbour");
    assert_eq!(node["metadata"]["labels"]["coracle.dev/row"], "3");
    let after = board.wait("own", "running", running).expect("runs");
    assert_eq!(
        before["status"]["containerStatuses"][0]["containerID"],
        after["status"]["containerStatuses"][0]["containerID"]
    );

    // Keys are for root alone, and a second time is no other.
    let mode =
        |path: &str| fs::metadata(cluster(&board).join(path)).expect(path).permissions().mode() & 0o777;
    assert_eq!((mode("."), mode("client.pem"), mode("kubeconfig")), (0o700, 0o600, 0o600));
    assert!(!cluster(&board).join("pending.key").exists());
    let again = board.join(&line).expect("is no harm");
    assert!(again.contains("board-1 belongs to"), "{again}");
    // The kubelet port's certificate comes by itself, from the authority for kubelets.
    let certificate = || Ok(cluster(&board).join("serving.crt").exists().then_some(()));
    board.until("a serving certificate", certificate).expect("signed");

    let left = board.run(&["leave"]).expect("leaves");
    assert!(left.contains("kubectl delete node board-1"), "{left}");
    let anew = || Ok((board.log().matches("starts anew").count() == 2).then_some(()));
    board.until("the agent stands alone", anew).expect("it does");
    // It comes up anew in the same process: a request may meet it in between.
    let runs = || {
        let listed = board.coracle(&["ps", "own"])?.stdout;
        Ok(listed.windows(7).any(|word| word == b"Running").then_some(()))
    };
    board.until("its pod runs", runs).expect("runs on");
    assert_eq!(fs::read_dir(cluster(&board)).expect("a directory").count(), 0);
    // It came back with another key: the name is not given away, but by whoever may.
    let stolen = fleet.join_line().expect("a token");
    assert!(refused(&board, &stolen).expect("refused").contains("node \"board-1\" exists"), "{stolen}");
    let other = board.join(&format!("{stolen} --node-name other")).expect("joins");
    assert!(other.contains("as node other"), "{other}");
    ready(&fleet, &board, "other");
}

#[test]
fn a_line_that_is_wrong_is_one_clear_line_and_nothing_else() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let board = fleet.board("").expect("a board");
    let line = fleet.join_line().expect("a token");
    let words: Vec<&str> = line.split_whitespace().collect();
    let [coracle, join, url, _, token, _, hash] = words[..] else { panic!("{line}") };
    let with = |url: &str, token: &str, hash: &str| {
        format!("{coracle} {join} {url} --token {token} --ca-hash {hash}")
    };
    let check = |line: &str, expected: &str| {
        let told = refused(&board, line).expect("refused");
        assert!(told.contains(expected), "{line}\n{told}");
    };
    let wrong_hash = format!("sha256:{}", "0".repeat(64));
    check(&with(url, token, &wrong_hash), "has another hash than --ca-hash");
    check(&with(url, "abcdef.0123456789abcdef", hash), "does not take the token");
    check(&with(url, token, "sha256:1"), "64 hexadecimal digits");
    check(&with("http://10.250.255.1:6443", token, hash), "no API server");
    check(&with("https://10.250.255.1:1", token, hash), "connect to 10.250.255.1:1");
    // Whoever sits between cannot make the board send its token: the hash was wrong, and the use is still there.
    board.join(&line).expect("joins");
    // Another board comes too late.
    let second = fleet.board("").expect("a board");
    let told = refused(&second, &line).expect("refused");
    assert!(told.contains("used up or revoked"), "{told}");
    assert!(!cluster(&second).join("pending.key").exists());
}

#[test]
fn a_certificate_that_ended_while_the_board_was_off_is_renewed() {
    let mut fleet = Fleet::start(&[]).expect("a control plane");
    let mut board = fleet.board("").expect("a board");
    let line = fleet.join_line().expect("a token");
    board.join(&line).expect("joins");
    // As one that was signed now and ended five seconds ago: certificates begin five minutes before they are signed.
    let key = fs::read_to_string(fleet.data().join("pki/ca.key")).expect("its key");
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "coracle");
    let issuer = Issuer::new(params, KeyPair::from_pem(&key).expect("a key"));
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "system:nodes");
    params.distinguished_name.push(DnType::CommonName, "system:node:board-1");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let ago = |seconds| (SystemTime::now() - Duration::from_secs(seconds)).into();
    (params.not_before, params.not_after) = (ago(290), ago(5));
    let own = KeyPair::generate().expect("a key");
    let old = params.signed_by(&own, &issuer).expect("signed");
    // The control plane knows the board by its key.
    let digest = sha2::Sha256::digest(own.subject_public_key_info());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("coracle.dev/client-key={hash}");
    fleet.kubectl(&["annotate", "node", "board-1", "--overwrite", &key]).expect("annotated");
    let path = cluster(&board).join("client.pem");
    fs::write(&path, format!("{}{}", old.pem(), own.serialize_pem())).expect("written");
    board.start_agent().expect("an agent");
    ready(&fleet, &board, "board-1");
    let renewed = fs::read_to_string(&path).expect("reads");
    assert!(!renewed.contains(&old.pem()) && board.log().contains("the client certificate is renewed"));
}
