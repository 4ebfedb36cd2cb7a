//! Machines that boot: Debian with systemd and cgroup v2, emulated by qemu, driven over a virtio port.
//!
//! ```text
//! image.sh ─► base.img ─► Disk (qcow2 over it) ─► Machine::boot ─► run … power_cut ─► Machine::boot …
//!                    └──► warm.qcow2 (booted, kept) ─► Machine::warm ─► run …   3 to 4 s instead of 20
//! ```
//! Nothing outlives the test: qemu ends with its [`Machine`], a [`Disk`] with its directory. No machine has a network.
//!
//! A power cut is harder than a killed program: qcow2's tables are in qemu's memory, so whatever the guest did not flush
//! since a cluster was allocated is lost with it, as in the cache of a card.

pub mod kit;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Emulation is ten times slower than the machine it runs on, and that machine has two cores for all of us.
const DEADLINE: Duration = Duration::from_secs(600);

/// A processor architecture, as Debian calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// x86_64.
    Amd64,
    /// aarch64.
    Arm64,
    /// 32-bit ARM with hardware floating point.
    Armhf,
}

impl Arch {
    /// Debian's name.
    pub fn name(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
            Arch::Armhf => "armhf",
        }
    }

    /// The OCI image index's.
    pub fn oci(self) -> &'static str {
        match self {
            Arch::Amd64 => "amd64",
            Arch::Arm64 => "arm64",
            Arch::Armhf => "arm",
        }
    }

    fn qemu(self) -> Command {
        let (program, machine, cpu) = match self {
            Arch::Amd64 => ("qemu-system-x86_64", "q35", "max"),
            // Pointer authentication costs emulation half its speed.
            Arch::Arm64 => ("qemu-system-aarch64", "virt,gic-version=3", "max,pauth=off"),
            Arch::Armhf => ("qemu-system-arm", "virt,highmem=off", "cortex-a15"),
        };
        let mut command = Command::new(program);
        command.args(["-M", machine, "-cpu", cpu]);
        command
    }

    fn console(self) -> &'static str {
        match self {
            Arch::Amd64 => "ttyS0",
            Arch::Arm64 | Arch::Armhf => "ttyAMA0",
        }
    }
}

/// A machine's kernel and root file system, built by `tests/vm/image.sh` or found as built before.
#[derive(Clone, Debug)]
pub struct Base {
    /// Of what.
    pub arch: Arch,
    dir: PathBuf,
}

impl Base {
    /// Builds it if this machine has not built the same before.
    pub fn of(arch: Arch) -> Result<Base> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/image.sh");
        let output = Command::new(script).arg(arch.name()).stderr(Stdio::inherit()).output()?;
        ensure!(output.status.success(), "image.sh {} failed", arch.name());
        Ok(Base { arch, dir: String::from_utf8(output.stdout)?.trim().into() })
    }

    /// A static busybox of this architecture.
    pub fn busybox(&self) -> PathBuf {
        self.dir.join("busybox")
    }

    /// A machine's disk with this content, unwritten yet.
    pub fn disk(&self) -> Result<Disk> {
        let dir = tempfile::Builder::new().prefix("vm").tempdir()?;
        let path = dir.path().join("disk.qcow2");
        overlay(&self.dir.join("base.img"), "raw", &path)?;
        File::create(dir.path().join("data"))?.set_len(1 << 30)?;
        Ok(Disk { base: self.clone(), path, dir })
    }

    /// The disk of a machine that has booted, with its memory. Made once.
    fn warm(&self) -> Result<PathBuf> {
        let path = self.dir.join("warm.qcow2");
        // One maker at a time: tests run side by side.
        let lock = File::create(self.dir.join("warm.lock"))?;
        lock.lock()?;
        if path.exists() {
            return Ok(path);
        }
        let making = self.dir.join("warm.new");
        match fs::remove_file(&making) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
            _ => overlay(&self.dir.join("base.img"), "raw", &making)?,
        }
        let nothing = tempfile::tempdir()?;
        let mut machine = Machine::start(self, &making, nothing.path(), &Boot::default(), &[])?;
        machine.sh("systemctl is-system-running --wait || true; sync")?;
        let mut monitor = machine.qemu.stdin.take().context("piped")?;
        writeln!(monitor, "savevm warm\nquit")?;
        machine.qemu.wait()?;
        fs::rename(&making, &path)?;
        Ok(path)
    }
}

/// A disk of a size that never changes, since a machine that was kept knows it, with the content of `host`.
fn write_share(host: &Path, share: &Path) -> Result<()> {
    const BYTES: u64 = 1 << 30;
    File::create(share)?.set_len(BYTES)?;
    let status = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1", "-d"])
        .arg(host)
        .arg(share)
        .status()
        .context("run mke2fs (apt-get install e2fsprogs)")?;
    ensure!(status.success(), "mke2fs failed");
    Ok(())
}

fn overlay(base: &Path, format: &str, path: &Path) -> Result<()> {
    let status = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", format, "-b"])
        .arg(base)
        .arg(path)
        .status()
        .context("run qemu-img (apt-get install qemu-utils)")?;
    ensure!(status.success(), "qemu-img create failed");
    Ok(())
}

/// A machine's disk (`/dev/vda`) and an empty one beside it (`/dev/vdc`, 1 GiB); what is written to them outlives its
/// machines, and ends with this value.
#[derive(Debug)]
pub struct Disk {
    base: Base,
    path: PathBuf,
    dir: tempfile::TempDir,
}

impl Disk {
    /// Bytes that it takes on the host: what was ever written to it.
    pub fn allocated_bytes(&self) -> Result<u64> {
        use std::os::unix::fs::MetadataExt;
        Ok(fs::metadata(&self.path)?.blocks() * 512)
    }
}

/// How a machine boots.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// No clock: the time is 1970 until something sets it.
    pub without_clock: bool,
    /// More words for the kernel's command line.
    pub kernel: &'static str,
}

/// What a script printed, both streams together, and how it ended.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Exit status.
    pub status: i32,
    /// Output.
    pub text: String,
}

/// A running machine; it is switched off when this is dropped.
#[derive(Debug)]
pub struct Machine {
    qemu: Child,
    shell: BufReader<UnixStream>,
    sent: u64,
    dir: tempfile::TempDir,
    /// Of a machine whose disk is its own.
    disk: Option<tempfile::TempDir>,
}

impl Machine {
    /// A machine that has booted already, with a disk that is thrown away. `host` appears in it as `/host`, read-only.
    pub fn warm(base: &Base, host: &Path) -> Result<Machine> {
        let warm = base.warm()?;
        let dir = tempfile::Builder::new().prefix("vm").tempdir()?;
        let path = dir.path().join("disk.qcow2");
        fs::copy(&warm, &path)?;
        let mut machine = Machine::start(base, &path, host, &Boot::default(), &["-loadvm", "warm"])?;
        machine.disk = Some(dir);
        machine.mount()?;
        Ok(machine)
    }

    /// Boots from a disk, and returns once the machine takes scripts: early, with services still starting.
    pub fn boot(disk: &Disk, host: &Path, boot: &Boot) -> Result<Machine> {
        let data = format!(
            "if=virtio,id=d2,file={},format=raw,cache=writeback",
            disk.dir.path().join("data").display()
        );
        let mut machine = Machine::start(&disk.base, &disk.path, host, boot, &["-drive", &data])?;
        machine.mount()?;
        Ok(machine)
    }

    fn start(base: &Base, disk: &Path, host: &Path, boot: &Boot, more: &[&str]) -> Result<Machine> {
        let dir = tempfile::Builder::new().prefix("vm").tempdir()?;
        let (socket, share) = (dir.path().join("shell"), dir.path().join("share"));
        write_share(host, &share)?;
        let clock = if boot.without_clock { "vm.clock=1970" } else { "" };
        let kernel = format!(
            "console={} panic=-1 loglevel=4 psi=1 cgroup_no_v1=all systemd.show_status=0 systemd.log_color=0 net.ifnames=0 {clock} {}",
            base.arch.console(),
            boot.kernel
        );
        let mut command = base.arch.qemu();
        command
            .args(["-accel", "tcg,thread=multi,tb-size=256", "-smp", "2", "-m", "1024"])
            .args(["-nodefaults", "-display", "none", "-monitor", "stdio", "-append", &kernel])
            .arg("-kernel")
            .arg(base.dir.join("vmlinuz"))
            .arg("-initrd")
            .arg(base.dir.join("initrd.img"))
            .args(["-rtc", if boot.without_clock { "base=1970-01-01T00:00:00" } else { "base=utc" }])
            .args(["-serial", &format!("file:{}", dir.path().join("console").display())])
            .args(["-device", "virtio-rng-pci"])
            .args(["-drive", &format!("if=none,id=d0,file={},format=qcow2,cache=writeback", disk.display())])
            .args(["-device", "virtio-blk-pci,drive=d0"])
            .args(["-drive", &format!("if=none,id=d1,file={},format=raw,readonly=on", share.display())])
            .args(["-device", "virtio-blk-pci,drive=d1"])
            .args(["-device", "virtio-serial-pci"])
            .args(["-chardev", &format!("socket,id=c0,path={},server=on,wait=off", socket.display())])
            .args(["-device", "virtserialport,chardev=c0,name=shell"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(File::create(dir.path().join("qemu.log"))?);
        crate::sys::die_with_us(&mut command);
        let mut qemu =
            command.spawn().context("run qemu (apt-get install qemu-system-arm qemu-system-x86)")?;
        let until = Instant::now() + DEADLINE;
        let stream = loop {
            if let Ok(stream) = UnixStream::connect(&socket) {
                break stream;
            }
            if let Some(status) = qemu.try_wait()? {
                bail!("qemu ended with {status}: {}", read_lossy(&dir.path().join("qemu.log")));
            }
            ensure!(Instant::now() < until, "qemu does not listen");
            std::thread::yield_now();
        };
        Ok(Machine { qemu, shell: BufReader::new(stream), sent: 0, dir, disk: None })
    }

    fn mount(&mut self) -> Result<()> {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs();
        // A machine of yesterday has yesterday's time; one without a clock keeps having none.
        self.sh(&format!(
            "grep -q vm.clock=1970 /proc/cmdline || date -s @{now} >/dev/null; \
             blockdev --flushbufs /dev/vdb; mount -o ro /dev/vdb /host"
        ))?;
        Ok(())
    }

    /// Runs a script in bash as root. Blocking.
    pub fn run(&mut self, script: &str) -> Result<Ran> {
        match self.answer(script, DEADLINE)? {
            Some(ran) => Ok(ran),
            None => bail!("the machine does not answer to: {script}\n{}", self.console()),
        }
    }

    /// As [`Machine::run`]; `None` when it has not ended at `moment`. Then the machine is good for a power cut only.
    pub fn run_before(&mut self, script: &str, moment: Instant) -> Result<Option<Ran>> {
        self.answer(script, moment.saturating_duration_since(Instant::now()))
    }

    fn answer(&mut self, script: &str, wait: Duration) -> Result<Option<Ran>> {
        self.sent += 1;
        let line = format!("{} {}\n", self.sent, BASE64.encode(script));
        self.shell.get_mut().write_all(line.as_bytes())?;
        // A timeout of zero would be none.
        self.shell.get_ref().set_read_timeout(Some(wait.max(Duration::from_millis(1))))?;
        let id = self.sent.to_string();
        loop {
            let mut line = String::new();
            match self.shell.read_line(&mut line) {
                Ok(0) => bail!("the machine is gone; it was to run: {script}\n{}", self.console()),
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(e) => return Err(e.into()),
            }
            let mut words = line.trim().split(' ');
            // An answer to a script that was running when the machine went down is nobody's.
            if words.next() == Some(id.as_str()) {
                let status = words.next().and_then(|w| w.parse().ok()).context("a status")?;
                let bytes = BASE64.decode(words.next().unwrap_or(""))?;
                return Ok(Some(Ran { status, text: String::from_utf8_lossy(&bytes).into_owned() }));
            }
        }
    }

    /// As [`Machine::run`]; an error when the script fails.
    pub fn sh(&mut self, script: &str) -> Result<String> {
        let ran = self.run(script)?;
        ensure!(ran.status == 0, "status {} of: {script}\n{}", ran.status, ran.text);
        Ok(ran.text)
    }

    /// Runs the script again until it succeeds: for what has no event that reaches the host.
    pub fn until(&mut self, what: &str, script: &str) -> Result<String> {
        let until = Instant::now() + DEADLINE;
        loop {
            let ran = self.run(script)?;
            if ran.status == 0 {
                return Ok(ran.text);
            }
            if Instant::now() > until {
                let told = self.run("journalctl -b -u coracle -n 80 --no-pager")?;
                bail!("not in time: {what}\n{}\n{}", ran.text, told.text);
            }
        }
    }

    /// Asks for something that ends in a new boot, and waits for that boot.
    pub fn reboot(&mut self) -> Result<()> {
        let before = self.sh("cat /proc/sys/kernel/random/boot_id")?;
        self.sh("systemctl reboot --no-block")?;
        loop {
            // What is asked of the old boot may be answered, or lost with it: qemu keeps the socket.
            let answer = self.answer("cat /proc/sys/kernel/random/boot_id", Duration::from_secs(10))?;
            if answer.is_some_and(|ran| ran.text != before) {
                return self.mount();
            }
            ensure!(self.qemu.try_wait()?.is_none(), "qemu ended at the reboot\n{}", self.console());
        }
    }

    /// Shuts it down in good order.
    pub fn power_off(mut self) -> Result<()> {
        self.run_before("systemctl poweroff --no-block", Instant::now() + DEADLINE)?;
        self.qemu.wait()?;
        Ok(())
    }

    /// Off, as when the plug is pulled.
    pub fn power_cut(mut self) -> Result<()> {
        self.qemu.kill()?;
        self.qemu.wait()?;
        Ok(())
    }

    fn console(&self) -> String {
        let text = read_lossy(&self.dir.path().join("console"));
        let from = text.char_indices().rev().nth(4000).map_or(0, |(at, _)| at);
        format!("---- console ----\n{}", &text[from..])
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        for ended in [self.qemu.kill(), self.qemu.wait().map(drop)] {
            ended.expect("qemu is our child until it is waited for");
        }
    }
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
