//! A board's whole life: the package installed, a manifest dropped, a reboot, an upgrade, a downgrade, a purge.

use coracle_tests::vm::kit::{Kit, container, counter, identity, install, pods, wait_running};
use coracle_tests::vm::{Boot, Machine};

/// Every line that the pod wrote is in its log, once and in order.
fn assert_unbroken_log(machine: &mut Machine, pod: &str) {
    let log = machine.sh(&format!("coracle logs {pod}")).expect("a log");
    let numbers: Vec<usize> = log.lines().map(|line| line.parse().expect("a number")).collect();
    assert!(!numbers.is_empty(), "{pod} logs");
    assert_eq!(numbers, (0..numbers.len()).collect::<Vec<_>>(), "the log of {pod}");
}

#[test]
fn a_board_installs_runs_reboots_upgrades_and_forgets() {
    let kit = Kit::new().expect("packages and a machine");
    let disk = kit.base.disk().expect("a disk");
    let mut machine = kit.boot(&disk, &Boot::default()).expect("boots");
    let files = "find / -xdev \\( -path /run -o -path /root -o -path /tmp -o -path /var/tmp \\) -prune -o -print | sort";
    machine.sh(&format!("{files} > /root/files; getent passwd > /root/passwd")).expect("counted");
    // The image comes by the preload directory, the pod by a manifest file.
    machine
        .sh("mkdir -p /var/lib/coracle/preload && cp /host/busybox.tar /var/lib/coracle/preload/")
        .expect("preloaded");
    install(&mut machine).expect("installed");
    let manifest = counter("first");
    machine
        .sh(&format!("cat > /var/lib/coracle/manifests/first.yaml <<'YAML'\n{manifest}\nYAML"))
        .expect("dropped");
    wait_running(&mut machine, &["first"]).expect("runs");
    machine.sh("coracle doctor").expect("fit");

    machine.reboot().expect("reboots");
    wait_running(&mut machine, &["first"]).expect("is back without a hand");
    let back = pods(&mut machine).expect("listed");
    assert_eq!(container(&back[0])["restartCount"], 1, "the same pod, started anew: {back:?}");

    let names: Vec<String> = (0..20).map(|n| format!("p{n:02}")).collect();
    let all: String = names.iter().map(|n| format!("{}---\n", counter(n))).collect();
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{all}\nYAML")).expect("applied");
    let names: Vec<&str> = std::iter::once("first").chain(names.iter().map(String::as_str)).collect();
    let before = identity(&wait_running(&mut machine, &names).expect("20 pods and one"));

    for (package, version) in [("next.deb", "+next"), ("coracle.deb", "")] {
        let agent = machine.sh("systemctl show -P MainPID coracle").expect("an agent");
        machine
            .sh(&format!("apt-get install -y -q --allow-downgrades --no-install-recommends /host/{package}"))
            .expect("installed");
        let installed = machine.sh("dpkg-query -W -f '${Version}' coracle").expect("installed");
        assert_eq!(installed, format!("{}{version}", env!("CARGO_PKG_VERSION")));
        let after = identity(&wait_running(&mut machine, &names).expect("run on"));
        assert_ne!(
            agent,
            machine.sh("systemctl show -P MainPID coracle").expect("an agent"),
            "the agent is new"
        );
        assert_eq!(after, before, "not one container was restarted");
    }
    for pod in ["p00", "p07", "p19"] {
        assert_unbroken_log(&mut machine, pod);
    }

    machine.sh("apt-get purge -y -q coracle").expect("purged");
    let left = machine.sh(&format!("{files} | comm -13 /root/files - | {TRACES}")).expect("counted");
    assert_eq!(left.trim(), "", "a purge leaves no trace");
}

#[test]
fn the_tarball_installs_verifies_and_uninstalls() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.bare().expect("a machine");
    let files = "find / -xdev \\( -path /run -o -path /root -o -path /tmp -o -path /var/tmp \\) -prune -o -print | sort";
    machine.sh(&format!("{files} > /root/files; getent passwd > /root/passwd")).expect("counted");
    machine.sh("cd /root && tar -xzf /host/coracle.tar.gz && mv coracle-* c").expect("unpacked");
    let damaged = machine
        .run("cp -r /root/c /root/d && echo >> /root/d/coracle.service && /root/d/install.sh")
        .expect("runs");
    assert!(damaged.status != 0 && damaged.text.contains("fetch the archive again"), "{}", damaged.text);
    machine.sh("/root/c/install.sh && systemctl is-active coracle && coracle doctor").expect("installed");
    machine.sh("coracle image import /host/busybox.tar").expect("imported");
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{}\nYAML", counter("p"))).expect("applied");
    let before = identity(&wait_running(&mut machine, &["p"]).expect("runs"));
    machine.sh("/root/c/install.sh").expect("installed again");
    assert_eq!(
        identity(&wait_running(&mut machine, &["p"]).expect("runs")),
        before,
        "an upgrade restarts nothing"
    );
    machine.sh("/root/c/install.sh --uninstall").expect("uninstalled");
    let left = machine.sh(&format!("{files} | comm -13 /root/files - | {TRACES}")).expect("counted");
    assert_eq!(left.trim(), "", "an uninstall leaves no trace");
}

/// Of all files, those that count; then users, mounts, tables, links, cgroups. What dpkg and systemd keep of any package
/// is theirs.
const TRACES: &str = "grep -v -e ^/var/lib/dpkg/ -e ^/var/log/ -e ^/var/cache/ -e ^/var/lib/apt/ -e ^/var/lib/systemd/; \
    getent passwd | comm -13 /root/passwd -; grep coracle /proc/mounts; nft list tables | grep coracle; \
    ip -br link | grep coracle; ls -d /sys/fs/cgroup/coracle* /run/coracle 2>/dev/null; true";
