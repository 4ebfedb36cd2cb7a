//! Prints threads and resident memory after open and after 300 commits: `rss DIR`.
use coracle_store::{Batch, Record, Store};

#[derive(serde::Serialize, serde::Deserialize)]
struct Row(Vec<u8>);

impl Record for Row {
    const KIND: &'static str = "row";
    const VERSION: u16 = 1;
    const EXPORTED: bool = false;
}

#[expect(clippy::print_stdout, reason = "it is a measurement")]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args().nth(1).ok_or("usage: rss DIR")?;
    let say = |when: &str| -> std::io::Result<()> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let lines: Vec<&str> =
            status.lines().filter(|l| l.starts_with("VmRSS") || l.starts_with("Threads")).collect();
        println!("{when}: {}", lines.join(", "));
        Ok(())
    };
    say("start")?;
    let store = Store::open(dir.as_ref(), None)?.store;
    say("open")?;
    let start = std::time::Instant::now();
    for n in 0..300 {
        let mut batch = Batch::new();
        batch.put(&format!("k{}", n % 30), &Row(vec![n as u8; 300]));
        store.commit(batch)?;
    }
    println!("{:?} a commit", start.elapsed() / 300);
    say("300 commits")?;
    Ok(())
}
