//! What outlives what: the shim its agent, the record its shim; and one shim to a pod.

mod lab;

use coracle_shim::wire::{Cause, Phase, Reply, Request, Run};
use lab::{Lab, kill_group, records, wait_readable};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::os::fd::AsFd;
use std::process::Command;

#[test]
fn an_agent_killed_at_any_moment_loses_no_line_and_no_exit() {
    let (lab, mut client) = Lab::started();
    // Each line is written when asked for, so the agent's death falls between any two.
    let script = "n=0; while read x; do n=$((n+1)); echo line $n; done; exit 9";
    let first = client.run(Run { stdin: true, ..lab.bundle("web.0", script, "") });
    let mut attached = client.attach("web.0");
    for round in 1..=20 {
        // A request may be under way, an attached pipe open, an event on its way.
        let reader = lab.client().attach("web.0");
        client.send(&Request::State { after: String::new() }, &[]);
        drop((client, reader));
        attached.write("\n");
        assert_eq!(attached.read_line(), format!("line {round}\n"));
        client = lab.client();
        let state = client.state();
        let [(name, Phase::Running(started))] = state.as_slice() else { panic!("{state:?}") };
        assert_eq!((name.as_str(), started), ("web.0", &first));
    }
    let close = Request::CloseStdin { instance: "web.0".into() };
    assert_eq!(client.ask(&close), Ok(Reply::Done));
    drop(client);
    attached.stdin = None;
    // The end of the output tells that the container has ended, while nobody was connected.
    lab::read_to_end(attached.stdout.as_mut().unwrap());
    let state = lab.client().state();
    let [(_, Phase::Exited { report, recorded: true })] = state.as_slice() else { panic!("{state:?}") };
    assert_eq!((report.code, report.started), (9, first.started));
    assert_eq!(lab.record("web.0").as_ref(), Some(report));
    let expected: Vec<String> = (1..=20).map(|n| format!("stdout F line {n}")).collect();
    assert_eq!(lab.log("web.0"), expected);
}

#[test]
fn a_killed_client_process_is_no_different() {
    let (lab, mut client) = Lab::started();
    client.run(Run { stdin: true, ..lab.bundle("web.0", "read x; echo $x; exit 1", "") });
    // A process that holds the only connections, and dies by SIGKILL with a request half answered.
    let holder = Command::new("sleep").arg("1000").stdin(client.socket).spawn();
    let mut holder = holder.unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    let mut client = lab.client();
    let mut attached = client.attach("web.0");
    attached.write("on\n");
    assert_eq!(client.exited().code, 1);
    assert_eq!(lab.log("web.0"), ["stdout F on"]);
}

#[test]
fn a_killed_shim_leaves_its_records_and_its_successor_starts_beside_the_stale_socket() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exit 4", ""));
    client.exited();
    let running = client.run(lab.bundle("web.1", "exec sleep 1000", ""));
    kill(Pid::from_raw(client.shim_pid()), Signal::SIGKILL).unwrap();
    assert!(client.receive().is_none(), "the agent sees it at once");
    // The agent kills what is left by its cgroup.
    kill_group(running.pid);
    assert_eq!(lab.record("web.0").unwrap().code, 4);
    assert_eq!(lab.record("web.1"), None);
    assert!(lab.socket().exists());
    lab.start();
    let mut client = lab.client();
    assert_eq!(client.state(), []);
    client.run(lab.bundle("web.2", "exit 5", ""));
    assert_eq!(client.exited().code, 5);
}

#[test]
fn a_pod_has_one_shim() {
    let (lab, _client) = Lab::started();
    let output = lab.try_start();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.stdout.is_empty() && said.ends_with(": another shim serves this pod\n"), "{said}");
    // Nor does it take a socket on which somebody else answers.
    let lab = Lab::new();
    let _somebody = std::os::unix::net::UnixListener::bind(lab.socket()).unwrap();
    let output = lab.try_start();
    assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{output:?}");
    assert!(lab.socket().exists());
    fs::remove_file(lab.socket()).unwrap();
}

#[test]
fn a_shim_that_cannot_start_says_why() {
    let check = |change: &dyn Fn(&Lab, &mut Command), expected: &str| {
        let lab = Lab::new();
        let mut command = lab.command();
        change(&lab, &mut command);
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.stdout.is_empty() && said.contains(expected), "{said}");
    };
    let frob = |_: &Lab, command: &mut Command| {
        command.args(["--frob", "1"]);
    };
    check(&frob, "unknown option --frob");
    check(&|lab, _| fs::remove_dir(lab.path("run")).unwrap(), "run: No such file or directory");
    let nowhere = |lab: &Lab, command: &mut Command| {
        command.arg("--cgroup-procs").arg(lab.path("none/cgroup.procs"));
    };
    check(&nowhere, "none/cgroup.procs: No such file or directory");
}

#[test]
fn the_daemon_is_out_of_its_starters_reach() {
    let lab = Lab::new();
    let mut command = lab.command();
    // Stands for a cgroup.procs: a process that enters writes 0.
    fs::write(lab.path("cgroup.procs"), "").unwrap();
    command.arg("--cgroup-procs").arg(lab.path("cgroup.procs"));
    assert!(command.output().unwrap().status.success());
    assert_eq!(fs::read_to_string(lab.path("cgroup.procs")).unwrap(), "0");
    let mut client = lab.client();
    let pid = client.shim_pid();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let own = std::process::id().to_string();
    assert!(fields[1] != own, "it is nobody's child here");
    assert_eq!(fields[3], pid.to_string(), "it leads its own session");
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().to_str(), Some("/"));
    assert!(status.contains("\nThreads:\t1\n"));
    let mut fds: Vec<_> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .filter(|target| !target.starts_with("socket:") && !target.starts_with("anon_inode:[signalfd]"))
        .collect();
    fds.sort();
    fds.dedup();
    assert_eq!(fds, ["/dev/null".to_string(), lab.path("run").display().to_string()]);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(lab.socket()).unwrap().permissions().mode() & 0o777, 0o600);
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGPIPE] {
        kill(Pid::from_raw(pid), signal).unwrap();
    }
    assert_eq!(client.state(), []);
}

#[test]
fn a_shim_ends_when_asked_and_only_when_idle() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    assert_eq!(client.cause(&Request::Shutdown, &[]), Cause::Busy);
    client.ask(&Request::Signal { instance: "web.0".into(), signal: 9 }).unwrap();
    client.exited();
    assert_eq!(client.ask(&Request::Shutdown), Ok(Reply::Done));
    assert!(client.receive().is_none());
    assert!(!lab.socket().exists());
    // Its lock on the pod's directory goes with the process, a little after its sockets.
    fs::File::open(lab.path("run")).unwrap().lock().unwrap();
}

/// At a reboot systemd waited 90 s for the shims, which ignored SIGTERM.
#[test]
fn a_machine_that_goes_down_gives_containers_their_grace_and_records_no_exit() {
    let mut lab = Lab::new();
    lab.grace_seconds = 1;
    lab.start();
    let mut client = lab.client();
    for (name, trap) in [("polite.0", "echo bye; exit 0"), ("deaf.0", "")] {
        let script = format!("trap '{trap}' TERM; read x; echo up; while :; do sleep 0.1; done");
        client.run(Run { stdin: true, ..lab.bundle(name, &script, "") });
        let mut attached = client.attach(name);
        attached.write("\n");
        assert_eq!(attached.read_line(), "up\n");
    }
    kill(Pid::from_raw(client.shim_pid()), Signal::SIGTERM).unwrap();
    let refused = client.cause(&Request::Run(lab.bundle("late.0", "exit 0", "")), &[]);
    assert_eq!(refused, Cause::Busy);
    assert!(client.receive().is_none(), "the shim ends, and tells of no exit");
    fs::File::open(lab.path("run")).unwrap().lock().unwrap();
    assert_eq!(lab.log("polite.0"), ["stdout F up", "stdout F bye"]);
    assert_eq!((lab.record("polite.0"), lab.record("deaf.0")), (None, None));
    assert!(!lab.socket().exists());
}

#[test]
fn rotation_goes_on_whoever_listens() {
    let mut lab = Lab::new();
    (lab.log_bytes_max, lab.log_files_max) = (10_000, 4);
    lab.start();
    let mut client = lab.client();
    client.run(lab.bundle("web.0", "seq 1 5000; exit 0", ""));
    wait_readable(client.socket.as_fd());
    client.exited();
    let path = lab.log_path("web.0");
    let mut names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["0.log", "0.log.1", "0.log.2", "0.log.3"]);
    let mut kept = Vec::new();
    for name in names[1..].iter().rev().chain(&names[..1]) {
        let file = path.with_file_name(name);
        assert!(fs::metadata(&file).unwrap().len() <= 10_000);
        kept.extend(records(&file));
    }
    let last: Vec<String> = (5001 - kept.len()..5001).map(|n| format!("stdout F {n}")).collect();
    assert_eq!(kept, last);
}
