//! kubectl's way of writing: columns three blanks apart, ages of one or two units.

use std::io::{self, Write};

/// Writes to standard output; a reader who has gone away (`| head`) is the end and no error.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(visible(text).as_bytes()).and_then(|()| out.flush())
}

/// Control characters in caret notation. Messages are partly the containers' own words, and those must not steer the
/// terminal of who reads them (CVE-2021-25743).
fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            c if c.is_ascii_control() => out.extend(['^', char::from(c as u8 ^ 0x40)]),
            '\u{80}'..='\u{9f}' => out.extend(c.escape_default()),
            c => out.push(c),
        }
    }
    out
}

/// Rows under a heading, each column as wide as its widest cell.
pub(crate) fn columns(rows: &[Vec<String>]) -> String {
    Columns::default().lines(rows)
}

/// A table that is printed as its rows come: a column is as wide as its widest cell so far.
#[derive(Debug, Default)]
pub(crate) struct Columns(Vec<usize>);

impl Columns {
    /// Whether nothing was printed yet.
    pub(crate) fn is_new(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn lines(&mut self, rows: &[Vec<String>]) -> String {
        for row in rows {
            self.0.resize(self.0.len().max(row.len()), 0);
            for (width, cell) in self.0.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut text = String::new();
        for row in rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&self.0) {
                line += &format!("{cell:<width$}   ");
            }
            text += line.trim_end();
            text.push('\n');
        }
        text
    }
}

/// `duration.HumanDuration` of apimachinery: `5s`, `3m20s`, `26h`, `3d4h`, `400d`.
pub(crate) fn age(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let two = |big: i64, big_unit: &str, small: i64, small_unit: &str| match small {
        0 => format!("{big}{big_unit}"),
        small => format!("{big}{big_unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, "m", seconds % 60, "s"),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, "h", minutes % 60, "m"),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, "d", hours % 24, "h"),
        691_200..63_072_000 => format!("{days}d"),
        63_072_000..252_288_000 => two(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// `10MiB`, `1.5GiB`: bytes for people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64 / 1024.0;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    format!("{value:.1}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_container_says_does_not_steer_the_terminal() {
        assert_eq!(visible("a\tb\n\u{1b}[2J\r\u{7f}\0\u{9b}31mü\n"), "a\tb\n^[[2J^M^?^@\\u{9b}31mü\n");
    }

    #[test]
    fn ages_read_as_kubectl_writes_them() {
        let check = |seconds, expected: &str| assert_eq!(age(seconds), expected);
        check(-5, "0s");
        check(119, "119s");
        check(120, "2m");
        check(200, "3m20s");
        check(600, "10m");
        check(10_800, "3h");
        check(11_000, "3h3m");
        check(90_000, "25h");
        check(187_200, "2d4h");
        check(864_000, "10d");
        check(94_608_000, "3y");
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["NAME".into(), "READY".into()], vec!["a-long-name".into(), "1/1".into()]];
        assert_eq!(columns(&rows), "NAME          READY\na-long-name   1/1\n");
        let mut table = Columns::default();
        let row = |cell: &str| [vec![cell.to_string(), "x".into()]];
        assert_eq!(table.lines(&row("long")), "long   x\n");
        assert_eq!(table.lines(&row("a")), "a      x\n");
    }
}
