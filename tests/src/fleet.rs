//! A control plane and boards, each in a network namespace of its own, as they are on the internet.
//!
//! ```text
//!  board 1 (10.250.1.2) ── veth ──┐
//!  board 2 (10.250.2.2) ── veth ──┤ the fleet's namespace: coracle-control at 10.250.255.1:6443, kubectl
//! ```
//! Boards reach the control plane; nothing reaches a board unless it asked first, as behind NAT. What the control plane is
//! reached by stays the same when it is killed and started again.

use crate::agent::{Board, binary, deadline, in_namespace};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

/// Where the control plane is reached, from its own namespace and from every board.
pub const ADDRESS: &str = "10.250.255.1";
/// The port of the API.
pub const PORT: u16 = 6443;
/// The port of the second control plane's API.
pub const SECOND_PORT: u16 = 6444;

/// A control plane that is gone, with its namespace, when this is dropped. Boards are the caller's: they may live longer.
#[derive(Debug)]
pub struct Fleet {
    dir: tempfile::TempDir,
    netns: File,
    arguments: Vec<String>,
    control: Option<Child>,
    /// An etcd, and a second control plane on it.
    others: Vec<Child>,
    boards: u8,
    kubectl: OsString,
}

impl Fleet {
    /// Makes the namespace and starts `coracle-control serve` in it, with these arguments besides those it needs.
    pub fn start(arguments: &[&str]) -> Result<Fleet> {
        let mut fleet = Fleet::prepare(arguments)?;
        fleet.start_control()?;
        Ok(fleet)
    }

    fn prepare(arguments: &[&str]) -> Result<Fleet> {
        let dir = tempfile::Builder::new().prefix("corf").tempdir()?;
        let netns = new_netns()?;
        in_namespace(&netns, || ip(&format!("address add {ADDRESS}/32 dev lo")))??;
        let arguments = arguments.iter().map(ToString::to_string).collect();
        let (control, others, kubectl) = (None, Vec::new(), "kubectl".into());
        Ok(Fleet { dir, netns, arguments, control, others, boards: 0, kubectl })
    }

    /// As [`Fleet::start`], on a real etcd in the same namespace, with a second control plane beside it. Boards know the
    /// first only.
    pub fn start_two() -> Result<Fleet> {
        const ETCD: &str = "http://127.0.0.1:2379";
        let mut fleet = Fleet::prepare(&["--etcd", ETCD])?;
        let mut etcd = Command::new("etcd");
        etcd.arg("--data-dir").arg(fleet.dir.path().join("etcd"));
        etcd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut etcd = fleet.spawn(&mut etcd).context("start etcd: it is in Debian's package etcd-server")?;
        let mut lines = BufReader::new(etcd.stderr.take().context("piped")?).lines();
        fleet.others.push(etcd);
        let ready = lines.any(|line| line.is_ok_and(|line| line.contains("ready to serve client requests")));
        ensure!(ready, "etcd ended");
        // Read to its end: a full pipe would stop etcd.
        std::thread::spawn(move || lines.for_each(drop));
        fleet.start_control()?;
        let second = fleet.dir.path().join("second");
        fs::create_dir_all(second.join("pki"))?;
        for file in [
            "tokens.csv",
            "pki/ca.crt",
            "pki/ca.key",
            "pki/kubelet-ca.crt",
            "pki/kubelet-ca.key",
            "pki/sa.key",
        ] {
            fs::copy(fleet.data().join(file), second.join(file))?;
        }
        let log = fleet.dir.path().join("second.log");
        let child = fleet.serve(&second, SECOND_PORT, &log)?;
        fleet.others.push(child);
        Ok(fleet)
    }

    /// `kubectl` that asks the second control plane; what it prints.
    pub fn kubectl_second(&self, arguments: &[&str]) -> Result<String> {
        let server = format!("--server=https://{ADDRESS}:{SECOND_PORT}");
        self.kubectl(&[&[server.as_str()], arguments].concat())
    }

    /// The control plane's data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.data().join("admin.conf")
    }

    /// The namespace of the control plane.
    pub fn netns(&self) -> &File {
        &self.netns
    }

    /// `https://…` of the API.
    pub fn url(&self) -> String {
        format!("https://{ADDRESS}:{PORT}")
    }

    /// The control plane's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("control.log")).unwrap_or_default()
    }

    /// Starts the control plane, again perhaps, and waits until it answers.
    pub fn start_control(&mut self) -> Result<()> {
        self.control = Some(self.serve(&self.data(), PORT, &self.dir.path().join("control.log"))?);
        Ok(())
    }

    fn serve(&self, data: &Path, port: u16, log: &Path) -> Result<Child> {
        let said = || fs::read_to_string(log).unwrap_or_default();
        let mut command = Command::new(binary("coracle-control")?);
        command.args(["serve", "--data-dir"]).arg(data).args(["--listen", &format!("{ADDRESS}:{port}")]);
        // What boards are told, also by the second.
        command.args(["--advertise", &format!("{ADDRESS}:{PORT}")]);
        command.args(&self.arguments).env_remove("JOURNAL_STREAM").env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::options().create(true).append(true).open(log)?);
        let before = said().len();
        let mut control = in_namespace(&self.netns, || command.spawn())??;
        let until = Instant::now() + deadline();
        // It listens earlier than it serves; a first one writes the administrator's kubeconfig in between.
        while !said()[before..].contains("the API is served") {
            if let Some(status) = control.try_wait()? {
                bail!("the control plane ended ({status}):\n{}", said());
            }
            ensure!(Instant::now() < until, "the control plane does not answer:\n{}", said());
            std::thread::yield_now();
        }
        Ok(control)
    }

    /// SIGKILLs the control plane.
    pub fn kill_control(&mut self) -> Result<()> {
        if let Some(mut control) = self.control.take() {
            control.kill()?;
            control.wait()?;
        }
        Ok(())
    }

    /// The process of the control plane.
    pub fn control_pid(&self) -> Option<u32> {
        self.control.as_ref().map(Child::id)
    }

    /// A board that reaches this control plane; its agent is not started and it has not joined.
    pub fn board(&mut self, config: &str) -> Result<Board> {
        self.boards += 1;
        let n = self.boards;
        let mut board = Board::prepare(&format!("node_name = \"board-{n}\"\n{config}"))?;
        let netns = new_netns()?;
        in_namespace(&self.netns, || -> Result<()> {
            use std::os::fd::AsRawFd;
            let other = format!("/proc/{}/fd/{}", std::process::id(), netns.as_raw_fd());
            ip(&format!("link add board{n} type veth peer name uplink netns {other}"))?;
            ip(&format!("address add 10.250.{n}.1/30 dev board{n}"))?;
            ip(&format!("link set board{n} up"))
        })??;
        in_namespace(&netns, || -> Result<()> {
            ip(&format!("address add 10.250.{n}.2/30 dev uplink"))?;
            ip("link set uplink up")?;
            ip(&format!("route add default via 10.250.{n}.1"))?;
            // Nothing that was not asked for comes in by the uplink.
            nft(
                "table inet nat { chain in { type filter hook input priority 0; iifname uplink ct state new drop; }; }",
            )
        })??;
        board.use_netns(netns);
        Ok(board)
    }

    /// Pulls the cable of the `n`th board, counted from 1.
    pub fn cut(&self, n: u8) -> Result<()> {
        in_namespace(&self.netns, || ip(&format!("link set board{n} down")))?
    }

    /// The reverse of [`Fleet::cut`].
    pub fn mend(&self, n: u8) -> Result<()> {
        in_namespace(&self.netns, || ip(&format!("link set board{n} up")))?
    }

    /// The line that a board joins with: `coracle join https://…`.
    pub fn join_line(&self) -> Result<String> {
        self.join_line_with(&[])
    }

    /// The same, of a token that is made with these arguments.
    pub fn join_line_with(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("coracle-control")?);
        command.args(["token", "create", "--data-dir"]).arg(self.data()).args(arguments);
        let output = in_namespace(&self.netns, || command.stdin(Stdio::null()).output())??;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
        ensure!(output.status.success(), "coracle-control token create: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    }

    /// A board that has joined, with its agent running; when it is back, its node is there and not yet ready perhaps.
    pub fn joined_board(&mut self, config: &str) -> Result<Board> {
        let mut board = self.board(config)?;
        board.join(&self.join_line()?)?;
        board.start_agent()?;
        Ok(board)
    }

    /// The same, once its node is ready, and all others are.
    pub fn ready_board(&mut self, config: &str) -> Result<Board> {
        let board = self.joined_board(config)?;
        self.wait(&["node", "--all", "--for=condition=Ready"]).with_context(|| board.log())?;
        Ok(board)
    }

    /// From now on this kubectl is driven, not the machine's.
    pub fn use_kubectl(&mut self, program: impl Into<OsString>) {
        self.kubectl = program.into();
    }

    /// A stock kubectl of the administrator, in the fleet's namespace.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.kubectl);
        // Its cache of discovery must not be another server's.
        command.env("HOME", self.dir.path()).env("KUBECONFIG", self.kubeconfig()).args(arguments);
        command
    }

    /// Runs this in the fleet's namespace, on a runtime of its own.
    pub fn block_on<T: Send>(&self, work: impl AsyncFnOnce() -> Result<T> + Send) -> Result<T> {
        in_namespace(&self.netns, || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work())
        })?
    }

    /// Starts what was prepared by [`Fleet::kubectl_command`].
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        Ok(in_namespace(&self.netns, || command.spawn())??)
    }

    /// Runs kubectl with this input.
    pub fn kubectl_with(&self, arguments: &[&str], input: &str) -> Result<Output> {
        let mut command = self.kubectl_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(&mut command).context("start kubectl")?;
        child.stdin.take().context("piped")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// What kubectl prints, without the last line's end; an error with what it complained of.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl_with(arguments, "")?;
        if !output.status.success() {
            bail!("kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_string())
    }

    /// `kubectl apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        let output = self.kubectl_with(&["apply", "-f", "-"], manifest)?;
        ensure!(output.status.success(), "kubectl apply: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// `kubectl wait`, with this module's deadline: `["pod/web", "--for=condition=Ready"]`.
    pub fn wait(&self, arguments: &[&str]) -> Result<String> {
        let timeout = format!("--timeout={}s", deadline().as_secs());
        let mut all = vec!["wait", &timeout];
        all.extend(arguments);
        self.kubectl(&all).with_context(|| self.log())
    }

    /// One object, or a list, as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend(arguments);
        Ok(serde_json::from_str(&self.kubectl(&all)?)?)
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Err(error) = self.kill_control() {
            tell(&format!("the control plane was not ended: {error}"));
        }
        for mut child in self.others.drain(..).rev() {
            if let Err(error) = child.kill().and_then(|()| child.wait()) {
                tell(&format!("the second control plane, or etcd, was not ended: {error}"));
            }
        }
        if std::thread::panicking() {
            tell(&format!("control plane:\n{}", self.log()));
        }
    }
}

fn tell(text: &str) {
    // A closed standard error is no reason to fail.
    writeln!(std::io::stderr(), "{text}").unwrap_or_default();
}

/// A stock client that `tests/clients/fetch.sh` has put into `target/clients`: `kubectl-old`, `kubectl-new`, `python`.
pub fn client(name: &str) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let found = this.ancestors().map(|dir| dir.join("clients").join(name)).find(|path| path.exists());
    found
        .with_context(|| format!("{name} is missing: run `tests/clients/fetch.sh` first, or use `make test`"))
}

/// A new network namespace with its loopback up. It lives as long as the file, and what is in it.
pub fn new_netns() -> Result<File> {
    let made = std::thread::spawn(|| -> Result<File> {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
        ip("link set lo up")?;
        File::open("/proc/thread-self/ns/net").context("open the namespace")
    });
    made.join().map_err(|_| anyhow::anyhow!("making a namespace panicked"))?
}

fn ip(arguments: &str) -> Result<()> {
    run(Command::new("ip").args(arguments.split(' ')))
}

fn nft(rules: &str) -> Result<()> {
    run(Command::new("nft").arg(rules))
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
