//! SIGKILL and power cut: what was acknowledged is there.
//!
//! The writer is this test program itself, started again with `CORACLE_WRITER` set: it writes records with rising
//! numbers and prints each number once its commit returned. The power cut follows LVM-style crash testing: an
//! ext4 image on a loop device, the writer stopped, the image file copied as the disk has it at that moment, the
//! copy mounted (its journal replays) and opened.

use coracle_store::{Batch, Record, Store};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

const WRITER: &str = "CORACLE_WRITER";
/// Records are written round robin under this many keys.
const KEYS: u64 = 300;

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Numbered {
    number: u64,
    filling: String,
}

impl Record for Numbered {
    const KIND: &'static str = "numbered";
    const VERSION: u16 = 1;
    const EXPORTED: bool = false;
}

fn numbered(number: u64) -> Numbered {
    Numbered { number, filling: "x".repeat(usize::try_from(200 + number * 37 % 1800).expect("small")) }
}

/// Not a test of its own: the child of the tests below. Without the variable it has nothing to do.
#[test]
fn writer() {
    let Ok(order) = std::env::var(WRITER) else { return };
    let (start, dir) = order.split_once(' ').expect("START DIR");
    let store = Store::open(Path::new(dir), None).expect("opens").store;
    let mut out = std::io::stdout().lock();
    for number in start.parse::<u64>().expect("a number").. {
        let mut batch = Batch::new();
        batch.put(&format!("k{:03}", number % KEYS), &numbered(number));
        store.commit(batch).expect("commits");
        // The marker tells our lines from the test program's own.
        writeln!(out, "ack {number}").and_then(|()| out.flush()).expect("the parent reads");
    }
}

struct Writer {
    child: Child,
    acks: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    fn start(dir: &Path, first: u64) -> Writer {
        let mut child = Command::new(std::env::current_exe().expect("this program"))
            .args(["writer", "--exact", "--nocapture", "--test-threads=1"])
            .env(WRITER, format!("{first} {}", dir.display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("starts itself");
        let acks = BufReader::new(child.stdout.take().expect("piped")).lines();
        Writer { child, acks }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// Reads `count` acknowledgements; the last of them.
    fn acknowledged(&mut self, count: u64) -> u64 {
        let mut last = None;
        for _ in 0..count {
            last = self.next().or(last);
        }
        last.expect("the writer acknowledges")
    }

    fn next(&mut self) -> Option<u64> {
        loop {
            let line = self.acks.next()?.ok()?;
            // The first one shares its line with the test program's own words.
            if let Some((_, number)) = line.split_once("ack ") {
                return number.parse().ok();
            }
        }
    }

    /// SIGKILL, then everything that it still acknowledged.
    fn kill(mut self) -> Option<u64> {
        kill(self.pid(), Signal::SIGKILL).expect("ours to kill");
        let mut last = None;
        while let Some(number) = self.next() {
            last = Some(number);
        }
        self.child.wait().expect("ours to reap");
        last
    }
}

/// Every record up to `acked` is there, or a newer one under its key.
fn verify(dir: &Path, acked: u64, round: u64) {
    let opened = Store::open(dir, None).expect("opens");
    assert_eq!(opened.quarantined, None, "round {round}");
    let scan = opened.store.all::<Numbered>().expect("scans");
    assert_eq!(scan.damaged, Vec::<String>::new(), "round {round}");
    for number in acked.saturating_sub(KEYS - 1).max(1)..=acked {
        let found = opened.store.get::<Numbered>(&format!("k{:03}", number % KEYS)).expect("reads");
        let found = found.unwrap_or_else(|| panic!("round {round}: record {number} of {acked} is lost"));
        assert!(
            found.number >= number && found.number % KEYS == number % KEYS,
            "round {round}: {number} is old"
        );
        assert_eq!(found, numbered(found.number), "round {round}");
    }
}

/// xorshift: the same kills each time.
fn random(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn a_killed_writer_loses_nothing_that_it_acknowledged() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = dir.path().join("store");
    let (mut seed, mut acked) = (0x1234_5678_9abc_def1, 0);
    for round in 0..100 {
        let mut writer = Writer::start(&store, acked + 1);
        acked = writer.acknowledged(1 + random(&mut seed) % 40);
        // Somewhere within a commit, not right behind one.
        for _ in 0..random(&mut seed) % 40_000 {
            std::hint::spin_loop();
        }
        acked = writer.kill().unwrap_or(acked);
        verify(&store, acked, round);
    }
}

/// A mounted ext4 image, unmounted when dropped.
struct Disk {
    mount: PathBuf,
}

impl Disk {
    fn mount(image: &Path, mount: PathBuf) -> Disk {
        std::fs::create_dir_all(&mount).expect("made");
        let status =
            Command::new("mount").args(["-o", "loop"]).args([image, &mount]).status().expect("mount runs");
        assert!(
            status.success(),
            "an ext4 image on a loop device cannot be mounted: this test needs root and loop devices"
        );
        Disk { mount }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: sled closes its file in a thread of its own, some time after the store was dropped.
        if let Err(error) = umount2(&self.mount, MntFlags::MNT_DETACH) {
            assert!(std::thread::panicking(), "unmount {}: {error}", self.mount.display());
        }
    }
}

#[test]
fn a_power_cut_loses_nothing_that_was_acknowledged() {
    let rounds =
        std::env::var("CORACLE_POWERCUT_ROUNDS").map_or(40, |n| n.parse().expect("a number of rounds"));
    let dir = tempfile::tempdir().expect("a directory");
    let (image, copy) = (dir.path().join("disk"), dir.path().join("copy"));
    let mut seed = 0x0dd0_b0a7_5eed_0001;
    for round in 0..rounds {
        File::create(&image).and_then(|f| f.set_len(48 << 20)).expect("a sparse image");
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F"])
            .arg(&image)
            .status()
            .expect("mkfs.ext4 of e2fsprogs runs");
        assert!(made.success());
        let disk = Disk::mount(&image, dir.path().join("mnt"));
        let mut writer = Writer::start(&disk.mount.join("store"), 1);
        // Short histories, and every fourth one long enough for sled to collect segments.
        let wanted =
            if round % 4 == 3 { 1500 + random(&mut seed) % 1500 } else { 1 + random(&mut seed) % 200 };
        let mut acked = writer.acknowledged(wanted);
        kill(writer.pid(), Signal::SIGSTOP).expect("ours to stop");
        stopped(writer.pid());
        std::fs::copy(&image, &copy).expect("copied");
        acked = writer.kill().unwrap_or(acked).min(acked);
        drop(disk);
        let after = Disk::mount(&copy, dir.path().join("mnt"));
        verify(&after.mount.join("store"), acked, round);
        drop(after);
    }
}

/// Waits until the process is stopped: waitid(2) tells, without taking its exit status.
fn stopped(pid: Pid) {
    use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
    let status = waitpid(pid, Some(WaitPidFlag::WUNTRACED)).expect("ours to wait for");
    assert!(matches!(status, WaitStatus::Stopped(..)), "{status:?}");
}
