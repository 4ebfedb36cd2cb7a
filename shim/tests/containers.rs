//! A container's life as its parent sees it: start, output, signals, end, and the record of it.

mod lab;

use coracle_shim::wire::{Cause, Event, Phase, Reply, Request, Run};
use lab::{Lab, kill_group};
use std::fs;

#[test]
fn output_is_logged_and_the_exit_recorded_before_it_is_told() {
    let (lab, mut client) = Lab::started();
    let message = lab.path("termination-log");
    let script =
        format!("echo out; echo err >&2; printf tail; printf 'last words' > {}; exit 3", message.display());
    let run = Run { termination_log: Some(message), ..lab.bundle("web.0", &script, "") };
    let started = client.run(run);
    let report = client.exited();
    assert_eq!(lab.record("web.0"), Some(report.clone()));
    assert_eq!((report.code, report.signal, report.oom_killed), (3, None, false));
    assert_eq!((report.pid, report.instance.as_str()), (started.pid, "web.0"));
    assert_eq!(report.message, "last words");
    assert!(report.started == started.started && report.started.boottime <= report.finished.boottime);
    assert_eq!(report.boot_id, fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap().trim());
    let mut log = lab.log("web.0");
    // Two pipes have no order between them.
    log.sort();
    assert_eq!(log, ["stderr F err", "stdout F out", "stdout P tail"]);
    assert_eq!(client.state(), [("web.0".into(), Phase::Exited { report, recorded: true })]);
}

#[test]
fn exits_are_told_as_kubernetes_tells_them() {
    let (lab, mut client) = Lab::started();
    let events = lab.path("memory.events");
    fs::write(&events, "oom 1\noom_kill 1\n").unwrap();
    let cases = [
        ("exit 0", None, (0, None, false)),
        ("exit 255", None, (255, None, false)),
        ("kill -KILL $$", None, (137, Some(9), false)),
        ("kill -TERM $$", None, (143, Some(15), false)),
        ("kill -KILL $$", Some(&events), (137, Some(9), true)),
        ("exit 1", Some(&events), (1, None, true)),
        ("exit 0", Some(&events), (0, None, false)),
    ];
    for (attempt, (script, oom_events, expected)) in cases.into_iter().enumerate() {
        let run = lab.bundle(&format!("web.{attempt}"), script, "");
        client.run(Run { oom_events: oom_events.cloned(), ..run });
        let report = client.exited();
        assert_eq!((report.code, report.signal, report.oom_killed), expected, "{script}");
    }
}

#[test]
fn a_failing_helper_is_one_clear_refusal_and_leaves_nothing_running() {
    let (lab, mut client) = Lab::started();
    let check = |client: &mut lab::Client, mode: &str, tty: bool, expected: &str| {
        let run = Run { tty, ..lab.bundle("web.0", "exec sleep 1000", mode) };
        let refusal = client.ask(&Request::Run(run)).unwrap_err();
        assert_eq!((refusal.cause, refusal.message.as_str()), (Cause::Helper, expected), "{mode}");
        assert_eq!(client.state(), []);
    };
    check(&mut client, "refuse", false, "no such image: web");
    check(&mut client, "die", false, "the helper exited with code 3 and gave no answer");
    check(&mut client, "stranger", false, "the helper named pid 2, which is no child of the shim");
    check(&mut client, "mute", true, "the helper sent no terminal");
    let missing = Run { bundle: lab.path("none"), ..lab.bundle("web.0", "", "") };
    let refusal = client.ask(&Request::Run(missing)).unwrap_err();
    assert_eq!(refusal.message, "the helper exited with code 101 and gave no answer");
    // Its panic went where the container's errors go.
    assert!(lab.log("web.0").iter().any(|record| record.contains("NotFound")));
    let left = fs::read_dir(lab.path("run")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(left.collect::<Vec<_>>(), ["shim.sock"], "no console socket stays");
    assert_eq!(client.ask(&Request::Shutdown), Ok(Reply::Done), "nothing runs");
}

#[test]
fn a_helper_that_cannot_be_executed_says_so() {
    let lab = Lab::new();
    let mut command = lab.command();
    command.arg("--helper").arg(lab.path("none"));
    assert!(command.output().unwrap().status.success());
    let refusal = lab.client().ask(&Request::Run(lab.bundle("web.0", "", ""))).unwrap_err();
    let expected =
        format!("cannot execute {}: No such file or directory (os error 2)", lab.path("none").display());
    assert_eq!((refusal.cause, refusal.message), (Cause::Helper, expected));
}

#[test]
fn an_init_that_ends_before_its_helper_names_it_is_not_lost() {
    let (lab, mut client) = Lab::started();
    // Orphans of other containers die meanwhile, and must not be taken for it.
    client.run(lab.bundle(
        "noise.0",
        "for i in 1 2 3 4 5 6 7 8 9; do (sh -c 'exit 9' & ) ; done; sleep 1000",
        "",
    ));
    for attempt in 0..10 {
        let started = client.run(lab.bundle(&format!("web.{attempt}"), "echo gone; exit 7", "late"));
        let report = client.exited();
        assert_eq!((report.code, report.pid), (7, started.pid));
        assert_eq!(lab.log(&format!("web.{attempt}")), ["stdout F gone"]);
    }
}

#[test]
fn a_container_starts_with_a_clean_slate() {
    let (lab, mut client) = Lab::started();
    client.run(lab.bundle(
        "web.0",
        "grep -E '^Sig(Blk|Ign)' /proc/self/status; ls /proc/self/fd; cat /proc/self/oom_score_adj; umask",
        "",
    ));
    client.exited();
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    let expected = [
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        // The last is the directory that ls reads.
        "0",
        "1",
        "2",
        "3",
        own.trim(),
        "0022",
    ];
    let log = lab.log("web.0");
    // glibc's posix_spawn, by which tests start the shim, ignores its two internal signals 32 and 33.
    let found: Vec<String> =
        log.iter().map(|r| r.replace("stdout F ", "").replace("180000000", "000000000")).collect();
    assert_eq!(found, expected);
}

#[test]
fn signals_reach_the_first_process_while_it_runs() {
    let (lab, mut client) = Lab::started();
    let signal = |signal| Request::Signal { instance: "web.0".into(), signal };
    assert_eq!(client.cause(&signal(15), &[]), Cause::NotFound);
    let script = "read x; trap 'echo hup' HUP; echo ready; while :; do read x; done";
    client.run(Run { stdin: true, ..lab.bundle("web.0", script, "") });
    let mut attached = client.attach("web.0");
    attached.write("go\n");
    assert_eq!(attached.read_line(), "ready\n");
    assert_eq!(client.ask(&signal(1)), Ok(Reply::Done));
    assert_eq!(attached.read_line(), "hup\n");
    assert_eq!(client.ask(&signal(999)).unwrap_err().cause, Cause::Kernel);
    assert_eq!(client.ask(&signal(9)), Ok(Reply::Done));
    assert_eq!(client.exited().signal, Some(9));
    assert_eq!(client.cause(&signal(9), &[]), Cause::NotFound);
}

#[test]
fn a_grandchild_that_keeps_the_pipe_does_not_hold_back_the_exit() {
    let (lab, mut client) = Lab::started();
    let started = client.run(lab.bundle("web.0", "echo before; sleep 1000 & exit 4", ""));
    assert_eq!(client.exited().code, 4);
    assert_eq!(lab.log("web.0"), ["stdout F before"]);
    kill_group(started.pid);
    assert_eq!(client.ask(&Request::Forget { instance: "web.0".into() }), Ok(Reply::Done));
    assert_eq!(client.state(), []);
    assert_eq!(lab.record("web.0").unwrap().code, 4, "the record stays");
}

#[test]
fn orphans_are_reaped() {
    let (lab, mut client) = Lab::started();
    let shim = client.shim_pid();
    client.run(lab.bundle("web.0", "for i in 1 2 3 4 5; do (sh -c 'exit 1' &) ; done; exit 0", ""));
    client.exited();
    let children = || fs::read_to_string(format!("/proc/{shim}/task/{shim}/children")).unwrap();
    while !children().is_empty() {
        client.state();
    }
    assert_eq!(client.ask(&Request::Shutdown), Ok(Reply::Done));
}

#[test]
fn names_are_used_once_until_they_are_forgotten() {
    let (lab, mut client) = Lab::started();
    let run = |name: &str| Request::Run(Run { instance: name.into(), ..lab.bundle("web.0", "exit 0", "") });
    for bad in ["", "web", "../../x.0", "web.0.0", "web.-1", "WEB/.0"] {
        assert_eq!(client.cause(&run(bad), &[]), Cause::Malformed, "{bad}");
    }
    client.run(lab.bundle("web.0", "read x; exit 0", ""));
    client.exited();
    assert_eq!(client.cause(&run("web.0"), &[]), Cause::Exists);
    client.ask(&Request::Forget { instance: "web.0".into() }).unwrap();
    client.run(lab.bundle("web.0", "exec sleep 1000", ""));
    assert_eq!(client.cause(&Request::Forget { instance: "web.0".into() }, &[]), Cause::Busy);
    assert_eq!(client.cause(&Request::Forget { instance: "db.0".into() }, &[]), Cause::NotFound);
}

#[test]
fn instances_are_bounded_and_the_state_comes_in_pages() {
    let (lab, mut client) = Lab::started();
    fs::write(lab.path("message"), "m".repeat(4096)).unwrap();
    let bundle = lab.bundle("web.0", "exit 0", "");
    let run = |attempt: usize| Run {
        instance: format!("web.{attempt}"),
        termination_log: Some(lab.path("message")),
        ..bundle.clone()
    };
    for attempt in 0..64 {
        client.run(run(attempt));
        client.exited();
    }
    assert_eq!(client.cause(&Request::Run(run(64)), &[]), Cause::Busy);
    let Ok(Reply::State { instances, more: true }) = client.ask(&Request::State { after: String::new() })
    else {
        panic!("the first page is not the last");
    };
    assert!(instances.len() < 64);
    let state = client.state();
    let mut names: Vec<String> = (0..64).map(|attempt| format!("web.{attempt}")).collect();
    names.sort();
    assert_eq!(state.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), names);
    assert!(
        state
            .iter()
            .all(|(_, phase)| matches!(phase, Phase::Exited { report, .. } if report.message.len() == 4096))
    );
    client.ask(&Request::Forget { instance: "web.7".into() }).unwrap();
    client.run(run(64));
    assert!(matches!(client.event(), Event::Exited { .. }));
}
