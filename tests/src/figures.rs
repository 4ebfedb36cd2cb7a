//! What the benches make of their measurements.

use serde_json::{Map, Value};
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

/// A line each.
pub fn print(figures: &Figures) -> io::Result<()> {
    let mut out = io::stdout();
    figures.iter().try_for_each(|(name, value)| writeln!(out, "{name:<36} {value}"))
}
