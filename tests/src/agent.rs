//! One board: a root directory, a network namespace, and the real agent in it.

use crate::census;
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Longer than anything here takes, on a busy machine with two cores. `CORACLE_TEST_SLOWNESS` multiplies it: an
/// emulated machine is ten times slower.
pub fn deadline() -> Duration {
    const NATIVE: Duration = Duration::from_secs(60);
    let slowness = std::env::var("CORACLE_TEST_SLOWNESS").ok().and_then(|text| text.parse().ok());
    NATIVE * slowness.unwrap_or(1)
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A board that is gone, with everything on it, when this is dropped.
#[derive(Debug)]
pub struct Board {
    dir: tempfile::TempDir,
    name: String,
    agent: Option<Child>,
    /// Holds the network namespace while the agent restarts.
    netns: Option<File>,
    /// Each start of the agent is in a new mount namespace whose `/sys` shows no cgroups.
    own_mounts: bool,
}

impl Board {
    /// A board with the test images preloaded and its agent running; `config` is added to its configuration.
    pub fn start(config: &str) -> Result<Board> {
        let mut board = Board::prepare(config)?;
        board.start_agent()?;
        Ok(board)
    }

    /// As [`Board::start`], with the agent not started yet.
    pub fn prepare(config: &str) -> Result<Board> {
        if !nix::unistd::geteuid().is_root() {
            bail!("these tests make namespaces, mounts and cgroups: run them as root");
        }
        let dir = tempfile::Builder::new().prefix("cor").tempdir()?;
        let name = format!("t{:x}-{:x}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let root = dir.path().join("root");
        fs::create_dir_all(root.join("manifests"))?;
        let preload = root.join("preload");
        fs::create_dir_all(&preload)?;
        crate::image::Image::busybox("example.test/busybox:1")?
            .write_oci_archive(&preload.join("busybox.tar"))?;
        crate::image::Image::web("example.test/web:1")?.write_docker_archive(&preload.join("web.tar"))?;
        // However full this machine's disk is: boards that have no room take no pods.
        let own = format!("name = \"{name}\"\neviction_disk_available_percent = 0\n");
        fs::write(dir.path().join("config.toml"), format!("{own}{config}\n"))?;
        Ok(Board { dir, name, agent: None, netns: None, own_mounts: false })
    }

    /// From now on the agent is started as `ip netns exec` starts a program: in a new mount namespace, with a new
    /// `/sys` over the one that holds the cgroups.
    pub fn own_mounts(&mut self) {
        self.own_mounts = true;
    }

    /// A network namespace made by somebody else, instead of a new one. Before the agent starts.
    pub fn use_netns(&mut self, netns: File) {
        self.netns = Some(netns);
    }

    /// The authorities that the agent believes, in PEM, instead of the machine's. Before it starts.
    pub fn authorities(&self, pem: &str) -> Result<()> {
        Ok(fs::write(self.dir.path().join("authorities.pem"), pem)?)
    }

    /// The board's network namespace.
    pub fn netns(&self) -> Result<&File> {
        self.netns.as_ref().context("the agent was never started")
    }

    /// The agent's root directory.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// The name of its cgroup and bridge.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Puts the board's root on a disk of its own: a tmpfs of so many bytes. Before the agent starts.
    pub fn limit_disk(&self, bytes: u64) -> Result<()> {
        use nix::mount::{MsFlags, mount};
        let aside = self.dir.path().join("aside");
        fs::rename(self.root(), &aside)?;
        fs::create_dir(self.root())?;
        let options = format!("size={bytes},mode=755");
        mount(Some("tmpfs"), &self.root(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
        self.fill_from(&aside)
    }

    /// Puts the board's root on an ext4 of its own. Before the agent starts.
    pub fn own_ext4(&self, bytes: u64) -> Result<()> {
        let (image, aside) = (self.dir.path().join("disk"), self.dir.path().join("aside"));
        File::create(&image)?.set_len(bytes)?;
        fs::rename(self.root(), &aside)?;
        fs::create_dir(self.root())?;
        tool(Command::new("mkfs.ext4").arg("-q").arg(&image))?;
        tool(Command::new("mount").args(["-o", "loop,errors=remount-ro"]).arg(&image).arg(self.root()))?;
        self.fill_from(&aside)
    }

    /// An error of the disk of [`Board::own_ext4`]: the kernel makes it read-only, as it does with a failing card.
    pub fn fail_disk(&self) -> Result<()> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let root = self.root().display().to_string();
        let line =
            mounts.lines().find(|l| l.split(' ').nth(4) == Some(&root)).context("no disk of its own")?;
        let device = line.rsplit(' ').nth(1).and_then(|d| d.strip_prefix("/dev/")).context("no device")?;
        Ok(fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1")?)
    }

    fn fill_from(&self, aside: &Path) -> Result<()> {
        for dir in ["manifests", "preload"] {
            fs::create_dir(self.root().join(dir))?;
            for entry in fs::read_dir(aside.join(dir))? {
                let entry = entry?;
                fs::copy(entry.path(), self.root().join(dir).join(entry.file_name()))?;
            }
        }
        Ok(())
    }

    /// Writes until nothing more fits.
    pub fn fill_disk(&self) -> Result<()> {
        let mut file = File::create(self.root().join("filling"))?;
        for block in [vec![1; 1 << 16], vec![1; 512]] {
            while file.write_all(&block).is_ok() {}
        }
        Ok(())
    }

    /// The reverse of [`Board::fill_disk`].
    pub fn free_disk(&self) -> Result<()> {
        Ok(fs::remove_file(self.root().join("filling"))?)
    }

    /// The agent's process.
    pub fn agent_pid(&self) -> Option<u32> {
        self.agent.as_ref().map(Child::id)
    }

    /// Starts the agent, in the board's network namespace if it has one already, and waits until it answers.
    pub fn start_agent(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.dir.path().join("agent.log"))?;
        let mut command = if self.own_mounts {
            let mut command = Command::new("unshare");
            let script = "umount -l /sys && mount -t sysfs sysfs /sys && exec \"$0\" \"$@\"";
            command.args(["--mount", "sh", "-c", script]).arg(binary("coracle")?);
            command
        } else {
            Command::new(binary("coracle")?)
        };
        command
            .arg("--root")
            .arg(self.root())
            .arg("agent")
            .arg("--config")
            .arg(self.dir.path().join("config.toml"));
        let authorities = self.dir.path().join("authorities.pem");
        if authorities.exists() {
            command.env("SSL_CERT_FILE", authorities).env_remove("SSL_CERT_DIR");
        }
        command.env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = match &self.netns {
            Some(netns) => in_namespace(netns, || command.spawn())??,
            None => {
                crate::sys::own_network(&mut command);
                command.spawn()?
            }
        };
        if self.netns.is_none() {
            self.netns = Some(File::open(format!("/proc/{}/ns/net", child.id()))?);
        }
        self.agent = Some(child);
        let until = Instant::now() + deadline();
        while UnixStream::connect(self.socket()).is_err() {
            let agent = self.agent.as_mut().context("just started")?;
            if let Some(status) = agent.try_wait()? {
                bail!("the agent ended ({status}):\n{}", self.log());
            }
            if Instant::now() > until {
                bail!("the agent does not answer:\n{}", self.log());
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// SIGKILLs the agent, as a crash would.
    pub fn kill_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            agent.kill()?;
            agent.wait()?;
        }
        use std::io::ErrorKind::{NotFound, ReadOnlyFilesystem};
        match fs::remove_file(self.socket()) {
            Err(e) if !matches!(e.kind(), NotFound | ReadOnlyFilesystem) => Err(e.into()),
            _ => Ok(()),
        }
    }

    /// Ends the agent as systemd would; its exit must be clean.
    pub fn stop_agent(&mut self) -> Result<()> {
        if let Some(mut agent) = self.agent.take() {
            kill(Pid::from_raw(i32::try_from(agent.id())?), Signal::SIGTERM)?;
            let status = agent.wait()?;
            if !status.success() {
                bail!("the agent ended with {status}:\n{}", self.log());
            }
        }
        Ok(())
    }

    /// What a reboot leaves: everything killed, `RUN`, mounts, cgroups and network gone, the disk as it was.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.kill_agent()?;
        census::clear(&self.name, &self.root())?;
        fs::remove_dir_all(self.root().join("run"))?;
        self.netns = None;
        Ok(())
    }

    fn socket(&self) -> PathBuf {
        self.root().join("run/coracle.sock")
    }

    /// The agent's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("agent.log")).unwrap_or_default()
    }

    /// Writes a manifest file by rename, as careful programs do.
    pub fn manifest(&self, file: &str, text: &str) -> Result<()> {
        let aside = self.dir.path().join(file);
        fs::write(&aside, text)?;
        Ok(fs::rename(aside, self.root().join("manifests").join(file))?)
    }

    /// Removes a manifest file.
    pub fn remove_manifest(&self, file: &str) -> Result<()> {
        Ok(fs::remove_file(self.root().join("manifests").join(file))?)
    }

    /// Its configuration file.
    pub fn config(&self) -> String {
        self.dir.path().join("config.toml").display().to_string()
    }

    /// Runs the line that a control plane gave for joining it, from within the board's network namespace.
    pub fn join(&self, line: &str) -> Result<String> {
        let words = line.strip_prefix("coracle ").context("a line that begins with coracle")?;
        let config = self.config();
        let words: Vec<&str> = words.split_whitespace().chain(["--config", &config]).collect();
        in_namespace(self.netns()?, || self.run(&words))?
    }

    /// Runs `coracle …` against this board.
    pub fn coracle(&self, arguments: &[&str]) -> Result<Output> {
        Ok(Command::new(binary("coracle")?)
            .arg("--root")
            .arg(self.root())
            .args(arguments)
            .stdin(Stdio::null())
            .output()?)
    }

    /// `coracle image import` of an image made for one test.
    pub fn import(&self, image: &crate::image::Image) -> Result<()> {
        let archive = self.dir.path().join("import.tar");
        image.write_oci_archive(&archive)?;
        self.run(&["image", "import", archive.to_str().context("a path in UTF-8")?]).map(drop)
    }

    /// As [`Board::coracle`]; what it printed, or an error with what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.coracle(arguments)?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if !output.status.success() {
            bail!(
                "coracle {arguments:?} failed ({}): {}\n{}",
                output.status,
                text(output.stderr),
                self.log()
            );
        }
        Ok(text(output.stdout))
    }

    /// `coracle apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        let mut child = Command::new(binary("coracle")?)
            .arg("--root")
            .arg(self.root())
            .args(["apply", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("piped")?.write_all(manifest.as_bytes())?;
        let output = child.wait_with_output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if output.status.success() {
            Ok(text)
        } else {
            bail!("{}", String::from_utf8_lossy(&output.stderr).trim())
        }
    }

    /// Follows the agent's watch until `wanted` holds for the named pod; that pod.
    pub fn wait(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut last = Value::Null;
        let found = self.watch(|kind, pod| {
            if pod["metadata"]["name"] != name || kind == "DELETED" {
                return false;
            }
            last = pod.clone();
            wanted(pod)
        });
        found.with_context(|| format!("pod {name} is not {what}; last seen {last:#}\n{}", self.log()))?;
        Ok(last)
    }

    /// Asks again and again until there is an answer, for what has no event that a test could wait for.
    pub fn until<T>(&self, what: &str, mut ask: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        let end = Instant::now() + deadline();
        loop {
            if let Some(found) = ask()? {
                return Ok(found);
            }
            if Instant::now() > end {
                bail!("not before the deadline: {what}\n{}", self.log());
            }
        }
    }

    /// Waits until no pod of this name is left.
    pub fn wait_gone(&self, name: &str) -> Result<()> {
        let list = self.get("/pods")?;
        let there = list["items"].as_array().into_iter().flatten().any(|p| p["metadata"]["name"] == name);
        if !there {
            return Ok(());
        }
        let gone = self.watch(|kind, pod| kind == "DELETED" && pod["metadata"]["name"] == name);
        gone.with_context(|| format!("pod {name} does not go away\n{}", self.log()))
    }

    /// Reads the watch until `stop` says so.
    fn watch(&self, mut stop: impl FnMut(&str, &Value) -> bool) -> Result<()> {
        let stream = self.request("GET", "/pods?watch=1")?;
        let until = Instant::now() + deadline();
        for line in BufReader::new(stream).lines() {
            let line = line.context("no change before the deadline")?;
            // Chunk sizes and headers lie between the lines of JSON.
            let Some(change) =
                line.starts_with('{').then(|| serde_json::from_str::<Value>(&line)).transpose()?
            else {
                continue;
            };
            if stop(change["type"].as_str().unwrap_or_default(), &change["object"]) {
                return Ok(());
            }
            if Instant::now() > until {
                bail!("not before the deadline");
            }
        }
        bail!("the agent closed the connection")
    }

    fn request(&self, method: &str, path: &str) -> Result<UnixStream> {
        let mut stream = UnixStream::connect(self.socket())?;
        stream.set_read_timeout(Some(deadline()))?;
        write!(stream, "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
        Ok(stream)
    }

    /// GETs an object of the node API.
    pub fn get(&self, path: &str) -> Result<Value> {
        let text = self.get_text(path)?;
        serde_json::from_str(&text).with_context(|| text)
    }

    /// GETs a body of the node API.
    pub fn get_text(&self, path: &str) -> Result<String> {
        let mut answer = String::new();
        self.request("GET", path)?.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(body.into())
    }

    /// GETs over TCP from within the board's network: status line and body.
    pub fn http(&self, address: &str) -> Result<String> {
        let netns = self.netns.as_ref().context("the agent was never started")?;
        in_namespace(netns, || {
            let until = Instant::now() + deadline();
            let mut stream = loop {
                match TcpStream::connect(address) {
                    Ok(stream) => break stream,
                    Err(error) if Instant::now() > until => bail!("connect {address}: {error}"),
                    // The server in the container is still starting: there is no event of it out here.
                    Err(_) => std::thread::yield_now(),
                }
            };
            stream.set_read_timeout(Some(deadline()))?;
            write!(stream, "GET / HTTP/1.0\r\nHost: pod\r\n\r\n")?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })?
    }

    /// What of this board exists in the kernel.
    pub fn census(&self) -> Result<census::Census> {
        let netns = self.netns.as_ref().context("the agent was never started")?;
        census::count(&self.name, &self.root(), netns)
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let cleared = self.kill_agent().and_then(|()| census::clear(&self.name, &self.root()));
        if failed {
            let mut err = std::io::stderr();
            drop(writeln!(err, "---- the agent's log ----\n{}", self.log()));
        }
        if let Err(error) = cleared {
            assert!(failed, "the board was not cleared: {error:#}");
        }
    }
}

/// Runs a tool of the host to a good end.
fn tool(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs `work` in a thread that is in the namespace.
pub fn in_namespace<T: Send>(netns: &File, work: impl FnOnce() -> T + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let enter = || -> Result<T> {
            nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        };
        scope.spawn(enter).join().map_err(|_| anyhow::anyhow!("the thread in the namespace panicked"))?
    })
}

/// One of our binaries, beside the directory of the running test.
pub fn binary(name: &str) -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("CORACLE_BIN_DIR") {
        return Ok(Path::new(&dir).join(name));
    }
    let this = std::env::current_exe()?;
    let found = this.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file());
    found.with_context(|| {
        format!("{name} is not built: run `cargo build --workspace` first, or use `make test`")
    })
}
