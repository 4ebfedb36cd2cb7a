//! Machines that cannot run pods, or only just: one line that says what to do, the exit code that coracle(1) lists, and
//! the agent started again by systemd once the machine is mended.

use coracle_tests::vm::kit::{Kit, container, counter, name, wait, wait_running};
use coracle_tests::vm::{Boot, Machine};

const UNFIT: i32 = 4;
const IN_USE: i32 = 5;

/// `coracle doctor` fails with a line of `check` that contains each of `parts`, and so does the agent itself.
fn assert_refused(machine: &mut Machine, check: &str, parts: &[&str]) {
    let doctor = machine.run("coracle doctor").expect("runs");
    assert_eq!(doctor.status, UNFIT, "{}", doctor.text);
    let line = doctor.text.lines().find(|l| l.starts_with(check)).unwrap_or_default();
    let agent = machine.run("systemctl stop coracle; timeout 60 coracle agent").expect("runs");
    assert_eq!(agent.status, UNFIT, "{}", agent.text);
    let said = agent.text.lines().last().unwrap_or_default();
    for part in parts {
        assert!(line.contains(part) && line.contains("FAILED"), "{part} is not in: {}", doctor.text);
        assert!(said.contains(part), "{part} is not in: {}", agent.text);
    }
}

#[test]
fn a_kernel_without_the_memory_controller_is_named_with_its_remedy() {
    let kit = Kit::new().expect("packages and a machine");
    let disk = kit.base.disk().expect("a disk");
    let boot = Boot { kernel: "cgroup_disable=memory", ..Boot::default() };
    let mut machine = kit.boot(&disk, &boot).expect("boots");
    // The installation itself succeeds: the board is mended after it.
    machine.sh("apt-get install -y -q --no-install-recommends /host/coracle.deb").expect("installed");
    assert_refused(&mut machine, "cgroups", &["memory controller", "cgroup_enable=memory"]);
}

#[test]
fn a_kernel_without_a_module_is_named_and_a_second_agent_is_refused() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.installed().expect("a machine");
    let second = machine.run("coracle agent").expect("runs");
    assert_eq!(second.status, IN_USE, "{}", second.text);
    assert!(second.text.contains("another coracle agent uses /var/lib/coracle"), "{}", second.text);
    let foreign = machine.run("coracle image import /host/foreign.tar").expect("runs");
    assert_eq!(foreign.status, 1, "{}", foreign.text);
    assert!(foreign.text.contains("s390x"), "{}", foreign.text);
    machine.sh("coracle doctor").expect("fit so far");
    machine.sh("systemctl stop coracle && coracle teardown").expect("torn down");
    for (module, check) in [("overlay", "overlayfs"), ("nf_tables", "network"), ("bridge", "network")] {
        machine
            .sh(&format!(
                "unload() {{ local m; for m in $(ls /sys/module/$1/holders 2>/dev/null); do unload $m; done; [ ! -e /sys/module/$1 ] || rmmod $1; }}; \
                 f=$(modinfo -n {module}) && mv $f /root/ && unload {module}"
            ))
            .expect("removed");
        assert_refused(&mut machine, check, &[module]);
        machine.sh("cd /root && for f in *.ko*; do mv $f $(find /lib/modules -type d -path '*kernel' | head -1)/; done; depmod -a").expect("mended");
    }
    machine.sh("systemctl start coracle").expect("starts once mended");
}

#[test]
fn a_board_with_a_read_only_root_keeps_everything_in_one_directory() {
    let kit = Kit::new().expect("packages and a machine");
    let disk = kit.base.disk().expect("a disk");
    let mut machine = kit.boot(&disk, &Boot::default()).expect("boots");
    machine.sh("apt-get install -y -q --no-install-recommends /host/coracle.deb").expect("installed");
    machine.sh(INTO_READ_ONLY).expect("set up");
    machine.power_off().expect("shuts down");

    let boot = Boot { kernel: "vm.root=ro", ..Boot::default() };
    let mut machine = kit.boot(&disk, &boot).expect("boots");
    let root = machine
        .until(
            "/data is there",
            "findmnt -no FSTYPE /data && findmnt -no FSTYPE /etc && findmnt -no OPTIONS /",
        )
        .expect("mounted");
    assert!(root.starts_with("ext4\noverlay\nro,"), "{root}");
    machine.until("the agent answers", "coracle ps").expect("answers");
    machine.sh("coracle doctor").expect("fit");
    machine.sh("coracle image import /host/busybox.tar").expect("imported");
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{}\nYAML", counter("p"))).expect("applied");
    let running = "coracle ps p | grep -w Running";
    machine.until("p runs", running).expect("runs");
    machine.power_cut().expect("cut");

    let mut machine = kit.boot(&disk, &boot).expect("boots");
    machine.until("p runs again", running).expect("runs");
    let pod = machine.sh("coracle ps p -o json").expect("listed");
    let pod: serde_json::Value = serde_json::from_str(&pod).expect("JSON");
    assert_eq!(container(&pod)["restartCount"], 1, "the same pod, started anew: {pod}");
    let run = machine.sh("findmnt -no FSTYPE /data/coracle/run; ls /var/lib/coracle").expect("mounted");
    assert_eq!(run.trim(), "tmpfs", "run state costs no flash, and nothing lies elsewhere");
}

/// `/` read-only, `/data` writable, `/etc` overlaid from there.
const INTO_READ_ONLY: &str = r#"
set -e
systemctl stop coracle; coracle teardown; rm -rf /var/lib/coracle/*
mkfs.ext4 -q /dev/vdc; mkdir -p /data; mount /dev/vdc /data; mkdir -p /data/etc/upper /data/etc/work
sed -i '1i root = "/data/coracle"' /etc/coracle/config.toml
cat > /etc/fstab <<'FSTAB'
/dev/vda / ext4 ro,noatime 0 0
/dev/vdc /data ext4 rw,noatime 0 0
overlay /etc overlay lowerdir=/etc,upperdir=/data/etc/upper,workdir=/data/etc/work,x-systemd.requires-mounts-for=/data 0 0
tmpfs /tmp tmpfs rw 0 0
FSTAB
sync"#;

#[test]
fn pods_wait_for_no_network_and_no_time() {
    let kit = Kit::new().expect("packages and a machine");
    let mut machine = kit.installed().expect("a machine");
    machine
        .sh("systemctl show -P After coracle | grep -e network -e time-s && exit 1 || true")
        .expect("after neither");
    machine.sh(&format!("coracle apply -f - <<'YAML'\n{}\nYAML", counter("p"))).expect("applied");
    wait_running(&mut machine, &["p"]).expect("runs");
    // Back to 1970, then far ahead: nothing restarts, nothing expires.
    for time in ["@100000", "@1900000000"] {
        machine.sh(&format!("date -s {time} > /dev/null")).expect("set");
        let pods = wait(&mut machine, "p runs", |pods| pods.iter().any(|p| name(p) == "p")).expect("there");
        assert_eq!(container(&pods[0])["restartCount"], 0, "{pods:?}");
    }
}
