//! A person at a terminal: `kubectl run -it`, `attach` and `debug`, by stock kubectls, to a board behind NAT.

use anyhow::Result;
use coracle_tests::agent::Board;
use coracle_tests::fleet::Fleet;
use coracle_tests::terminal::Terminal;
use std::process::Child;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: boat}
spec:
  nodeName: board-1
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: 'example.test/busybox:1', command: [sleep, '1000']}
";

fn fleet() -> Result<(Fleet, Board)> {
    let mut fleet = Fleet::start(&[])?;
    let board = fleet.ready_board("")?;
    Ok((fleet, board))
}

/// A person's terminal with kubectl in it.
struct Session {
    terminal: Terminal,
    kubectl: Child,
}

impl Session {
    fn start(fleet: &Fleet, line: &str) -> Session {
        let words: Vec<&str> = line.split(' ').collect();
        let mut command = fleet.kubectl_command(&words);
        let terminal = Terminal::of(&mut command, 33, 99).expect("a terminal");
        let kubectl = fleet.spawn(&mut command).expect("kubectl starts");
        Session { terminal, kubectl }
    }

    fn enter(&mut self, line: &str, wanted: &str) {
        self.terminal.type_in(&format!("{line}\n")).expect("typed");
        self.terminal.expect(wanted).expect(line);
    }

    /// How kubectl ends after this line.
    fn leave(mut self, line: &str) -> (String, Option<i32>) {
        self.terminal.type_in(&format!("{line}\n")).expect("typed");
        (self.terminal.rest().expect("ends"), self.kubectl.wait().expect("ends").code())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kubectl.kill().and_then(|()| self.kubectl.wait()).expect("kubectl ends");
    }
}

#[test]
fn run_rm_it_is_a_shell_that_leaves_no_pod() {
    let (fleet, _board) = fleet().expect("a fleet");
    let mut shell =
        Session::start(&fleet, "run -it --rm boat --restart=Never --image=example.test/busybox:1 -- sh");
    shell.enter("until [ \"$(stty size)\" = '33 99' ]; do :; done; echo wi''de", "wide");
    let (text, code) = shell.leave("exit");
    assert!(text.contains("pod \"boat\" deleted") && code == Some(0), "{code:?} {text}");
    fleet.wait(&["pod/boat", "--for=delete"]).expect("gone");
}

#[test]
fn a_terminal_that_is_attached_again_goes_on_with_the_same_shell() {
    let (fleet, _board) = fleet().expect("a fleet");
    let mut first =
        Session::start(&fleet, "run -it boat --restart=Never --image=example.test/busybox:1 -- sh");
    first.enter("word=oar; echo $word.$word", "oar.oar");
    drop(first);
    let mut second = Session::start(&fleet, "attach -it boat");
    second.enter("echo $word-$word", "oar-oar");
    second.leave("exit 3");
    fleet.wait(&["pod/boat", "--for=jsonpath={.status.phase}=Failed"]).expect("ended");
}

#[test]
fn debug_enters_a_pod_and_sees_the_target_s_processes() {
    let (fleet, _board) = fleet().expect("a fleet");
    fleet.apply(POD).expect("applied");
    fleet.wait(&["pod/boat", "--for=condition=Ready"]).expect("runs");
    let debug = "debug -it boat --image=example.test/busybox:1";
    let mut beside = Session::start(&fleet, &format!("{debug} --container=beside -- sh"));
    beside.enter("echo $$.$(hostname)", "1.boat");
    beside.leave("exit");

    let mut within = Session::start(&fleet, &format!("{debug} --container=within --target=main -- sh"));
    within.enter("tr '\\0' . < /proc/1/cmdline; echo", "sleep.1000.");
    within.enter("ls -d /proc/1/root/bin; echo se''en", "seen");
    within.leave("exit");
    let ended = "--for=jsonpath={.status.ephemeralContainerStatuses[1].state.terminated.reason}=Completed";
    fleet.wait(&["pod/boat", ended]).expect("ended well");
}
