//! What the benches make of their measurements.

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use std::fs;
use std::io::{self, Write};
use std::time::Instant;

/// Figures by name; each name ends in its unit.
pub type Figures = Map<String, Value>;

/// The middle one, with two decimals.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
    rounded(middle)
}

/// With two decimals.
pub fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

/// Since then, in milliseconds.
pub fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Memory of a process, its share of what it shares counted in.
pub fn pss_kib(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).context("no Pss")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse()?)
}

/// Milliseconds of CPU of a process and of everything that it has waited for.
pub fn cpu_milliseconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit_once(')').context("stat")?.1.split_whitespace().skip(1);
    // utime, stime, cutime, cstime: fields 14 to 17. USER_HZ is 100 on every architecture that runs this.
    let ticks: u64 = fields.skip(10).take(4).map(|field| field.parse().unwrap_or(0)).sum();
    Ok(ticks as f64 * 10.0)
}

/// Prints what was measured, and adds it to the figures of a file, which is made if need be.
pub fn add(file: &str, mut ours: Figures) -> Result<()> {
    print(&ours)?;
    let mut all: Figures = match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Figures::new(),
        Err(error) => return Err(error.into()),
    };
    all.append(&mut ours);
    Ok(fs::write(file, serde_json::to_string_pretty(&all)? + "\n")?)
}

/// A line each.
pub fn print(figures: &Figures) -> io::Result<()> {
    let mut out = io::stdout();
    figures.iter().try_for_each(|(name, value)| writeln!(out, "{name:<36} {value}"))
}
