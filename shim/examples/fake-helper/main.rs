//! A helper for the shim's tests: it keeps the contract of `coracle rt` and starts plain processes instead of
//! containers. What it does besides is told by files in the bundle:
//!
//! - `command`: the shell script to start (for `exec`, the "process JSON" is that script);
//! - `mode`: `refuse` answers `err …`, `die` exits without an answer, `hang` never answers, `stranger` names a pid
//!   that is no child of the shim, `late` answers once the started process has ended, `mute` sends no terminal.

#![expect(clippy::unwrap_used, reason = "its panic is what the test looks for")]

mod sys;

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [name, rt, verb, state, id, argument, rest @ ..] = arguments.as_slice() else {
        panic!("unexpected arguments: {arguments:?}");
    };
    assert_eq!([name.as_str(), rt.as_str()], ["coracle", "rt"]);
    assert!(state.ends_with("/state") && id.contains('.'), "{arguments:?}");
    let (script, mode) = match verb.as_str() {
        "run" => {
            let bundle = Path::new(argument);
            let mode = std::fs::read_to_string(bundle.join("mode")).unwrap_or_default();
            (std::fs::read_to_string(bundle.join("command")).unwrap(), mode)
        }
        "exec" => (std::fs::read_to_string(argument).unwrap(), String::new()),
        other => panic!("unexpected verb {other}"),
    };
    let mut result = sys::result_pipe();
    match mode.trim() {
        "refuse" => return result.write_all(b"err no such image: web").unwrap(),
        "die" => std::process::exit(3),
        "hang" => sys::pause(),
        "stranger" => return result.write_all(b"ok 2").unwrap(),
        _ => {}
    }
    let terminal = match rest {
        [option, socket] if option == "--console" => {
            let (master, slave) = sys::open_terminal();
            if mode.trim() != "mute" {
                sys::send_terminal(&UnixStream::connect(socket).unwrap(), &master);
            }
            Some(slave)
        }
        [] => None,
        other => panic!("unexpected arguments {other:?}"),
    };
    let pid = sys::start_sibling(&script, terminal);
    if mode.trim() == "late" {
        sys::wait_for_sibling(pid);
    }
    result.write_all(format!("ok {pid}").as_bytes()).unwrap();
}
