//! `coracle doctor`: what `coracle_runtime::doctor` finds, as a table.

use crate::agent::{is_running, network_config};
use crate::cli::{Place, table};
use crate::config::Config;
use crate::exit::StartError;
use anyhow::{Context as _, Result};
use coracle_runtime::doctor::{Finding, Verdict, examine};
use coracle_runtime::layout::Layout;
use std::fs;
use std::path::Path;

/// Prints the table.
///
/// # Errors
/// [`StartError::Unfit`] when pods cannot run here.
pub(crate) fn main(place: &Place, config: Option<&Path>) -> Result<()> {
    let mut findings = Vec::new();
    let config = match Config::load(config) {
        Ok(config) => {
            findings.push(Finding { check: "config", verdict: Verdict::Ok, message: "valid".into() });
            config
        }
        Err(error) => {
            findings.push(Finding { check: "config", verdict: Verdict::Failed, message: error.to_string() });
            Config::default()
        }
    };
    if !nix::unistd::geteuid().is_root() {
        return Err(StartError::NotRoot.into());
    }
    let layout = Layout::of_root(&std::path::absolute(place.root(&config))?);
    let made = make_missing(&layout.data);
    let shim = std::env::current_exe().context("find this program")?.with_file_name("coracle-shim");
    findings.extend(examine(&layout, network_config(&layout, &config)?, &shim));
    let message = if is_running(&layout) { "running" } else { "not running: systemctl start coracle" };
    findings.push(Finding { check: "agent", verdict: Verdict::Ok, message: message.into() });
    if made {
        fs::remove_dir(&layout.data).with_context(|| format!("remove {}", layout.data.display()))?;
    }
    let mut rows = vec![["CHECK", "RESULT", "FINDING"].map(String::from).to_vec()];
    rows.extend(
        findings.iter().map(|f| vec![f.check.to_string(), word(f.verdict).into(), f.message.clone()]),
    );
    table::print(&table::columns(&rows))?;
    match findings.iter().any(|f| f.verdict == Verdict::Failed) {
        true => Err(StartError::Unfit.into()),
        false => Ok(()),
    }
}

/// The data directory for as long as the checks need one; whether it was made. Why it cannot be is a finding.
fn make_missing(dir: &Path) -> bool {
    !dir.exists() && fs::create_dir_all(dir).is_ok()
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Ok => "ok",
        Verdict::Warning => "warning",
        Verdict::Failed => "FAILED",
    }
}
