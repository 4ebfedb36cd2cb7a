//! cgroup v2 under systemd: the end-to-end tests of pods once more, inside a machine that has it.

use coracle_tests::vm::{Arch, Base, Machine};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The newest of the test programs `NAME-HASH` beside this one.
fn test_program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("a path");
    let deps = this.parent().expect("in a directory");
    let age = |path: &Path| path.metadata().and_then(|m| m.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
    let is_ours = |path: &Path| {
        let stem = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        stem.strip_prefix(name).is_some_and(|rest| rest.starts_with('-') && !rest.contains('.'))
    };
    let found = fs::read_dir(deps).expect("listed").map(|entry| entry.expect("listed").path());
    found.filter(|path| is_ours(path)).max_by_key(|path| age(path)).expect("cargo test --no-run builds it")
}

const SUITES: [&str; 3] = ["pods", "features", "hostile"];

#[test]
fn pods_run_on_cgroup_v2_as_they_do_on_v1() {
    let share = tempfile::tempdir().expect("a directory");
    for name in ["coracle", "coracle-shim"] {
        let from = coracle_tests::agent::binary(name).expect("built");
        fs::copy(from, share.path().join(name)).expect("copied");
    }
    for suite in SUITES {
        fs::copy(test_program(suite), share.path().join(suite)).expect("copied");
    }
    let base = Base::of(Arch::Amd64).expect("an image");
    let mut machine = Machine::warm(&base, share.path()).expect("a machine");
    machine.sh("cp -r /host/. /root").expect("copied");
    for suite in SUITES {
        let run = format!(
            "cd /root && CORACLE_BIN_DIR=/root CORACLE_TEST_SLOWNESS=10 ./{suite} --test-threads=2 2>&1"
        );
        println!("{}", machine.sh(&run).expect("every test passes"));
    }
}
