//! Images on a real board: Debian's registry server, bad links, closed doors, foreign and broken archives.

use coracle_tests::agent::Board;

#[test]
fn images_come_from_a_registry_and_its_mirrors() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{ADDRESS, Registry};
    let mirrors = ["docker.io", "gcr.io"]
        .map(|host| format!("[image.registry.\"{host}\"]\nmirrors = [\"{ADDRESS}\"]\nplain_http = true\n"));
    let board = Board::start(&mirrors.concat()).expect("a board");
    let registry = Registry::start(board.netns().expect("a namespace")).expect("docker-registry");
    let image = Image::web("web").expect("built");
    registry.push(&image, "team/web", "1").expect("pushed");
    registry.push(&image, "library/web", "latest").expect("pushed");
    for name in [format!("{ADDRESS}/team/web:1"), "web".into(), "gcr.io/team/web:1".into()] {
        let said = board.run(&["image", "pull", &name]).expect("pulled");
        assert!(said.contains("pulled (sha256:"), "{said}");
    }
    let listed = board.run(&["image", "ls"]).expect("lists");
    assert!(
        listed.contains("docker.io/library/web:latest") && listed.contains("gcr.io/team/web:1"),
        "{listed}"
    );
    let failed = board.coracle(&["image", "pull", &format!("{ADDRESS}/team/none:1")]).expect("runs");
    assert!(String::from_utf8_lossy(&failed.stderr).contains("not found"), "{failed:?}");
    board.run(&["image", "prune"]).expect("prunes");
    assert!(!board.run(&["image", "ls"]).expect("lists").contains("team/web"));
}

#[test]
fn an_interrupted_pull_goes_on_from_the_bytes_that_are_there() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{ADDRESS, CuttingProxy, Fault, PROXY_ADDRESS, Registry};
    let board = Board::start("").expect("a board");
    let netns = board.netns().expect("a namespace");
    let registry = Registry::start(netns).expect("docker-registry");
    // Its own layer: what was preloaded is not fetched at all.
    let image = Image::laden("web", 3 << 20).expect("built");
    registry.push(&image, "team/web", "1").expect("pushed");
    // Every connection is cut after so many bytes: no layer comes through in one piece.
    let proxy = CuttingProxy::start(netns, 300_000, Fault::Cut).expect("a proxy");
    let name = format!("{PROXY_ADDRESS}/team/web:1");
    let mut attempts = 0;
    while !board.coracle(&["image", "pull", &name]).expect("runs").status.success() {
        attempts += 1;
        assert!(attempts < 40, "pulls do not get on: {}", board.log());
    }
    let through_cuts = proxy.bytes();
    // Straight from the registry it is the same image, all of it here already.
    let straight = board.run(&["image", "pull", &format!("{ADDRESS}/team/web:1")]).expect("pulled");
    assert!(straight.contains("pulled (sha256:"));
    let listed = board.run(&["image", "ls"]).expect("lists");
    let ids: Vec<&str> = listed
        .lines()
        .filter(|l| l.contains("team/web"))
        .filter_map(|l| l.split_whitespace().nth(1))
        .collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{listed}");
    let size: u64 = image.blobs().expect("built").layers.iter().map(|layer| layer.bytes.len() as u64).sum();
    assert!(attempts > 0, "the link was not bad");
    assert!(through_cuts < size * 3 / 2, "{through_cuts} bytes came for {size}: they were fetched again");
}

/// A pull whose agent is killed leaves what it had; the next one needs only the rest.
#[test]
fn a_pull_that_is_killed_goes_on_from_the_bytes_that_are_there() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{CuttingProxy, Fault, PROXY_ADDRESS, Registry};
    let mut board = Board::start("").expect("a board");
    let netns = board.netns().expect("a namespace").try_clone().expect("copied");
    let registry = Registry::start(&netns).expect("docker-registry");
    let image = Image::laden("web", 3 << 20).expect("built");
    registry.push(&image, "team/web", "1").expect("pushed");
    let sizes: Vec<u64> =
        image.blobs().expect("built").layers.iter().map(|layer| layer.bytes.len() as u64).collect();
    let size: u64 = sizes.iter().sum();
    let half = sizes.iter().max().expect("layers") / 2;
    let proxy = CuttingProxy::start(&netns, half, Fault::Stall).expect("a proxy");
    let name = format!("{PROXY_ADDRESS}/team/web:1");
    let mut pull = std::process::Command::new(coracle_tests::agent::binary("coracle").expect("built"))
        .arg("--root")
        .arg(board.root())
        .args(["image", "pull", &name])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("started");
    let until = std::time::Instant::now() + coracle_tests::agent::deadline();
    while proxy.bytes() < half {
        assert_eq!(pull.try_wait().expect("asked"), None, "the link is not bad enough");
        assert!(std::time::Instant::now() < until, "nothing comes through: {}", board.log());
        std::thread::yield_now();
    }
    board.kill_agent().expect("killed");
    assert!(!pull.wait().expect("ends").success(), "whoever pulled is told");
    proxy.mend();
    board.start_agent().expect("starts again");
    board.run(&["image", "pull", &name]).expect("pulled");
    // What was on its way in the sockets may come twice; all of the half would be more.
    assert!(proxy.bytes() < size + half / 2, "{} bytes came for {size}: fetched again", proxy.bytes());
    let left = std::fs::read_dir(board.root().join("images")).expect("lists").filter_map(Result::ok);
    let partial: Vec<_> =
        left.map(|e| e.file_name()).filter(|n| n.to_string_lossy().contains("part")).collect();
    assert!(partial.is_empty(), "{partial:?}");
}

#[test]
fn closed_registries_open_for_who_has_credentials_only() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{Challenge, GATE_ADDRESS, Gate, Registry};
    // boatswain:whistle
    const CREDENTIALS: &str = "Ym9hdHN3YWluOndoaXN0bGU=";
    for challenge in [Challenge::Basic, Challenge::Bearer] {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("config.json");
        let plain = format!("[image.registry.\"{GATE_ADDRESS}\"]\nplain_http = true\n");
        let board = Board::start(&format!("image.credential_files = [\"{}\"]\n{plain}", file.display()))
            .expect("a board");
        let netns = board.netns().expect("a namespace");
        let registry = Registry::start(netns).expect("docker-registry");
        registry.push(&Image::busybox("b").expect("built"), "team/web", "1").expect("pushed");
        Gate::start(netns, challenge, CREDENTIALS).expect("a gate");
        let name = format!("{GATE_ADDRESS}/team/web:1");
        let pull = || board.coracle(&["image", "pull", &name]).expect("runs");
        let refused = String::from_utf8_lossy(&pull().stderr).into_owned();
        assert!(refused.contains("credential") && refused.lines().count() == 1, "{challenge:?}: {refused}");
        let auth =
            |secret: &str| format!("{{\"auths\": {{\"{GATE_ADDRESS}\": {{\"auth\": \"{secret}\"}}}}}}");
        std::fs::write(&file, auth("d3Jvbmc6d3Jvbmc=")).expect("written");
        let refused = String::from_utf8_lossy(&pull().stderr).into_owned();
        assert!(!refused.is_empty() && !refused.contains("d3Jvbmc6d3Jvbmc="), "{challenge:?}: {refused}");
        std::fs::write(&file, auth(CREDENTIALS)).expect("written");
        let pulled = pull();
        assert!(
            pulled.status.success(),
            "{challenge:?}: {}\n{}",
            String::from_utf8_lossy(&pulled.stderr),
            board.log()
        );
    }
}

#[test]
fn an_image_of_another_architecture_is_refused() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{ADDRESS, Registry};
    let board = Board::start("").expect("a board");
    let mut image = Image::busybox("example.test/foreign:1").expect("built");
    image.architecture = "s390x".into();
    let archive = board.root().join("foreign.tar");
    image.write_oci_archive(&archive).expect("written");
    let refused = board.coracle(&["image", "import", archive.to_str().expect("UTF-8")]).expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("s390x") && said.lines().count() == 1, "{said}");
    let registry = Registry::start(board.netns().expect("a namespace")).expect("docker-registry");
    registry.push(&image, "team/foreign", "1").expect("pushed");
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: foreign}}\nspec:\n  containers:\n  - {{name: main, image: '{ADDRESS}/team/foreign:1'}}\n"
    );
    board.apply(&text).expect("applied");
    let seen = board
        .wait("foreign", "refused", |p| {
            let reason = p["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str();
            matches!(reason, Some("ErrImagePull" | "ImagePullBackOff"))
        })
        .expect("is told");
    let message = seen["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
    assert!(message.contains("s390x"), "{message}");
}

#[test]
fn an_index_gives_each_board_the_image_of_its_platform() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{ADDRESS, Registry};
    let board = Board::start("").expect("a board");
    let registry = Registry::start(board.netns().expect("a namespace")).expect("docker-registry");
    let ours = Image::laden("ours", 1 << 16).expect("built");
    let foreign = |architecture: &str| {
        let mut image = Image::busybox("foreign").expect("built");
        image.architecture = architecture.into();
        image
    };
    let (s390x, riscv) = (foreign("s390x"), foreign("riscv64"));
    registry.push_index(&[&s390x, &ours, &riscv], "team/all", "1").expect("pushed");
    registry.push_index(&[&s390x, &riscv], "team/others", "1").expect("pushed");
    let name = format!("{ADDRESS}/team/all:1");
    board.run(&["image", "pull", &name]).expect("pulled");
    let listed = board.run(&["image", "ls"]).expect("lists");
    let config = ours.blobs().expect("built").config.digest;
    let id = config.trim_start_matches("sha256:").get(..12).expect("a digest");
    assert!(listed.lines().any(|line| line.contains("team/all") && line.contains(id)), "{id}: {listed}");
    let refused = board.coracle(&["image", "pull", &format!("{ADDRESS}/team/others:1")]).expect("runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    let offered = said.contains("s390x") && said.contains("riscv64") && said.lines().count() == 1;
    assert!(!refused.status.success() && offered, "{said}");
}

#[test]
fn a_registry_is_asked_by_https_and_believed_by_the_authorities_of_the_machine() {
    use coracle_tests::image::Image;
    use coracle_tests::registry::{Registry, TLS_ADDRESS};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let authority = |name: &str| {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed").pem();
        (certificate, Issuer::new(params, key))
    };
    let ((trusted, issuer), (stranger, _)) = (authority("harbour"), authority("stranger"));
    let key = KeyPair::generate().expect("a key");
    let host = TLS_ADDRESS.split(':').next().expect("a host");
    let params = CertificateParams::new(vec![host.to_string()]).expect("a name");
    let certificate = params.signed_by(&key, &issuer).expect("signed").pem();
    for (roots, good) in [(&trusted, true), (&stranger, false)] {
        let mut board = Board::prepare("").expect("a board");
        board.authorities(roots).expect("written");
        board.start_agent().expect("starts");
        let registry = Registry::start(board.netns().expect("a namespace")).expect("docker-registry");
        registry.push(&Image::laden("b", 1 << 16).expect("built"), "team/web", "1").expect("pushed");
        let _closed = registry.over_tls(&certificate, &key.serialize_pem()).expect("a second server");
        let pull = board.coracle(&["image", "pull", &format!("{TLS_ADDRESS}/team/web:1")]).expect("runs");
        let said = String::from_utf8_lossy(&pull.stderr).into_owned();
        assert_eq!(pull.status.success(), good, "{said}");
        assert!(good || said.contains("certificate") && said.lines().count() == 1, "{said}");
    }
}
