//! `coracle-control local`: its whole life with a stock kubectl, whatever interrupts it, and what is left over.

use coracle_runtime::net::{Census, census};
use coracle_tests::agent::{binary, deadline, in_namespace};
use coracle_tests::fleet::new_netns;
use coracle_tests::image::Image;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// A machine of its own, as far as the network goes, and a user with a kubeconfig.
struct Machine {
    dir: tempfile::TempDir,
    netns: File,
    before: Traces,
}

/// What a local cluster makes outside its directory.
#[derive(Clone, Debug, PartialEq)]
struct Traces {
    network: Census,
    forwarding: String,
    /// Command lines and mounts that name the directory; cgroups that this test's clusters are called after.
    processes: Vec<String>,
    mounts: Vec<String>,
    cgroups: Vec<PathBuf>,
}

const OTHERS: &str = "apiVersion: v1\nclusters:\n- cluster:\n    server: https://work\n  name: work\ncontexts:\n- context:\n    cluster: work\n    user: me\n  name: work\ncurrent-context: work\nkind: Config\nusers:\n- name: me\n  user:\n    token: secret\n";

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::Builder::new().prefix("col").tempdir().expect("a directory");
        let netns = new_netns().expect("a namespace");
        fs::write(dir.path().join("config"), OTHERS).expect("written");
        let before = traces(dir.path(), &netns);
        Machine { dir, netns, before }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("c")
    }

    fn kubeconfig(&self) -> PathBuf {
        self.dir.path().join("config")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary("coracle-control").expect("built"));
        command.arg("local").args(arguments).arg("--root").arg(self.root());
        command.env("KUBECONFIG", self.kubeconfig()).env_remove("SUDO_UID").stdin(Stdio::null());
        command
    }

    fn output(&self, mut command: Command) -> Output {
        in_namespace(&self.netns, || command.output()).expect("in the namespace").expect("started")
    }

    /// Runs it to a good end; what it printed.
    fn local(&self, arguments: &[&str]) -> String {
        let output = self.output(self.command(arguments));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{arguments:?}: {}{}", text(&output.stderr), self.logs());
        text(&output.stdout)
    }

    /// The one line that it fails with.
    fn refused(&self, command: Command) -> String {
        let output = self.output(command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        said
    }

    fn status(&self) -> (Option<i32>, Value) {
        let output = self.output(self.command(&["status", "-o", "json"]));
        (output.status.code(), serde_json::from_slice(&output.stdout).expect("JSON"))
    }

    fn kubectl(&self, arguments: &str) -> String {
        let mut command = Command::new("kubectl");
        command.args(arguments.split(' ')).env("HOME", self.dir.path()).env("KUBECONFIG", self.kubeconfig());
        let output = self.output(command);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).trim().to_string();
        assert!(output.status.success(), "{arguments}: {}{}", text(output.stderr), self.logs());
        text(output.stdout)
    }

    fn apply(&self, manifest: &str) {
        let file = self.dir.path().join("manifest.yaml");
        fs::write(&file, manifest).expect("written");
        self.kubectl(&format!("apply -f {}", file.display()));
    }

    fn wait(&self, arguments: &str) {
        self.kubectl(&format!("wait --timeout={}s {arguments}", deadline().as_secs()));
    }

    fn import(&self, board: u8, image: &Image) {
        let archive = self.dir.path().join("image.tar");
        image.write_oci_archive(&archive).expect("written");
        let mut command = Command::new(binary("coracle").expect("built"));
        command.arg("--root").arg(self.root().join("boards").join(board.to_string()));
        let output = self.output({
            command.args(["image", "import"]).arg(&archive);
            command
        });
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn logs(&self) -> String {
        let files = fs::read_dir(self.root().join("logs")).into_iter().flatten().filter_map(Result::ok);
        files
            .map(|file| {
                format!(
                    "\n--- {:?}\n{}",
                    file.file_name(),
                    fs::read_to_string(file.path()).unwrap_or_default()
                )
            })
            .collect()
    }

    fn spawn(&self, mut command: Command) -> Child {
        command.stdout(Stdio::piped());
        in_namespace(&self.netns, || command.spawn()).expect("in the namespace").expect("started")
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!(traces(self.dir.path(), &self.netns), self.before);
        assert!(!self.root().exists());
        let config = fs::read_to_string(self.kubeconfig()).expect("the user's");
        // kubectl has been led nowhere else meanwhile.
        assert_eq!(
            config.replace("current-context: \"\"", "current-context: work"),
            OTHERS,
            "what others wrote stays"
        );
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What a failed test left; a test that did well has shown that there is nothing.
            let mut command = self.command(&["delete"]);
            let deleted = in_namespace(&self.netns, || command.output());
            drop(deleted);
        }
    }
}

fn traces(dir: &Path, netns: &File) -> Traces {
    let text = dir.display().to_string();
    let mut processes = Vec::new();
    for entry in fs::read_dir("/proc").expect("listed").filter_map(Result::ok) {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&text) {
            processes.push(line);
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read");
    let mounts = mounts.lines().filter(|line| line.contains(&text)).map(String::from).collect();
    // As the command derives it: FNV-1a of the directory.
    let root = dir.join("c").display().to_string();
    let hash =
        root.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let name = format!("cl{:07x}", hash & 0x0fff_ffff);
    let mut cgroups = Vec::new();
    for top in [PathBuf::from("/sys/fs/cgroup")].into_iter().chain(
        fs::read_dir("/sys/fs/cgroup").expect("listed").filter_map(Result::ok).map(|entry| entry.path()),
    ) {
        let below = fs::read_dir(top).into_iter().flatten().filter_map(Result::ok);
        cgroups.extend(
            below
                .filter(|entry| entry.file_name().to_string_lossy().starts_with(&name))
                .map(|entry| entry.path()),
        );
    }
    let look = || {
        // A new namespace copies it from the first one.
        let forwarding = fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("read");
        (census().expect("counted"), forwarding)
    };
    let (network, forwarding) = in_namespace(netns, look).expect("in the namespace");
    Traces { network, forwarding, processes, mounts, cgroups }
}

fn pod(board: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: on-{board}}}\nspec:\n  nodeName: board-{board}\n  terminationGracePeriodSeconds: 30\n  volumes: [{{name: data, emptyDir: {{}}}}]\n  containers:\n  - name: main\n    image: example.test/busybox:1\n    command: [sh, -c, 'trap \"echo ended >> /data/log; exit 0\" TERM; echo began >> /data/log; while true; do sleep 1000 & wait $!; done']\n    volumeMounts: [{{name: data, mountPath: /data}}]\n"
    )
}

#[test]
fn a_cluster_starts_stops_goes_on_and_leaves_nothing() {
    let machine = Machine::new();
    assert_eq!(machine.status().0, Some(7), "there is none");
    let told = machine.local(&["start", "--boards", "2"]);
    assert!(told.contains("* node board-2 is Ready") && told.contains("kubectl get nodes"), "{told}");
    let mode = fs::metadata(machine.kubeconfig()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(machine.kubectl("config current-context"), "coracle");
    let ready = "jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
    assert_eq!(machine.kubectl(&format!("get nodes -o {ready}")), "True True");
    let (code, status) = machine.status();
    assert_eq!(
        (code, &status[0]["APIServer"], &status[1]["Worker"]),
        (Some(0), &"Running".into(), &true.into())
    );
    for board in [1, 2] {
        machine.import(board, &Image::busybox("example.test/busybox:1").expect("an image"));
        machine.apply(&pod(board));
    }
    machine.wait("pod/on-1 pod/on-2 --for=condition=Ready");
    let uids = "get pods -o jsonpath={.items[*].metadata.uid}";
    let before = machine.kubectl(uids);
    assert!(machine.local(&["start"]).contains("is running already"));

    machine.local(&["stop"]);
    let stopped = traces(machine.dir.path(), &machine.netns);
    assert_eq!(stopped, machine.before, "only the directory is left");
    assert_eq!(machine.status().0, Some(3));
    machine.local(&["stop"]);

    machine.local(&["start"]);
    // Ready before and after: what tells that they are back is that they can be entered.
    machine.wait("pod/on-1 pod/on-2 --for=jsonpath={.status.containerStatuses[0].restartCount}=1");
    machine.wait("pod/on-1 pod/on-2 --for=condition=Ready");
    assert_eq!(machine.kubectl(uids), before, "they are the same pods");
    for board in [1, 2] {
        let log = machine.kubectl(&format!("exec on-{board} -- cat /data/log"));
        assert_eq!(log, "began\nended\nbegan", "grace was given and the volume kept");
    }
    machine.local(&["start", "--boards", "3"]);
    assert_eq!(machine.kubectl(&format!("get nodes -o {ready}")), "True True True");
    machine.local(&["delete"]);
    machine.assert_nothing_is_left();
    assert!(machine.local(&["delete"]).contains("there is no local cluster"));
    assert!(machine.local(&["stop"]).contains("there is no local cluster"));
}

#[test]
fn whatever_interrupts_it_the_next_command_heals() {
    let machine = Machine::new();
    // Each line that it prints is a moment at which it is killed; then the one before that moment.
    for lines in 0..6 {
        let mut start = machine.spawn(machine.command(&["start", "--boards", "2"]));
        let told = BufReader::new(start.stdout.take().expect("piped")).lines().take(lines).count();
        start.kill().expect("killed");
        start.wait().expect("ended");
        assert_eq!(told, lines);
        if lines % 2 == 0 {
            machine.local(&["start", "--boards", "2"]);
            assert_eq!(machine.status().0, Some(0));
        }
        machine.local(&["delete"]);
        machine.assert_nothing_is_left();
    }
    machine.local(&["start", "--boards", "2"]);
    machine.import(2, &Image::busybox("example.test/busybox:1").expect("an image"));
    machine.apply(&pod(2));
    machine.wait("pod/on-2 --for=condition=Ready");
    // All of it is killed but the pod.
    for entry in fs::read_dir("/proc").expect("listed").filter_map(Result::ok) {
        let line =
            String::from_utf8_lossy(&fs::read(entry.path().join("cmdline")).unwrap_or_default()).into_owned();
        let root = machine.root().display().to_string();
        if line.contains(&root) && (line.contains("\0agent\0") || line.contains("\0serve\0")) {
            let pid = entry.file_name().to_string_lossy().parse().expect("a pid");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
                .expect("killed");
        }
    }
    let (code, status) = machine.status();
    assert_eq!(code, Some(2), "{status}");
    machine.local(&["start"]);
    machine.wait("pod/on-2 --for=condition=Ready");
    assert_eq!(machine.kubectl("exec on-2 -- cat /data/log"), "began", "the pod was adopted");
    for command in ["stop", "delete"] {
        let mut killed = machine.spawn(machine.command(&[command]));
        killed.kill().expect("killed");
        killed.wait().expect("ended");
    }
    machine.local(&["delete"]);
    machine.assert_nothing_is_left();
}

#[test]
fn what_cannot_be_is_told_in_one_line() {
    let machine = Machine::new();
    let check = |command: Command, expected: &str| {
        let said = machine.refused(command);
        assert!(said.contains(expected), "{expected}: {said}");
    };
    let start = |flags: &[&str]| machine.command(&[&["start"], flags].concat());
    // The test's binaries may lie where nobody else may look.
    let copy = Path::new("/tmp").join(format!("coracle-control-{}", std::process::id()));
    fs::copy(binary("coracle-control").expect("built"), &copy).expect("copied");
    let mut command = Command::new(&copy);
    command.args(["local", "start"]).uid(65_534).gid(65_534).stdin(Stdio::null());
    check(command, "run it as root");
    fs::remove_file(&copy).expect("removed");
    check(start(&["--coracle", "/nonexistent"]), "/nonexistent is no program");
    let listener =
        in_namespace(&machine.netns, || TcpListener::bind("0.0.0.0:6443")).expect("inside").expect("bound");
    check(
        start(&[]),
        "10.244.0.1:6443 cannot be listened on: Address already in use (os error 98); choose another port with --port",
    );
    drop(listener);
    fs::create_dir_all(machine.root()).expect("there");
    let held = File::open(machine.root()).expect("opened");
    held.try_lock().expect("free");
    check(start(&[]), "another coracle-control local is at work on");
    drop(held);
    machine.local(&["start"]);
    check(start(&["--port", "7443"]), "has the port 6443");
    check(start(&["--network", "10.99.0.0/16"]), "has the network 10.244.0.0/16");
    machine.local(&["start", "--boards", "2"]);
    check(start(&["--boards", "1"]), "has 2 boards");
    machine.local(&["delete"]);
    machine.assert_nothing_is_left();

    fs::create_dir(machine.root()).expect("made");
    fs::write(machine.root().join("precious"), "").expect("written");
    check(start(&[]), "is not empty and no local cluster");
    check(machine.command(&["delete"]), "holds what is not of a local cluster");
    fs::remove_file(machine.root().join("precious")).expect("still there");
    mount(Some("tmpfs"), &machine.root(), Some("tmpfs"), MsFlags::empty(), Some("size=1m")).expect("mounted");
    check(start(&[]), "has 1 MiB left, and a local cluster needs 64");
    umount2(&machine.root(), MntFlags::empty()).expect("unmounted");
    let other = machine.dir.path().join("d");
    let second = |flags: &[&str]| {
        let mut command = Command::new(binary("coracle-control").expect("built"));
        command
            .args(["local", "start", "--root"])
            .arg(&other)
            .args(flags)
            .env("KUBECONFIG", machine.kubeconfig());
        command
    };
    machine.local(&["start"]);
    check(second(&[]), "10.244.0.0/16 is in use");
    let mut command = Command::new(binary("coracle-control").expect("built"));
    command.args(["local", "delete", "--root"]).arg(&other);
    assert!(machine.output(command).status.success());
    machine.local(&["delete"]);
    machine.assert_nothing_is_left();
}

#[test]
fn the_kubeconfig_is_the_callers_and_root_is_not_led_about() {
    const NOBODY: u32 = 65_534;
    let machine = Machine::new();
    fs::set_permissions(machine.dir.path(), fs::Permissions::from_mode(0o711)).expect("changed");
    let home = machine.dir.path().join("home");
    fs::create_dir(&home).expect("made");
    chown(&home, Some(NOBODY), Some(NOBODY)).expect("changed");
    let (secret, link, own) = (machine.dir.path().join("secret"), home.join("link"), home.join("config"));
    fs::write(&secret, OTHERS).expect("written");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("changed");
    std::os::unix::fs::symlink(&secret, &link).expect("linked");
    let as_sudo = |kubeconfig: &Path| {
        let mut command = machine.command(&["start"]);
        command.env("SUDO_UID", NOBODY.to_string()).env("KUBECONFIG", kubeconfig);
        command
    };
    let said = machine.refused(as_sudo(&link));
    assert!(said.contains("Permission denied"), "{said}");
    assert_eq!(fs::read_to_string(&secret).expect("read"), OTHERS);
    let output = machine.output(as_sudo(&own));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let of = fs::metadata(&own).expect("there");
    assert_eq!((of.uid(), of.mode() & 0o777), (NOBODY, 0o600));
    assert!(fs::read_to_string(&own).expect("read").contains("name: coracle"));
    machine.local(&["delete"]);
    assert!(!fs::read_to_string(&own).expect("read").contains("name: coracle"));
    machine.assert_nothing_is_left();
}

#[test]
fn boards_in_namespaces_come_out_as_this_machine() {
    let machine = Machine::new();
    // Somebody outside who knows no way back to the boards.
    let outside = new_netns().expect("a namespace");
    let ip = |netns: &File, arguments: &str| {
        let mut command = Command::new("ip");
        command.args(arguments.split(' '));
        let status = in_namespace(netns, || command.status()).expect("inside").expect("started");
        assert!(status.success(), "ip {arguments}");
    };
    use std::os::fd::AsRawFd;
    let other = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
    ip(&machine.netns, &format!("link add out type veth peer name in netns {other}"));
    ip(&machine.netns, "address add 192.0.2.1/24 dev out");
    ip(&machine.netns, "link set out up");
    ip(&outside, "address add 192.0.2.2/24 dev in");
    ip(&outside, "link set in up");
    let with_link = traces(machine.dir.path(), &machine.netns);
    machine.local(&["start", "--boards", "2"]);
    let server =
        in_namespace(&outside, || TcpListener::bind("192.0.2.2:80")).expect("inside").expect("bound");
    let board = File::open(machine.root().join("run/board-2.net")).expect("a namespace");
    let mut client = in_namespace(&board, || {
        TcpStream::connect_timeout(&"192.0.2.2:80".parse().expect("an address"), deadline())
    })
    .expect("inside")
    .expect("the board comes out");
    let (mut seen, peer) = server.accept().expect("accepted");
    assert_eq!(peer.ip().to_string(), "192.0.2.1", "as this machine");
    std::io::Write::write_all(&mut seen, b"hello").expect("written");
    drop(seen);
    let mut text = String::new();
    client.read_to_string(&mut text).expect("answered");
    assert_eq!(text, "hello");
    drop((client, board));
    machine.local(&["delete"]);
    assert_eq!(traces(machine.dir.path(), &machine.netns), with_link);
}
