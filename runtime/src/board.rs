//! The runtime of one board, as the agent's engine sees it: an action in, facts or one clear error out.
//!
//! ```text
//!            create_sandbox            start              signal, exits
//!  Absent ───────────────────► Ready ─────────► Running ─────────────► Exited
//!    ▲                           │ shim dies         remove_container │
//!    └──── stop_sandbox ◄────────┴───────── Broken ◄──────────────────┘
//! ```
//! "Adopt, then reconcile": what exists is found again from the kernel and from RUN, never from memory. The file
//! `RUN/pods/UID/ready` is written last, so a sandbox without it was never whole. Methods are safe to call again
//! after any crash; the engine has at most one action per key in flight. Blocking work runs in the blocking pool.

mod adopt;
mod claim;
mod containers;
mod teardown;

pub use adopt::Adopted;
pub use teardown::teardown;

use crate::cgroup::{CgroupError, Tree};
use crate::container::{self, About, PrepareError};
use crate::image::{Credential, Image, ImageConfig, ImageError, ImageStore};
use crate::layout::Layout;
use crate::names::{self, HostNames};
use crate::net::{HostPort, Network, NetworkConfig};
use crate::shim_client::{self, ShimClient, ShimEvent, SpawnShim};
use crate::volume::Payloads;
use crate::{sandbox, volume};
use claim::{Claim, claim};
use coracle_pod::downward::{Allocatable, PodFacts};
use coracle_pod::objects::Objects;
use coracle_pod::observed::{BootId, Capacity, ImageState, InstanceId, Now, Reason, Stamp};
use coracle_pod::payload;
use coracle_pod::spec::{PodSpec, PodUid};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt::Display;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

/// What a board is given at start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Directories.
    pub layout: Layout,
    /// Names the cgroup tree.
    pub name: String,
    /// The node's name.
    pub node_name: String,
    /// `coracle-shim`.
    pub shim: PathBuf,
    /// `pids.max` of a pod and of each container.
    pub pids_max: u64,
    /// Pods at most.
    pub pods_max: usize,
    /// Bytes of a log file before it is rotated.
    pub log_bytes_max: u64,
    /// Log files per container.
    pub log_files_max: u32,
    /// Cluster DNS servers.
    pub cluster_dns: Vec<IpAddr>,
    /// `cluster.local`.
    pub cluster_domain: String,
    /// The pods' network.
    pub network: NetworkConfig,
    /// Images and registries.
    pub images: ImageConfig,
}

/// An action that failed, in the kubelet's words.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ActionError {
    /// The kubelet's reason.
    pub reason: Reason,
    /// One line.
    pub message: String,
}

impl From<PrepareError> for ActionError {
    fn from(error: PrepareError) -> ActionError {
        ActionError { reason: error.reason, message: error.message }
    }
}

fn because<E: Display>(reason: Reason) -> impl Fn(E) -> ActionError {
    move |error| ActionError { reason, message: error.to_string() }
}

/// A board that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No cgroups for pods.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// No network for pods.
    #[error(transparent)]
    Network(#[from] crate::net::NetError),
    /// No image store.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A directory or a file of its own.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The name is taken.
    #[error(
        "the name {name:?} is used by {by}: give each agent of this machine its own, as name = \"…\" in its configuration"
    )]
    NameInUse {
        /// `name` of the configuration.
        name: String,
        /// Who has it.
        by: String,
    },
    /// The kernel lacks what every pod needs.
    #[error("{0}")]
    Unfit(String),
    /// Mounts of the run directory.
    #[error(transparent)]
    Sandbox(#[from] sandbox::SandboxError),
}

/// `RUN/pods/UID/ready`.
#[derive(Debug, Serialize, Deserialize)]
struct Ready {
    ips: Vec<IpAddr>,
    since: Stamp,
}

/// The runtime of one board.
#[derive(Debug)]
pub struct Board {
    settings: Settings,
    tree: Tree,
    _claim: Claim,
    network: Network,
    images: Arc<ImageStore>,
    boot: BootId,
    capabilities: u64,
    memory_bytes_total: u64,
    /// The lowest `oom_score_adj` that this process may give.
    oom_score_floor: i32,
    /// Microseconds that the last container's start took; 0 before the first.
    last_start_microseconds: AtomicU64,
}

impl Board {
    /// Opens everything that pods need. Blocking; idempotent.
    pub fn open(settings: Settings) -> Result<Board, OpenError> {
        let layout = &settings.layout;
        crate::doctor::needs().map_err(OpenError::Unfit)?;
        for dir in [
            layout.data.join("pods"),
            layout.data.join("logs"),
            layout.run.join("pods"),
            layout.run.join("rt"),
        ] {
            fs::create_dir_all(&dir).map_err(|source| OpenError::Io { path: dir, source })?;
        }
        let status = read("/proc/self/status")?;
        let field = |name: &str| status.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
        let capabilities = field("CapBnd:").and_then(|hex| u64::from_str_radix(hex, 16).ok()).unwrap_or(0);
        let memory = read("/proc/meminfo")?;
        let memory = memory
            .lines()
            .find_map(|l| l.strip_prefix("MemTotal:")?.trim().split(' ').next()?.parse::<u64>().ok());
        let score = read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
        let may_lower = capabilities >> CAP_SYS_RESOURCE & 1 == 1;
        let tree = Tree::open(&settings.name)?;
        // Before anything that carries the name is touched, and before anything is mounted: who is refused leaves nothing.
        let claim = claim(&tree, &settings.name, layout)?;
        let network = Network::open(settings.network.clone())?;
        let images = Arc::new(ImageStore::open(settings.images.clone())?);
        hold_helper(layout)?;
        Ok(Board {
            _claim: claim,
            tree,
            network,
            images,
            boot: BootId(read("/proc/sys/kernel/random/boot_id")?.trim().into()),
            capabilities,
            memory_bytes_total: memory.unwrap_or(0) * 1024,
            oom_score_floor: if may_lower { -1000 } else { score },
            last_start_microseconds: AtomicU64::new(0),
            settings,
        })
    }

    /// As given at start.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The images.
    pub fn images(&self) -> &Arc<ImageStore> {
        &self.images
    }

    /// The cgroups.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// What its pods can have together.
    pub fn capacity(&self) -> Capacity {
        // A kernel that does not say how much it has is not held to it.
        let online = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
        let cpus = online.and_then(|count| u64::try_from(count).ok()).unwrap_or(u64::MAX / 1000);
        let memory_bytes = if self.memory_bytes_total == 0 { u64::MAX } else { self.memory_bytes_total };
        let pods = u64::try_from(self.settings.pods_max).unwrap_or(u64::MAX);
        Capacity { pods, cpu_millis: cpus.saturating_mul(1000), memory_bytes }
    }

    /// The clocks.
    pub fn now(&self) -> Now {
        Now { monotonic: boottime(), boot: self.boot.clone(), wall: jiff::Timestamp::now() }
    }

    /// This moment.
    pub fn stamp(&self) -> Stamp {
        let now = self.now();
        Stamp { boot: now.boot, monotonic: now.monotonic, wall: now.wall }
    }

    fn stamp_of(&self, stamp: &coracle_shim::clock::Stamp, boot: &str) -> Stamp {
        let nanoseconds = i32::try_from(stamp.wall_nanoseconds).unwrap_or(0);
        let wall =
            jiff::Timestamp::new(stamp.wall_seconds, nanoseconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        Stamp { boot: BootId(boot.into()), monotonic: stamp.boottime, wall }
    }

    /// What is known of an instance; its id is known even when nothing else is.
    pub fn about(&self, uid: &PodUid, instance: &InstanceId) -> About {
        container::about(&self.settings.layout, uid, instance).unwrap_or_else(|| About {
            container_id: container::container_id(uid, instance),
            image_id: String::new(),
            stop_signal: None,
        })
    }

    /// How long the last container took from order to running program: preparation, shim and helper.
    pub fn last_start(&self) -> Duration {
        Duration::from_micros(self.last_start_microseconds.load(Ordering::Relaxed))
    }

    /// The board's own address towards the outside, if it has one: the source that a route would choose. Nothing is
    /// sent. Quick.
    pub fn host_ips(&self) -> Vec<IpAddr> {
        /// TEST-NET-1 (RFC 5737): an address that is never the board's own.
        const OUTSIDE: (&str, u16) = ("192.0.2.1", 9);
        let chosen = || -> io::Result<IpAddr> {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(OUTSIDE)?;
            Ok(socket.local_addr()?.ip())
        };
        // A board without a route outside has no such address.
        chosen().into_iter().collect()
    }

    // ---- images ----

    /// Whether an image is here. Blocking, briefly.
    pub fn image_state(&self, reference: &str) -> ImageState {
        match self.images.resolve(reference) {
            Ok(Some(image)) => state_of(&image),
            Ok(None) => ImageState::Absent,
            Err(error) => {
                tracing::debug!(reference, %error, "image not resolved");
                ImageState::Absent
            }
        }
    }

    /// Pulls an image, resuming what an earlier attempt left. `credentials` are tried first, then the credential files.
    pub async fn pull(&self, reference: &str, credentials: &[Credential]) -> Result<ImageState, ActionError> {
        let pulled = self.images.pull(reference, credentials, |_| {}).await;
        let image = pulled.map_err(|e| ActionError { reason: e.reason(), message: e.to_string() })?;
        Ok(state_of(&image))
    }

    // ---- sandbox ----

    /// Cgroup, namespaces, network, volumes, names and shim. A failure leaves nothing behind.
    pub async fn create_sandbox(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        objects: &Objects,
    ) -> Result<(Vec<IpAddr>, ShimClient, mpsc::Receiver<ShimEvent>), ActionError> {
        match self.make_sandbox(pod, objects).await {
            Ok(made) => Ok(made),
            Err(error) => match self.stop_sandbox(pod).await {
                Ok(()) => Err(error),
                Err(second) => Err(ActionError {
                    reason: error.reason,
                    message: format!("{error}; and cleaning up failed too: {second}"),
                }),
            },
        }
    }

    async fn make_sandbox(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        objects: &Objects,
    ) -> Result<(Vec<IpAddr>, ShimClient, mpsc::Receiver<ShimEvent>), ActionError> {
        let failed = Reason::FailedCreatePodSandBox;
        let (board, spec) = (self.clone(), pod.clone());
        blocking(move || board.tree.create_pod(&spec, board.settings.pids_max))
            .await
            .map_err(because(failed))?;
        let (board, spec, files) = (self.clone(), pod.clone(), self.payloads(pod, objects)?);
        let (ips, shim) =
            tokio::join!(blocking(move || board.make_namespaces(&spec, &files)), self.spawn_shim(pod));
        let ips = ips?;
        let (client, events) = shim.map_err(because(failed))?;
        let layout = &self.settings.layout;
        if pod.share_process_namespace {
            let file = layout.pod_run(&pod.uid).join("pid");
            shim_client::pause(&self.settings.shim, &file, &self.tree.shim_procs(&pod.uid))
                .await
                .map_err(because(failed))?;
        }
        let ready = Ready { ips: ips.clone(), since: self.stamp() };
        let file = layout.pod_run(&pod.uid).join("ready");
        let text = serde_json::to_vec(&ready).expect("addresses and times serialize");
        fs::write(&file, text).map_err(because(failed))?;
        Ok((ips, client, events))
    }

    /// Writes what has changed in volumes that the board writes. The pod's sandbox is there.
    pub async fn update_volumes(
        self: &Arc<Board>,
        pod: &Arc<PodSpec>,
        objects: &Objects,
    ) -> Result<(), ActionError> {
        let (board, spec, files) = (self.clone(), pod.clone(), self.payloads(pod, objects)?);
        blocking(move || volume::write(&board.settings.layout, &spec, &files))
            .await
            .map_err(because(Reason::FailedMount))
    }

    fn payloads(&self, pod: &PodSpec, objects: &Objects) -> Result<Payloads, ActionError> {
        let files = payload::payloads(pod, objects, &self.facts(Vec::new()));
        let files = files.into_iter().map(|(volume, files)| match files {
            Ok(files) => Ok((volume, files)),
            Err(error) => Err(ActionError {
                reason: Reason::FailedMount,
                message: format!("MountVolume.SetUp failed for volume {volume:?} : {error}"),
            }),
        });
        files.collect()
    }

    /// For the downward API.
    pub fn facts(&self, pod_ips: Vec<IpAddr>) -> PodFacts {
        let capacity = self.capacity();
        PodFacts {
            node_name: self.settings.node_name.clone(),
            host_ips: self.host_ips(),
            pod_ips,
            allocatable: Allocatable {
                cpu_millis: capacity.cpu_millis,
                memory_bytes: capacity.memory_bytes,
                ephemeral_storage_bytes: disk_bytes(&self.settings.layout.data),
            },
        }
    }

    fn make_namespaces(&self, pod: &PodSpec, files: &Payloads) -> Result<Vec<IpAddr>, ActionError> {
        let layout = &self.settings.layout;
        let failed = Reason::FailedCreatePodSandBox;
        volume::set_up(layout, pod, files).map_err(because(Reason::FailedMount))?;
        let names = self.host_names();
        sandbox::create(layout, pod, &names::hostname(pod, &names)).map_err(because(failed))?;
        let ips = match sandbox::namespace(layout, pod, "net") {
            Some(netns) => {
                self.network.attach(&pod.uid, &netns, &host_ports(pod)).map_err(because(failed))?
            }
            None => Vec::new(),
        };
        sandbox::write_names(layout, pod, &ips, &names).map_err(because(failed))?;
        Ok(ips)
    }

    async fn spawn_shim(
        &self,
        pod: &PodSpec,
    ) -> Result<(ShimClient, mpsc::Receiver<ShimEvent>), shim_client::ShimError> {
        let layout = &self.settings.layout;
        shim_client::spawn(SpawnShim {
            binary: &self.settings.shim,
            run: &layout.pod_run(&pod.uid),
            data: &layout.pod_data(&pod.uid),
            logs: &layout.logs_of(pod),
            helper: &layout.helper(),
            log_max_bytes: self.settings.log_bytes_max,
            log_max_files: self.settings.log_files_max,
            grace: pod.termination_grace.min(SHUTDOWN_GRACE_MAX),
            cgroup_procs: &self.tree.shim_procs(&pod.uid),
        })
        .await?;
        ShimClient::connect(&layout.shim_socket(&pod.uid)).await
    }

    /// The board's own name files, read anew each time: they change with the network that it is on.
    fn host_names(&self) -> HostNames {
        /// systemd-resolved's list of real servers; its stub at 127.0.0.53 is out of a pod's reach.
        const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";
        // A board without these files has no names to pass on.
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let resolv_conf = text("/etc/resolv.conf");
        let stub = resolv_conf.contains("nameserver 127.0.0.53");
        let hostname = nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned());
        HostNames {
            hostname: hostname.unwrap_or_else(|_| self.settings.node_name.clone()),
            hosts: text("/etc/hosts"),
            resolv_conf: if stub { text(RESOLVED) } else { resolv_conf },
            cluster_dns: self.settings.cluster_dns.clone(),
            cluster_domain: self.settings.cluster_domain.clone(),
        }
    }

    /// Kills what lives and undoes [`Board::create_sandbox`]; volumes, writable layers and logs stay. Idempotent.
    pub async fn stop_sandbox(self: &Arc<Board>, pod: &Arc<PodSpec>) -> Result<(), ActionError> {
        let (board, uid) = (self.clone(), pod.uid.clone());
        blocking(move || board.undo_sandbox(&uid)).await.map_err(because(Reason::FailedKillPod))
    }

    fn undo_sandbox(&self, uid: &PodUid) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let layout = &self.settings.layout;
        // First of all, so that a crash in the middle is seen as a sandbox that is not whole.
        match fs::remove_file(layout.pod_run(uid).join("ready")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
            _ => {}
        }
        self.tree.kill_pod(uid)?;
        self.network.detach(uid)?;
        sandbox::remove(layout, uid)?;
        self.tree.remove_pod(uid)?;
        Ok(())
    }

    /// Removes all that is left of a pod: volumes, writable layers, exit records, logs. Idempotent.
    pub async fn remove_pod(self: &Arc<Board>, uid: &PodUid) -> Result<(), ActionError> {
        let (board, uid) = (self.clone(), uid.clone());
        blocking(move || {
            volume::remove_all(&board.settings.layout, &uid).map_err(because(Reason::FailedKillPod))?;
            let layout = &board.settings.layout;
            let mut dirs = vec![layout.pod_data(&uid)];
            let logs = layout.data.join("logs");
            dirs.extend(
                names_in(&logs)
                    .into_iter()
                    .filter(|n| n.ends_with(&format!("_{}", uid.0)))
                    .map(|n| logs.join(n)),
            );
            dirs.iter().try_for_each(|dir| sandbox::remove_dir(dir)).map_err(because(Reason::FailedKillPod))
        })
        .await
    }

    /// Everything of a pod that nobody knows. Idempotent.
    pub async fn erase(self: &Arc<Board>, uid: &PodUid) -> Result<(), ActionError> {
        let (board, unknown) = (self.clone(), uid.clone());
        blocking(move || board.undo_sandbox(&unknown)).await.map_err(because(Reason::FailedKillPod))?;
        self.remove_pod(uid).await
    }

    /// Frees addresses, links and rules of pods that are not `known`.
    pub async fn reconcile_network(self: &Arc<Board>, known: &BTreeSet<PodUid>) -> Result<(), ActionError> {
        let (board, known) = (self.clone(), known.clone());
        blocking(move || board.network.reconcile(&known))
            .await
            .map_err(because(Reason::FailedCreatePodSandBox))
    }

    /// Pods of which anything lies on the board.
    pub fn residues(&self) -> BTreeSet<PodUid> {
        let layout = &self.settings.layout;
        let mut found = self.tree.pods();
        for dir in [layout.data.join("pods"), layout.run.join("pods")] {
            found.extend(names_in(&dir).into_iter().map(PodUid));
        }
        let logs = names_in(&layout.data.join("logs"));
        found.extend(logs.iter().filter_map(|name| name.rsplit_once('_')).map(|(_, uid)| PodUid(uid.into())));
        found
    }
}

const CAP_SYS_RESOURCE: u32 = 24;
/// A pod's grace when the machine goes down, at most: systemd kills what is left after 90 s.
const SHUTDOWN_GRACE_MAX: Duration = Duration::from_secs(60);

/// Runs `work` in the blocking pool.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("blocking work does not panic")
}

fn state_of(image: &Image) -> ImageState {
    let user = image.config.config().as_ref().and_then(|c| c.user().clone()).unwrap_or_default();
    ImageState::Present { id: image.id.clone(), repo_digest: image.repo_digest.clone(), user }
}

fn host_ports(pod: &PodSpec) -> Vec<HostPort> {
    let ports = pod.containers.iter().flat_map(|c| &c.ports);
    let mapped = ports.filter_map(|p| {
        Some(HostPort {
            protocol: p.protocol,
            host_ip: p.host_ip,
            host_port: p.host_port?,
            container_port: p.container_port,
        })
    });
    mapped.collect()
}

/// Of the file system that pods write to; 0 when it does not say.
fn disk_bytes(dir: &Path) -> u64 {
    rustix::fs::statvfs(dir).map(|disk| disk.f_blocks.saturating_mul(disk.f_frsize)).unwrap_or(0)
}

fn boottime() -> Duration {
    coracle_shim::clock::Stamp::now().boottime
}

fn read(path: &str) -> Result<String, OpenError> {
    fs::read_to_string(path).map_err(|source| OpenError::Io { path: path.into(), source })
}

/// Names in a directory; none when it is not there. Unreadable names are none of ours.
fn names_in(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.filter_map(Result::ok).filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Binds this very binary read-only at `RUN/rt/coracle`: helpers are started from there, so that a container which
/// gets at `/proc/PID/exe` of one cannot overwrite the agent (CVE-2019-5736), and shims have one
/// path to call whatever happens to the file on disk until the agent is started again. Idempotent.
fn hold_helper(layout: &Layout) -> Result<(), OpenError> {
    use nix::mount::{MsFlags, mount};
    let path = layout.helper();
    let failed = |source: io::Error| OpenError::Io { path: path.clone(), source };
    sandbox::unmount_below(&path)?;
    fs::File::create(&path).map_err(failed)?;
    let bound =
        mount(Some("/proc/self/exe"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>).and_then(|()| {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
            mount(None::<&str>, &path, None::<&str>, flags, None::<&str>)
        });
    bound.map_err(|e| failed(e.into()))
}
