//! The crate is pure, as the core that depends on it: its sources name nothing that does IO or reads a clock.

use std::path::{Path, PathBuf};

#[test]
fn the_sources_name_nothing_impure() {
    let mut seen = 0;
    for path in sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = std::fs::read_to_string(&path).expect("readable");
        seen += 1;
        for banned in [
            "std::fs",
            "std::net",
            "std::env",
            "std::process",
            "std::thread",
            "Instant",
            "SystemTime",
            "Timestamp::now",
            "HashMap",
            "HashSet",
            "Mutex",
            "unsafe ",
        ] {
            assert!(!text.contains(banned), "{} names {banned}", path.display());
        }
    }
    assert!(seen > 20, "the sources were found");
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}
