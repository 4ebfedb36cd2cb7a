//! Starting the agent: lock, store, board, engine, sources, node API; and ending it without ending a pod.

use crate::cli::{Place, table};
use crate::cluster::credentials::Credentials;
use crate::cluster::membership;
use crate::config::Config;
use crate::engine::{Engine, Message};
use crate::events::Events;
use crate::exit::StartError;
use crate::node_api::{self, Context};
use crate::request::Request;
use crate::sources::ManifestDirectory;
use crate::{cluster, logging, notify, pressure, runtime, storage};
use anyhow::{Context as _, Result, bail};
use coracle_runtime::board::{Board, Settings};
use coracle_runtime::image::{ImageConfig, InUse, RegistryConfig};
use coracle_runtime::layout::Layout;
use coracle_runtime::net::NetworkConfig;
use coracle_runtime::run_dir;
use coracle_store::Store;
use nix::sys::signal::{SigSet, Signal};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

/// How often the disk is looked at for image garbage collection: statfs alone, nothing is written.
const GC_PERIOD: Duration = Duration::from_secs(300);
/// For work on the disk that is under way when the agent stops.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// Runs the agent until SIGTERM or SIGINT. Pods run on after it.
pub(crate) fn main(place: &Place, config: Option<&Path>) -> Result<()> {
    coracle_store::keep_heap_small();
    // A lease on a manifest that breaks tells with SIGIO, which would end the process. Helpers start with none blocked.
    let mut lease_breaks = SigSet::empty();
    lease_breaks.add(Signal::SIGIO);
    lease_breaks.thread_block().context("block SIGIO")?;
    logging::start();
    let config = Config::load(config)?;
    let (layout, _lock) = take(place.root(&config))?;
    // Before any other thread exists: the store gives zero pages back.
    let store = open_store(&layout)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(run(layout, config, store));
    // A pull that unpacks, or a disk that does not answer, must not keep the agent: what it leaves half-made is cleared
    // at the next start, as after a crash.
    runtime.shutdown_timeout(SHUTDOWN);
    match outcome? {
        End::Stopped => Ok(()),
        End::Membership => {
            // Adopting is what an agent does best: pods do not notice, and the next one is another node from the start.
            info!("this board has joined or left a cluster: the agent starts anew, and pods run on");
            Err(again()?)
        }
    }
}

/// Why an agent ends.
enum End {
    Stopped,
    /// The board has joined a cluster, or left it.
    Membership,
}

/// Becomes this program once more. Returns only what kept it from that.
fn again() -> Result<anyhow::Error> {
    use std::os::unix::process::CommandExt;
    let program = std::env::current_exe().context("find this program")?;
    let error = std::process::Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Ok(anyhow::Error::new(error).context(format!("run {}", program.display())))
}

/// Goes to where the pods' mounts are, makes the directories, and takes the lock: one agent each. Before the process has a
/// second thread.
fn take(root: &Path) -> Result<(Layout, File)> {
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot.into());
    }
    let root = std::path::absolute(root)?;
    let layout = Layout::of_root(&root);
    if let Some(shim) =
        coracle_runtime::join_mounts(&layout).context("go to the mounts of the pods that run")?
    {
        info!(shim, "joined the mount namespace of the pods that run");
        // Once more, from that namespace's mount of the program: the kernel binds none of another.
        return Err(again()?);
    }
    fs::create_dir_all(&layout.data).with_context(|| format!("create {}", layout.data.display()))?;
    run_dir::prepare(&layout).with_context(|| format!("create {}", layout.run.display()))?;
    let lock = lock(&layout)?;
    Ok((layout, lock))
}

/// `coracle teardown`: ends every pod and undoes what the agent made outside its data directory. The store keeps the
/// pods, so an agent that is started again starts them again.
pub(crate) fn teardown(place: &Place, config: Option<&Path>) -> Result<()> {
    let config = Config::load(config)?;
    let (layout, _lock) = take(place.root(&config))?;
    let gone = coracle_runtime::board::teardown(&layout, &config.name, network_config(&layout, &config)?)?;
    let count = gone.len();
    table::print(&format!(
        "{count} pods ended; nothing of the agent is left but {}\n",
        layout.data.display()
    ))?;
    Ok(())
}

/// Whether an agent runs on this directory.
pub(crate) fn is_running(layout: &Layout) -> bool {
    File::open(layout.run.join("lock"))
        .is_ok_and(|file| matches!(file.try_lock(), Err(TryLockError::WouldBlock)))
}

fn lock(layout: &Layout) -> Result<File> {
    let path = layout.run.join("lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StartError::InUse(layout.data.clone()).into()),
        Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("lock {}", path.display())),
    }
}

fn open_store(layout: &Layout) -> Result<Store> {
    let dir = layout.data.join("store");
    let mut check = std::process::Command::new(std::env::current_exe().context("find this program")?);
    check.arg("store-check").arg(&dir);
    let opened = Store::open(&dir, Some(check))?;
    if let Some(path) = &opened.quarantined {
        error!(path = %path.display(), restored = opened.restored, "the store was damaged: set aside, and pods restored from its export");
    }
    Ok(opened.store)
}

/// What the board calls itself: `node_name` of the configuration, or the hostname.
pub(crate) fn node_name(config: &Config) -> String {
    let hostname = nix::unistd::gethostname().ok().and_then(|n| n.into_string().ok()).unwrap_or_default();
    if config.node_name.is_empty() { hostname.to_lowercase() } else { config.node_name.clone() }
}

fn settings(layout: Layout, config: &Config) -> Result<Settings> {
    let this = std::env::current_exe().context("find this program")?;
    let shim = this.with_file_name("coracle-shim");
    if !shim.is_file() {
        bail!("{} is missing: it belongs beside {}", shim.display(), this.display());
    }
    // What a certificate says is who the board is.
    let joined = match config.cluster.kubeconfig {
        None => Credentials::below(&layout.data).node_name(),
        Some(_) => None,
    };
    let node_name = joined.unwrap_or_else(|| node_name(config));
    let registries = config.image.registry.iter().map(|(host, r)| {
        (host.clone(), RegistryConfig { mirrors: r.mirrors.clone(), plain_http: r.plain_http })
    });
    Ok(Settings {
        name: config.name.clone(),
        node_name,
        shim,
        pids_max: config.pod_pids_max,
        pods_max: config.pods_max,
        log_bytes_max: config.log_bytes_max,
        log_files_max: config.log_files_max,
        cluster_dns: config.cluster_dns.clone(),
        cluster_domain: config.cluster_domain.clone(),
        network: network_config(&layout, config)?,
        images: ImageConfig {
            dir: layout.data.join("images"),
            registries: registries.collect(),
            credential_files: config.image.credential_files.clone(),
            pinned: config.image.pinned.clone(),
            gc_high_percent: config.image.gc_high_percent,
            gc_low_percent: config.image.gc_low_percent,
            parallel_layers: config.image.parallel_layers,
        },
        layout,
    })
}

pub(crate) fn network_config(layout: &Layout, config: &Config) -> Result<NetworkConfig> {
    let cidr = &config.network_cidr;
    Ok(NetworkConfig {
        name: config.name.clone(),
        cidr: format!("{}/{}", cidr.address, cidr.prefix).parse().context("network_cidr")?,
        leases: layout.run.join("net").join("leases"),
        mtu: config.network_mtu,
    })
}

async fn run(layout: Layout, config: Config, store: Store) -> Result<End> {
    let settings = settings(layout.clone(), &config)?;
    let node_name = settings.node_name.clone();
    let board = Arc::new(Board::open(settings)?);
    preload(layout.data.join("preload"), &board).await;
    let (ways, link) = cluster::link(&layout, &config).unzip();
    let joined = link.is_some();
    let events = Events::new(node_name, ways.as_ref().map(|ways| ways.events.clone()));
    let (limited, to_measure) = tokio::sync::watch::channel(storage::Limited::default());
    let (engine, inbox) = Engine::open(board.clone(), Arc::new(store), events, ways, limited).await?;
    // Listening before the manifests are read: a change in between is an event and not lost.
    let manifests = layout.data.join("manifests");
    let mut directory =
        ManifestDirectory::open(&manifests).with_context(|| format!("watch {}", manifests.display()))?;
    let files = directory.read();
    inbox.send(Message::Manifests(files)).await.ok().context("the engine is not there")?;
    let socket = layout.run.join("coracle.sock");
    let listener = node_api::listen(&socket).with_context(|| format!("listen at {}", socket.display()))?;
    let context = Context { board: board.clone(), engine: inbox.clone(), started: std::time::Instant::now() };
    tokio::spawn(node_api::serve(listener, context.clone()));
    tokio::spawn(directory.watch(inbox.clone()));
    if let Some(link) = link {
        cluster::start(link, &config, &context);
    }
    tokio::spawn(storage::watch(board.clone(), to_measure, inbox.clone()));
    if config.eviction_memory_available_bytes > 0 {
        tokio::spawn(pressure::watch(config.eviction_memory_available_bytes, inbox));
    }
    tokio::spawn(collect(context));
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    notify::ready();
    info!(root = %layout.data.display(), version = env!("CARGO_PKG_VERSION"), "agent is ready");
    let credentials = Credentials::below(&layout.data);
    credentials.make_dir()?;
    let (mut end, follows) = (End::Stopped, config.cluster.kubeconfig.is_none());
    let stop = async {
        let membership = async {
            if follows {
                match membership::changes(credentials.dir(), joined).await {
                    Ok(()) => return,
                    Err(error) => warn!(%error, "joining and leaving a cluster take a restart of the agent"),
                }
            }
            std::future::pending().await
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            () = membership => end = End::Membership,
        }
    };
    engine.run(stop, notify::Watchdog::asked_for()).await?;
    if matches!(end, End::Stopped) {
        notify::stopping();
        info!("agent stops; pods run on");
    }
    match fs::remove_file(&socket) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e.into()),
        _ => Ok(end),
    }
}

/// Imports what is new in the preload directory, before any pod asks for it.
async fn preload(dir: PathBuf, board: &Arc<Board>) {
    let store = board.images().clone();
    let results = tokio::task::spawn_blocking(move || store.preload(&dir)).await.unwrap_or_default();
    for (path, result) in results {
        match result {
            Ok(names) => info!(path = %path.display(), images = names.join(", "), "preloaded"),
            Err(error) => warn!(path = %path.display(), %error, "not preloaded"),
        }
    }
    coracle_runtime::give_memory_back();
}

/// Frees image space when the disk runs full.
async fn collect(context: Context) {
    let mut ticks = tokio::time::interval(GC_PERIOD);
    loop {
        ticks.tick().await;
        let store = context.board.images().clone();
        let since = store.mark();
        let Ok(ids) = context.ask(Request::ImagesInUse).await else { return };
        let in_use = InUse { ids, since };
        match tokio::task::spawn_blocking(move || store.gc(&in_use)).await {
            Ok(Ok(freed)) if !freed.images.is_empty() => {
                info!(
                    images = freed.images.join(", "),
                    bytes = freed.bytes,
                    "unused images were removed: the disk is full"
                );
                if context.send(Request::ImagesChanged).await.is_err() {
                    return;
                }
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => warn!(%error, "images could not be collected"),
            Err(error) => warn!(%error, "images could not be collected"),
        }
    }
}
