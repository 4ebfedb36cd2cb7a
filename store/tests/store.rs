//! What the store promises, on a real disk.

use coracle_store::{Batch, RawKind, Record, Store, StoreError};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::Path;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Pod {
    name: String,
    size: Vec<u8>,
}

impl Record for Pod {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 2;
    const EXPORTED: bool = true;

    fn upgrade(version: u16, payload: &[u8]) -> Option<Pod> {
        let name = (version == 1).then(|| serde_json::from_slice(payload).ok())??;
        Some(Pod { name, size: Vec::new() })
    }
}

/// The same kind as an older program wrote it.
#[derive(Serialize, Deserialize)]
struct OldPod(String);

impl Record for OldPod {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 1;
    const EXPORTED: bool = true;
}

/// … and as a newer one will.
#[derive(Debug, Serialize, Deserialize)]
struct NewPod(u64);

impl Record for NewPod {
    const KIND: &'static str = "pod";
    const VERSION: u16 = 3;
    const EXPORTED: bool = true;
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct History(u64);

impl Record for History {
    const KIND: &'static str = "history";
    const VERSION: u16 = 1;
    const EXPORTED: bool = false;
}

fn pod(name: &str) -> Pod {
    Pod { name: name.into(), size: vec![7; 100] }
}

fn put(store: &Store, key: &str, record: &impl Record) {
    let mut batch = Batch::new();
    batch.put(key, record);
    store.commit(batch).expect("commits");
}

fn open(dir: &Path) -> Store {
    Store::open(&dir.join("store"), None).expect("opens").store
}

#[test]
fn records_of_each_kind_and_version_are_read_as_what_they_are() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    put(&store, "a", &pod("a"));
    put(&store, "old", &OldPod("old".into()));
    put(&store, "new", &NewPod(1));
    put(&store, "a", &History(9));
    drop(store);
    let store = open(dir.path());
    assert_eq!(store.get::<Pod>("a").expect("reads"), Some(pod("a")));
    assert_eq!(store.get::<Pod>("old").expect("reads").map(|p| p.name), Some("old".into()));
    assert!(matches!(store.get::<Pod>("new"), Err(StoreError::Newer { version: 3, known: 2, .. })));
    assert_eq!(store.get::<History>("a").expect("reads"), Some(History(9)));
    assert_eq!(store.get::<Pod>("none").expect("reads"), None);
    assert!(matches!(store.all::<Pod>(), Err(StoreError::Newer { version: 3, .. })));
    let mut batch = Batch::new();
    batch.delete::<NewPod>("new");
    store.commit(batch).expect("commits");
    assert_eq!(store.all::<Pod>().expect("scans").records.len(), 2);
    let mut batch = Batch::new();
    batch.delete::<Pod>("a");
    batch.delete::<Pod>("never-there");
    store.commit(batch).expect("commits");
    assert_eq!(store.get::<Pod>("a").expect("reads"), None);
    assert_eq!(store.get::<History>("a").expect("reads"), Some(History(9)), "another kind keeps its own");
}

#[test]
fn a_record_beyond_the_bounds_is_refused_and_nothing_of_its_batch_is_stored() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let mut batch = Batch::new();
    batch.put("small", &pod("small"));
    batch.put("large", &Pod { name: "x".repeat(2 << 20), size: Vec::new() });
    assert!(matches!(store.commit(batch), Err(StoreError::TooLarge { .. })));
    assert_eq!(store.get::<Pod>("small").expect("reads"), None);
    put(&store, "blob", &Pod { name: "y".repeat(1 << 20), size: Vec::new() });
    drop(store);
    assert_eq!(open(dir.path()).get::<Pod>("blob").expect("reads").map(|p| p.name.len()), Some(1 << 20));
}

#[test]
fn a_second_agent_is_told_that_the_store_is_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    let second = Store::open(&dir.path().join("store"), None);
    assert!(matches!(second, Err(StoreError::InUse(_))), "{second:?}");
    drop(store);
    open(dir.path());
}

#[test]
fn a_damaged_store_is_set_aside_whole_and_rebuilt_from_its_export() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    put(&store, "a", &pod("a"));
    put(&store, "b", &pod("b"));
    put(&store, "a", &History(1));
    drop(store);
    let path = dir.path().join("store");
    for round in 0..4 {
        // The check stands for the child that met damage.
        let mut check = std::process::Command::new("false");
        check.env_clear();
        let opened = Store::open(&path, Some(check)).expect("opens");
        assert!(opened.quarantined.as_ref().is_some_and(|q| q.join("db").exists()), "round {round}");
        assert_eq!(opened.restored, 2);
        assert_eq!(opened.store.get::<Pod>("b").expect("reads"), Some(pod("b")));
        assert_eq!(opened.store.get::<History>("a").expect("reads"), None, "history is not exported");
    }
    let kept = fs::read_dir(dir.path()).expect("lists").filter_map(Result::ok);
    let kept = kept.filter(|e| e.file_name().to_string_lossy().contains("damaged")).count();
    assert_eq!(kept, 2, "quarantines are bounded");
}

/// Records may be secrets, and the export was open to every user of the board.
#[test]
fn nobody_else_may_read_what_is_stored() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().expect("a directory");
    let places = ["store", "store.export"].map(|name| dir.path().join(name));
    let open_to_others = || {
        let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode();
        places.iter().filter(|path| mode(path) & 0o077 != 0).collect::<Vec<_>>()
    };
    put(&open(dir.path()), "a", &pod("a"));
    assert_eq!(open_to_others(), Vec::<&std::path::PathBuf>::new(), "a new store");
    for path in &places {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("set");
    }
    let store = open(dir.path());
    assert_eq!(open_to_others(), Vec::<&std::path::PathBuf>::new(), "a store of an older version");
    fs::write(dir.path().join("store.export.tmp"), "left by a crash").expect("written");
    put(&store, "b", &pod("b"));
    assert_eq!(open_to_others(), Vec::<&std::path::PathBuf>::new(), "an export that replaced one");
}

#[test]
fn a_damaged_export_restores_nothing_rather_than_half() {
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(dir.path());
    put(&store, "a", &pod("a"));
    put(&store, "b", &pod("b"));
    drop(store);
    let export = dir.path().join("store.export");
    let text = fs::read(&export).expect("an export");
    let restored = |bytes: &[u8]| {
        fs::write(&export, bytes).expect("written");
        fs::remove_dir_all(dir.path().join("store")).expect("removed");
        Store::open(&dir.path().join("store"), None).expect("opens").restored
    };
    assert_eq!(restored(&text[..text.len() / 2]), 0);
    let mut flipped = text.clone();
    flipped[20] ^= 1;
    assert_eq!(restored(&flipped), 0);
    assert_eq!(restored(&text), 2);
}

#[test]
fn raw_rows_come_back_byte_for_byte_in_order_and_apart_from_records() {
    const OBJECT: RawKind = RawKind { name: "object", version: 1 };
    let dir = tempfile::tempdir().expect("a directory");
    let store = open(&dir.path().join("store"));
    let mut batch = Batch::new();
    for key in ["b", "a", "c"] {
        batch.put_raw(OBJECT, key, &[key.as_bytes(), &[0, 255, 10]].concat());
    }
    batch.delete_raw(OBJECT, "c");
    batch.put("a", &pod("a"));
    store.commit(batch).expect("commits");
    drop(store);
    let store = open(&dir.path().join("store"));
    let mut seen = Vec::new();
    let damaged =
        store.each_raw(OBJECT, |key, bytes| seen.push((key.to_string(), bytes.to_vec()))).expect("reads");
    assert_eq!(seen, [("a".into(), b"a\0\xff\n".to_vec()), ("b".into(), b"b\0\xff\n".to_vec())]);
    assert!(damaged.is_empty());
    let newer = store.each_raw(RawKind { version: 0, ..OBJECT }, |_, _| {});
    assert!(matches!(newer, Err(StoreError::Newer { version: 1, known: 0, .. })), "{newer:?}");

    let mut batch = Batch::new();
    batch.put_raw(OBJECT, "d", &vec![0; coracle_store::VALUE_BYTES_MAX + 1]);
    assert!(matches!(store.commit(batch), Err(StoreError::TooLarge { .. })));
}
