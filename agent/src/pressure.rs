//! Memory pressure, by the kernel's own alarm: a PSI trigger (Documentation/accounting/psi.rst), never a poll.
//!
//! The trigger says that tasks wait for memory; `MemAvailable` says whether that is because it is used up. Only then the
//! engine is told, and evicts one pod. A kernel without PSI leaves it all to its OOM killer, which goes by
//! `oom_score_adj` and so by QoS class.

use crate::engine::Message;
use coracle_runtime::readiness;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::mpsc;
use tracing::{info, warn};

const FILE: &str = "/proc/pressure/memory";
/// Some task waited 150 ms for memory within a second.
const TRIGGER: &[u8] = b"some 150000 1000000\0";
/// After an eviction the freed memory must show before another pod is looked at. The kernel keeps alarms a window apart;
/// this is longer.
const SETTLE: Duration = Duration::from_secs(10);

/// Tells the engine when less than `threshold_bytes` are available and tasks wait for memory. Runs until it is gone.
pub(crate) async fn watch(threshold_bytes: u64, inbox: mpsc::Sender<Message>) {
    let armed = File::options().read(true).write(true).open(FILE).and_then(|mut file| {
        file.write_all(TRIGGER)?;
        readiness::watch(file, Interest::PRIORITY)
    });
    let file = match armed {
        Ok(file) => file,
        Err(error) => {
            info!(%error, "the kernel offers no memory pressure alarm (psi=1 on its command line): no pod is evicted");
            return;
        }
    };
    loop {
        match file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(error) => return warn!(%error, "the memory pressure alarm is lost: no pod is evicted"),
        }
        let Some(available_bytes) = available() else { continue };
        if available_bytes >= threshold_bytes {
            continue;
        }
        if inbox.send(Message::MemoryShort { available_bytes, threshold_bytes }).await.is_err() {
            return;
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// `MemAvailable` of /proc/meminfo, in bytes.
fn available() -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc/meminfo")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().split(' ').next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_machine_has_memory() {
        assert!(super::available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
