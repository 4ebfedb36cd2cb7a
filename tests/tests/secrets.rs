//! `imagePullSecrets` on a standalone board, with Debian's registry behind a password.

use coracle_tests::agent::{Board, deadline};
use coracle_tests::image::Image;
use coracle_tests::manifest::{SLEEP, first, pod, running, waiting};
use coracle_tests::registry::{ADDRESS, Registry, User};
use serde_json::Value;
use std::time::Instant;

/// boatswain, whose password is `whistle`.
const BOATSWAIN: User = User {
    basic: "Ym9hdHN3YWluOndoaXN0bGU=",
    htpasswd: "boatswain:$2b$05$abcdefghijklmnopqrstuum6aORYxiTpHqFCNc5dt2ZbLx5C0jwZC\n",
};
/// boatswain:hunter2
const WRONG: &str = "Ym9hdHN3YWluOmh1bnRlcjI=";
/// What nobody may read anywhere.
const HIDDEN: [&str; 4] = ["whistle", "hunter2", BOATSWAIN.basic, WRONG];

fn secret(basic: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: regcred}}\ntype: kubernetes.io/dockerconfigjson\nstringData:\n  .dockerconfigjson: '{{\"auths\": {{\"{ADDRESS}\": {{\"auth\": \"{basic}\"}}}}}}'\n"
    )
}

/// A pod that runs the closed registry's image of this tag.
fn guest(name: &str, tag: u8) -> String {
    let more = "  imagePullSecrets: [{name: regcred}]\n";
    pod(name, SLEEP, more).replace("example.test/busybox:1", &format!("{ADDRESS}/team/web:{tag}"))
}

fn refused(pod: &Value) -> bool {
    matches!(waiting(pod), "ErrImagePull" | "ImagePullBackOff")
        && first(pod)["state"]["waiting"]["message"].as_str().is_some_and(|text| text.contains("denied"))
}

fn closed_registry(board: &Board) -> Registry {
    let registry = Registry::start_closed(board.netns().expect("a namespace"), BOATSWAIN);
    let registry = registry.expect("docker-registry");
    for tag in ["1", "2"] {
        registry.push(&Image::busybox("b").expect("built"), "team/web", tag).expect("pushed");
    }
    registry
}

/// Everything that the board tells anybody.
fn told(board: &Board) -> String {
    let paths = ["/pods", "/events", "/metrics", "/stats/summary"].map(|path| board.get_text(path));
    let words =
        [&["ps", "-A", "-o", "yaml"][..], &["describe", "web"], &["image", "ls"]].map(|w| board.run(w));
    let told = paths.into_iter().chain(words).map(|text| text.expect("told"));
    told.chain([board.log()]).collect()
}

#[test]
fn a_pod_pulls_with_its_secret_once_that_is_right() {
    let mut board = Board::start("").expect("a board");
    let registry = closed_registry(&board);
    let said = board.apply(&format!("{}---\n{}", secret(WRONG), guest("web", 1))).expect("applied");
    assert_eq!(said, "secret/regcred created\npod/web created\n");
    board.wait("web", "refused", refused).expect("is told");
    assert_eq!(board.apply(&secret(BOATSWAIN.basic)).expect("applied"), "secret/regcred configured\n");
    assert_eq!(board.apply(&secret(BOATSWAIN.basic)).expect("applied"), "secret/regcred unchanged\n");
    board.wait("web", "running at the next attempt", running).expect("runs");

    // Kept through a crash.
    board.kill_agent().expect("killed");
    board.start_agent().expect("starts again");
    board.apply(&guest("late", 2)).expect("applied");
    board.wait("late", "running with the stored secret", running).expect("runs");
    assert_eq!(board.apply(&secret(BOATSWAIN.basic)).expect("applied"), "secret/regcred unchanged\n");
    let told = told(&board);
    for hidden in HIDDEN {
        assert!(!told.contains(hidden), "{hidden:?} is told");
    }
    drop(registry);
}

#[test]
fn a_secret_of_a_manifest_lives_as_long_as_its_file() {
    let board = Board::start("").expect("a board");
    let registry = closed_registry(&board);
    board.apply(&guest("web", 1)).expect("applied");
    board.wait("web", "refused", refused).expect("is told");
    let events = board.get_text("/events").expect("events");
    let warning =
        "Unable to retrieve some image pull secrets (regcred); attempting to pull the image may not succeed.";
    assert!(events.contains("FailedToRetrieveImagePullSecret") && events.contains(warning), "{events}");
    // The old form, encoded: {"127.0.0.1:5000": {"username": "boatswain", "password": "whistle"}}
    let cfg = "eyIxMjcuMC4wLjE6NTAwMCI6IHsidXNlcm5hbWUiOiAiYm9hdHN3YWluIiwgInBhc3N3b3JkIjogIndoaXN0bGUifX0=";
    let text = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: regcred}}\ntype: kubernetes.io/dockercfg\ndata: {{.dockercfg: {cfg}}}\n"
    );
    board.manifest("regcred.yaml", &text).expect("written");
    board.wait("web", "running with the file's secret", running).expect("runs");
    let file = board.root().join("regcred.yaml");
    std::fs::write(&file, &text).expect("written");
    let delete = || {
        let output = board.coracle(&["delete", "-f", file.to_str().expect("UTF-8")]).expect("runs");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(delete().contains("secret default/regcred belongs to the manifest regcred.yaml"), "{}", delete());
    let taken = board.apply(&secret(WRONG)).expect_err("is the manifest's").to_string();
    assert!(taken.contains("belongs to the manifest regcred.yaml; change it there"), "{taken}");
    board.remove_manifest("regcred.yaml").expect("removed");
    let until = Instant::now() + deadline();
    while !delete().contains("secrets \"regcred\" not found") {
        assert!(Instant::now() < until, "the secret stays: {}", delete());
        std::thread::yield_now();
    }
    let other = "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\ntype: kubernetes.io/tls\n";
    let refused = board.apply(other).expect_err("no keys").to_string();
    assert!(
        refused.contains("Secret \"tls\" is invalid: data[tls.crt]: Required value")
            && refused.lines().count() == 1,
        "{refused}"
    );
    board.apply(&secret(WRONG)).expect("applied");
    std::fs::write(&file, secret(WRONG)).expect("written");
    let said = board.run(&["delete", "-f", file.to_str().expect("UTF-8")]).expect("deleted");
    assert_eq!(said, "secret \"regcred\" deleted\n");
    drop(registry);
}
