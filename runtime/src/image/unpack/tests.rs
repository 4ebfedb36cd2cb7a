//! Honest layers are kept in every detail; hostile ones write nothing outside and leave an error.

use super::*;
use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1000);
    header
}

/// An entry whose name is put into the header as it is: the tar crate would refuse the hostile ones.
fn raw(tar: &mut Vec<u8>, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) {
    let mut header = header(kind, content.len() as u64, 0o4755);
    let gnu = header.as_gnu_mut().expect("a GNU header");
    gnu.name[..name.len()].copy_from_slice(name.as_bytes());
    gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    tar.extend_from_slice(header.as_bytes());
    tar.extend_from_slice(content);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn end(mut tar: Vec<u8>) -> Vec<u8> {
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// Unpacks below a directory with a witness beside it, which nothing may change.
fn unpack_beside_witness(tar: &[u8]) -> (Result<Unpacked, UnpackError>, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir(dir.path().join("outside")).expect("made");
    std::fs::write(dir.path().join("outside/witness"), "unharmed").expect("written");
    let result = unpack(tar, Compression::None, &dir.path().join("root"));
    let witness = std::fs::read_to_string(dir.path().join("outside/witness")).expect("still there");
    assert_eq!(witness, "unharmed");
    let metadata = std::fs::metadata(dir.path().join("outside/witness")).expect("still there");
    assert_eq!((metadata.nlink(), metadata.mode() & 0o7777, metadata.uid()), (1, 0o644, 0));
    let outside = std::fs::read_dir(dir.path().join("outside")).expect("lists").count();
    let beside = std::fs::read_dir(dir.path()).expect("lists").count();
    assert_eq!((outside, beside), (1, 2), "nothing was made outside the root");
    (result, dir)
}

#[test]
fn every_kind_of_entry_is_kept() {
    use tar::EntryType as T;
    let mut tar = Vec::new();
    raw(&mut tar, T::Directory, "usr/", "", b"");
    raw(&mut tar, T::Regular, "usr/su", "", b"setuid");
    raw(&mut tar, T::Link, "usr/hard", "usr/su", b"");
    raw(&mut tar, T::Symlink, "usr/soft", "/etc/passwd", b"");
    raw(&mut tar, T::Fifo, "usr/fifo", "", b"");
    raw(&mut tar, T::Char, "usr/null", "", b"");
    raw(&mut tar, T::Regular, "a/b/.wh.gone", "", b"");
    raw(&mut tar, T::Regular, "a/c/.wh..wh..opq", "", b"");
    raw(&mut tar, T::Symlink, "run", "a", b"");
    raw(&mut tar, T::Regular, "run/through-a-link", "", b"x");
    // The null device needs its numbers.
    let at = tar.chunks(512).position(|c| c.starts_with(b"usr/null")).expect("there") * 512;
    let mut null = tar::Header::from_byte_slice(&tar[at..at + 512]).clone();
    null.set_device_major(1).and_then(|()| null.set_device_minor(3)).expect("a GNU header");
    null.set_cksum();
    tar[at..at + 512].copy_from_slice(null.as_bytes());
    let (result, dir) = unpack_beside_witness(&end(tar));
    result.expect("an honest layer");
    let root = dir.path().join("root");
    let stat = |name: &str| std::fs::symlink_metadata(root.join(name)).expect(name);
    assert_eq!(stat("usr/su").mode() & 0o7777, 0o4755);
    assert_eq!(stat("usr/su").ino(), stat("usr/hard").ino());
    assert_eq!(stat("usr/su").mtime(), 1000);
    assert_eq!(stat("usr").mtime(), 1000, "set after its files were made");
    assert!(stat("usr/soft").is_symlink() && stat("usr/fifo").file_type().is_fifo());
    assert_eq!(stat("usr/null").rdev(), makedev(1, 3));
    assert!(stat("a/b/gone").file_type().is_char_device() && stat("a/b/gone").rdev() == 0);
    let mut value = [0; 8];
    let length =
        rustix::fs::getxattr(root.join("a/c"), "trusted.overlay.opaque", &mut value).expect("opaque");
    assert_eq!(&value[..length], b"y");
    assert!(root.join("a/through-a-link").exists());
}

#[test]
fn hostile_names_and_links_stay_inside_or_are_refused() {
    use tar::EntryType as T;
    let check = |entries: &[(T, &str, &str)], expected: Option<&str>| {
        let mut tar = Vec::new();
        for (kind, name, link) in entries {
            let content: &[u8] = if *kind == T::Regular { b"evil" } else { b"" };
            raw(&mut tar, *kind, name, link, content);
        }
        let (result, _dir) = unpack_beside_witness(&end(tar));
        match (result, expected) {
            (Ok(_), None) => {}
            (Err(e), Some(part)) => assert!(e.to_string().contains(part), "{entries:?}: {e}"),
            (result, _) => panic!("{entries:?}: {result:?}"),
        }
    };
    check(&[(T::Regular, "../outside/witness", "")], Some("leaves the layer's root"));
    check(&[(T::Regular, "a/../../outside/x", "")], Some("leaves the layer's root"));
    check(&[(T::Regular, "/absolute", "")], None);
    check(&[(T::Symlink, "out", "../outside"), (T::Regular, "out/witness", "")], Some("File exists"));
    check(&[(T::Symlink, "out", "/outside"), (T::Regular, "out/witness", "")], Some("File exists"));
    check(&[(T::Symlink, "w", "../outside/witness"), (T::Regular, "w", "")], None);
    check(&[(T::Symlink, "w", "../outside/witness"), (T::Link, "h", "w"), (T::Regular, "h", "")], None);
    check(&[(T::Link, "h", "../outside/witness")], Some("leaves the layer's root"));
    check(&[(T::Symlink, "d", "../outside"), (T::Link, "h", "d/witness")], Some("File exists"));
    check(&[(T::Symlink, "d", "../outside"), (T::Directory, "d", "")], None);
    check(&[(T::Symlink, "d", "../outside"), (T::Regular, "d/.wh.witness", "")], Some("File exists"));
    check(&[(T::Symlink, "d", "../outside"), (T::Regular, "d/.wh..wh..opq", "")], Some("File exists"));
    check(&[(T::Symlink, "a", "a"), (T::Regular, "a/b", "")], Some("a/b"));
    check(&[(T::Regular, "x/.wh.", "")], Some("whiteout of nothing"));
    check(&[(T::Regular, "x/.wh...", "")], Some("whiteout of nothing"));
    check(&[(T::Char, "whiteout", "")], Some("own whiteout"));
    check(&[(T::Symlink, "empty", "")], Some("link to nothing"));
    check(&[(T::Symlink, "proc", "/proc/self/fd/3"), (T::Regular, "proc/x", "")], Some("Too many levels"));
}

#[test]
fn bombs_and_damage_are_clear_errors() {
    use tar::EntryType as T;
    let check = |tar: Vec<u8>, expected: &str| {
        let (result, _dir) = unpack_beside_witness(&tar);
        let error = result.expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    };
    let sized = |kind: T, size: u64| {
        let mut header = header(kind, size, 0o644);
        header.set_path("big").expect("a name");
        header.set_cksum();
        end(header.as_bytes().to_vec())
    };
    check(sized(T::Regular, 17 << 30), "16 GiB");
    check(sized(T::Regular, 4096), "middle");
    check(sized(T::GNULongName, 1 << 40), "1 MiB in the extension headers");
    check(sized(T::XHeader, 1 << 40), "1 MiB in the extension headers");
    let mut pax = Vec::new();
    raw(&mut pax, T::XHeader, "pax", "", b"13 size=9999\n");
    check(end(pax), "a size in a pax header");
    let mut pax = Vec::new();
    raw(&mut pax, T::XHeader, "pax", "", b"99999999999999999999 path=x\n");
    check(end(pax), "malformed pax header");
    let mut deep = Vec::new();
    let name = format!("{}x", "a/".repeat(200));
    raw(&mut deep, T::XHeader, "pax", "", format!("{} path={name}\n", name.len() + 10).as_bytes());
    raw(&mut deep, T::Regular, "x", "", b"");
    check(end(deep), "128 directories");
    check(vec![0xff; 1024], "");
    let gzip = unpack(
        &b"\x1f\x8bnonsense"[..],
        Compression::Gzip,
        &tempfile::tempdir().expect("a directory").path().join("r"),
    );
    assert!(gzip.is_err());
}

#[test]
fn forged_overlay_marks_are_dropped_and_capabilities_kept() {
    use tar::EntryType as T;
    let record = |name: &str, value: &[u8]| {
        let body = [format!(" SCHILY.xattr.{name}=").as_bytes(), value, b"\n"].concat();
        let mut length = body.len() + 2;
        length = body.len() + length.to_string().len();
        [length.to_string().as_bytes(), &body].concat()
    };
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let mut tar = Vec::new();
    let pax =
        [record("trusted.overlay.redirect", b"/etc"), record("security.capability", &capability)].concat();
    raw(&mut tar, T::XHeader, "pax", "", &pax);
    raw(&mut tar, T::Regular, "ping", "", b"x");
    let (result, dir) = unpack_beside_witness(&end(tar));
    result.expect("unpacks");
    let mut value = [0; 64];
    let path = dir.path().join("root/ping");
    assert!(rustix::fs::getxattr(&path, "trusted.overlay.redirect", &mut value).is_err());
    assert_eq!(
        rustix::fs::getxattr(&path, "security.capability", &mut value).expect("kept"),
        capability.len()
    );
}

/// Random archives of links, directories and files with names from a small set, so that they collide and nest.
#[test]
fn no_random_archive_writes_outside() {
    use tar::EntryType as T;
    let mut seed: u64 = 0x5eed_1234;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let names = [
        "a",
        "b",
        "a/b",
        "b/a",
        "a/b/c",
        "./a",
        "/b",
        "..",
        "a/..",
        "../outside/witness",
        "c",
        "c/witness",
        ".wh.a",
        "a/.wh..wh..opq",
    ];
    let links = [
        "a",
        "/",
        "..",
        "../outside",
        "../outside/witness",
        "/a/b",
        ".",
        "c",
        "/proc/self/root",
        "../../../../../../tmp",
    ];
    let kinds = [T::Regular, T::Directory, T::Symlink, T::Link, T::Fifo, T::Regular, T::Symlink];
    let mut outcomes: BTreeMap<bool, u32> = BTreeMap::new();
    for _ in 0..2000 {
        let mut tar = Vec::new();
        for _ in 0..1 + random(8) {
            let (kind, name, link) =
                (kinds[random(kinds.len())], names[random(names.len())], links[random(links.len())]);
            raw(&mut tar, kind, name, link, if kind == T::Regular { b"evil" } else { b"" });
        }
        let (result, _dir) = unpack_beside_witness(&end(tar));
        *outcomes.entry(result.is_ok()).or_default() += 1;
    }
    assert!(outcomes.len() == 2, "both outcomes happen: {outcomes:?}");
}

/// Each header was within its bound; their attributes together were kept in memory, of however many.
#[test]
fn extension_headers_of_one_entry_have_one_bound() {
    let value = "x".repeat(400 << 10);
    let mut tar = Vec::new();
    for number in 0..3 {
        // "LENGTH KEY=VALUE\n", where LENGTH counts its own six digits too.
        let rest = format!(" SCHILY.xattr.user.n{number}={value}\n");
        raw(&mut tar, tar::EntryType::XHeader, "x", "", format!("{}{rest}", rest.len() + 6).as_bytes());
    }
    raw(&mut tar, tar::EntryType::Regular, "file", "", b"");
    let (result, _dir) = unpack_beside_witness(&end(tar));
    let told = result.expect_err("refused").to_string();
    assert!(told.contains("1 MiB in the extension headers"), "{told}");
}
