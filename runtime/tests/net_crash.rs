//! `kill -9` at every system call of every change to the network: what is left must always be found and freed.
//!
//! A child (this test's own binary) makes the change and is traced; round `n` kills it as it enters system call
//! `n`, until a round in which it comes to its end. After each round a "restarted agent" opens the same network.

#[expect(dead_code, reason = "shared with net_board, which talks to pods; here they are only made")]
mod net_lab;

use coracle_pod::spec::Protocol;
use coracle_runtime::net::{HostPort, Network, census};
use net_lab::{Lab, config, netns, path, port, uid, within};
use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CHANGE: &str = "CORACLE_TEST_CHANGE";
const DIRECTORY: &str = "CORACLE_TEST_DIRECTORY";
const POD: &str = "CORACLE_TEST_POD";
/// More system calls than any change makes; a child that goes on beyond them is stuck.
const SYSTEM_CALLS_MAX: usize = 2000;
/// A round that got this far has been through the change, not only around it.
const SYSTEM_CALLS_MIN: usize = 10;

fn ports() -> [HostPort; 2] {
    [port(Protocol::Tcp, 8080, 80), port(Protocol::Udp, 5353, 53)]
}

/// What the children of the tests below run.
#[test]
#[ignore = "a part of the other tests, which start it"]
fn child() {
    let variable = |name| std::env::var(name).expect("started by a test of this file");
    let (change, directory, pod) = (variable(CHANGE), variable(DIRECTORY), variable(POD));
    let open = || Network::open(config(Path::new(&directory))).expect("open");
    let net = (change != "open").then(open);
    std::io::stdout().write_all(b"ready\n").expect("its starter reads it");
    std::io::stdin().read_exact(&mut [0]).expect("the word to go");
    match (change.as_str(), net) {
        ("open", _) => drop(open()),
        ("attach", Some(net)) => drop(net.attach(&uid("one"), Path::new(&pod), &ports()).expect("attach")),
        ("detach", Some(net)) => net.detach(&uid("one")).expect("detach"),
        ("reconcile", Some(net)) => net.reconcile(&BTreeSet::new()).expect("reconcile"),
        ("teardown", Some(net)) => net.teardown().expect("teardown"),
        other => panic!("{:?} is no change", other.0),
    }
}

#[test]
fn killed_in_attach() {
    let lab = Lab::new();
    let empty = lab.census();
    rounds(&lab, "attach", |round, pod| {
        let net = restart(&lab);
        // A half-made link outlives several system calls, so every way back meets one.
        match round % 4 {
            0 => net.reconcile(&BTreeSet::new()).expect("reconcile"),
            1 => {
                net.detach(&uid("one")).expect("detach");
                assert_eq!(lab.census(), empty, "round {round}");
                // A lease file that was cut short names no pod: the reconciliation of the next start frees it.
                net.reconcile(&BTreeSet::new()).expect("reconcile");
            }
            2 => {
                net.teardown().expect("teardown");
                assert_bare(&lab, round);
                restart(&lab);
            }
            _ => {
                net.reconcile(&BTreeSet::from([uid("one")])).expect("reconcile");
                net.attach(&uid("one"), pod, &ports()).expect("attach");
                let attached = lab.census();
                assert_eq!((attached.links, attached.nft_elements), (empty.links + 1, 2));
                net.detach(&uid("one")).expect("detach");
            }
        }
        assert_eq!((lab.census(), lab.leases()), (empty, vec![]), "round {round}");
    });
}

#[test]
fn killed_in_detach() {
    killed_with_a_pod("detach");
}

#[test]
fn killed_in_reconcile() {
    killed_with_a_pod("reconcile");
}

fn killed_with_a_pod(change: &str) {
    let lab = Lab::new();
    let empty = lab.census();
    let first = netns();
    lab.net.attach(&uid("one"), &path(&first), &ports()).expect("attach");
    let attached = lab.census();
    rounds(&lab, change, |round, pod| {
        let net = restart(&lab);
        if round % 2 == 0 {
            net.reconcile(&BTreeSet::new()).expect("reconcile");
        } else {
            net.detach(&uid("one")).expect("detach");
        }
        assert_eq!((lab.census(), lab.leases()), (empty, vec![]), "round {round}");
        // The pod of the next round.
        restart(&lab).attach(&uid("one"), pod, &ports()).expect("attach");
        assert_eq!(lab.census(), attached, "round {round}");
    });
}

#[test]
fn killed_in_open() {
    let lab = Lab::new();
    lab.net.teardown().expect("teardown");
    rounds(&lab, "open", |round, _| {
        restart(&lab).teardown().expect("teardown");
        assert_bare(&lab, round);
    });
}

#[test]
fn killed_in_teardown() {
    let lab = Lab::new();
    rounds(&lab, "teardown", |round, pod| {
        restart(&lab).teardown().expect("teardown");
        assert_bare(&lab, round);
        restart(&lab).attach(&uid("one"), pod, &ports()).expect("attach");
    });
}

fn assert_bare(lab: &Lab, round: usize) {
    let forwarding =
        within(&lab.node, || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").expect("sysctl"));
    let held = within(&lab.node, || census().expect("census"));
    assert_eq!((held, forwarding.as_str()), (lab.bare, "0\n"), "round {round}");
    assert!(!lab.directory.path().join("leases").exists(), "round {round}");
}

/// The agent that comes after the one killed.
fn restart(lab: &Lab) -> Network {
    within(&lab.node, || Network::open(config(lab.directory.path())).expect("open"))
}

/// Has a child make `change` and kills it at its first system call, its second… and calls `after` each time with
/// the path of the pod's namespace, a new one each round. The last round's lives on: a link ends with its namespace,
/// and a change that was to remove the link would find none.
fn rounds(lab: &Lab, change: &str, mut after: impl FnMut(usize, &Path)) {
    let mut last_round = netns();
    for round in 0..SYSTEM_CALLS_MAX {
        let pod = netns();
        let ended = within(&lab.node, || killed_at(round, change, lab.directory.path(), &path(&pod)));
        after(round, &path(&pod));
        drop(last_round);
        last_round = pod;
        if ended {
            assert!(round >= SYSTEM_CALLS_MIN, "{change} ended after {round} system calls");
            return;
        }
    }
    panic!("{change} made {SYSTEM_CALLS_MAX} system calls and goes on");
}

/// Whether the child came to its end before entering system call `limit`.
#[expect(clippy::zombie_processes, reason = "the tracer reaps it, with its threads")]
fn killed_at(limit: usize, change: &str, directory: &Path, pod: &PathBuf) -> bool {
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"])
        .env(CHANGE, change)
        .env(DIRECTORY, directory)
        .env(POD, pod)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("this test's own binary");
    let group = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    let output = BufReader::new(child.stdout.take().expect("piped"));
    let mut output = output.lines().map(|line| line.expect("text"));
    assert!(output.any(|line| line.ends_with("ready")), "the child said that it is ready");
    let options = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    for task in fs::read_dir(format!("/proc/{group}/task")).expect("its threads") {
        let thread = task.expect("a thread").file_name().into_string().expect("a number");
        let thread = Pid::from_raw(thread.parse().expect("a number"));
        ptrace::seize(thread, options).expect("seize");
        ptrace::interrupt(thread).expect("interrupt");
    }
    child.stdin.take().expect("piped").write_all(b"!").expect("its stdin");
    let ended = trace(group, limit);
    if !ended {
        child.kill().expect("kill");
    }
    // A killed leader is reported only after its threads, which are the tracer's to reap.
    while waitpid(Pid::from_raw(-group.as_raw()), Some(WaitPidFlag::__WALL)) != Err(Errno::ECHILD) {}
    ended
}

/// Lets the group run until it enters system call `limit`; true if it exited, well, before that.
fn trace(group: Pid, limit: usize) -> bool {
    let mut inside: BTreeMap<Pid, bool> = BTreeMap::new();
    let mut entered = 0;
    loop {
        let anyone = Pid::from_raw(-group.as_raw());
        let (thread, signal) = match waitpid(anyone, Some(WaitPidFlag::__WALL)).expect("waitpid") {
            WaitStatus::PtraceSyscall(thread) => {
                let inside = inside.entry(thread).or_default();
                *inside = !*inside;
                if *inside {
                    if entered == limit {
                        return false;
                    }
                    entered += 1;
                }
                (thread, None)
            }
            WaitStatus::PtraceEvent(thread, ..) => (thread, None),
            WaitStatus::Stopped(thread, signal) => {
                (thread, (signal != Signal::SIGSTOP && signal != Signal::SIGTRAP).then_some(signal))
            }
            WaitStatus::Exited(thread, code) if thread == group => {
                assert_eq!(code, 0, "the child, never killed, made its change");
                return true;
            }
            _ => continue,
        };
        ptrace::syscall(thread, signal).expect("go on");
    }
}
