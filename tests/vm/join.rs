//! A board enrolls at its boot, with the line that it was given, and is driven by kubectl; the control plane's package
//! on the same machine. Both come back from a reboot with nothing done by hand.

use coracle_tests::vm::Boot;
use coracle_tests::vm::kit::{Kit, counter, identity, install, wait_running};

/// What systemd calls "OK": of 10, for a service that is confined as far as systemd knows how.
const EXPOSURE_MAX: f64 = 2.0;

#[test]
fn a_board_enrolls_at_its_boot_and_kubectl_drives_it() {
    let kit = Kit::new().expect("packages and a machine");
    let disk = kit.base.disk().expect("a disk");
    let mut machine = kit.boot(&disk, &Boot::default()).expect("boots");
    // The only network that this machine has.
    machine
        .sh("mkdir -p /etc/coracle && echo 'hosts = [\"127.0.0.1\"]' > /etc/coracle/control.toml")
        .expect("told");
    machine
        .sh("apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-confold /host/coracle-control.deb \
             && systemctl is-active coracle-control \
             || { journalctl -b -u coracle-control -n 50 --no-pager; exit 1; }")
        .expect("installed");
    install(&mut machine).expect("installed");
    let exposure = machine
        .sh("systemd-analyze security coracle-control | sed -n 's/.*Overall exposure level.*: \\([0-9.]*\\) .*/\\1/p'")
        .expect("analysed");
    let exposure: f64 = exposure.trim().parse().expect("a number");
    assert!(exposure <= EXPOSURE_MAX, "coracle-control.service is exposed: {exposure}");
    let keys = machine.sh("find -L /var/lib/coracle-control -name '*.key' ! -perm 0600").expect("looked");
    assert_eq!(keys, "", "keys are their owner's alone");

    machine
        .sh("umask 077; coracle-control token create --labels site=harbour > /etc/coracle/join")
        .expect("a line");
    machine.reboot().expect("reboots");
    machine
        .until(
            "the board joins",
            "test -s /var/lib/coracle/cluster/kubeconfig && ! test -e /etc/coracle/join",
        )
        .expect("joined, and the token lies about no more");
    let kubectl = "export KUBECONFIG=/var/lib/coracle-control/admin.conf; kubectl";
    machine
        .until("the node is ready", &format!("{kubectl} wait --for=condition=Ready node/board --timeout=60s"))
        .expect("ready");
    let labels = machine.sh(&format!("{kubectl} get nodes -l site=harbour -o name")).expect("listed");
    assert_eq!(labels.trim(), "node/board");

    let manifest = counter("counter");
    machine.sh(&format!("{kubectl} create -f - <<'YAML'\n{manifest}\nYAML")).expect("created");
    let before = identity(&wait_running(&mut machine, &["counter"]).expect("runs"));
    machine
        .until(
            "the API has heard",
            &format!("{kubectl} wait --for=condition=Ready pod/counter --timeout=60s"),
        )
        .expect("ready");
    let said = machine.sh(&format!("{kubectl} exec counter -- cat /proc/1/comm")).expect("entered");
    assert_eq!(said.trim(), "sh");
    let log = machine.sh(&format!("{kubectl} logs counter")).expect("a log");
    assert!(log.starts_with("0\n"), "{log}");

    machine.reboot().expect("reboots");
    let after = identity(&wait_running(&mut machine, &["counter"]).expect("is back"));
    assert_ne!(before, after, "started anew");
    machine
        .until(
            "the API hears of the new start",
            &format!("[ \"$({kubectl} get pod counter -o 'jsonpath={{.status.containerStatuses[0].restartCount}}')\" = 1 ]"),
        )
        .expect("told");
    machine.sh(&format!("{kubectl} delete pod counter")).expect("deleted");
    wait_running(&mut machine, &[]).expect("gone from the board");
}
