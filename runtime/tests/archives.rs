//! Importing archives that somebody made to harm: one clear error, soon, and nothing left.

use coracle_runtime::image::{ImageConfig, ImageStore};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::File;
use std::io::Write;
use std::path::Path;

fn store(dir: &Path) -> ImageStore {
    ImageStore::open(ImageConfig { dir: dir.into(), ..Default::default() }).expect("opens")
}

fn refused(path: &Path, expected: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let told = store(dir.path()).import(path).expect_err(expected).to_string();
    assert!(told.contains(expected), "{expected}: {told}");
    assert!(told.lines().count() == 1 && !told.contains(|c: char| c.is_control()), "{told:?}");
    for name in ["tmp", "layers", "blobs"] {
        assert_eq!(std::fs::read_dir(dir.path().join(name)).expect("lists").count(), 0, "{expected}: {name}");
    }
}

fn archive(path: &Path, members: &[(&str, &str)]) {
    let mut tar = tar::Builder::new(File::create(path).expect("made"));
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).expect("written");
    }
    tar.finish().expect("written");
}

#[test]
fn what_is_no_archive_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("garbage"), [0x1b; 4096]).expect("written");
    refused(&path("garbage"), "it is no tar archive");
    std::fs::write(path("empty"), "").expect("written");
    refused(&path("empty"), "neither index.json nor manifest.json");
    // It was waited for, by one of the few threads that the agent has for the disk.
    nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("made");
    refused(&path("fifo"), "not a regular file");
    refused(Path::new("/dev/zero"), "not a regular file");
    refused(&path("none"), "No such file");
}

#[test]
fn names_in_an_archive_are_no_paths() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("archive.tar");
    let check = |members: &[(&str, &str)], expected: &str| {
        archive(&path, members);
        refused(&path, expected);
    };
    let index = |digest: &str| {
        format!(
            r#"{{"schemaVersion": 2, "manifests": [{{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "{digest}", "size": 1}}]}}"#
        )
    };
    check(&[("index.json", &index("sha256:../../../etc/passwd"))], "");
    check(&[("index.json", &index(&format!("sha256:{}", "0".repeat(64))))], "it has no \"blobs/sha256/000");
    let saved = r#"[{"Config": "../../../etc/passwd", "RepoTags": ["a:1"], "Layers": ["/etc/passwd"]}]"#;
    check(&[("manifest.json", saved)], "it has no \"../../../etc/passwd\"");
    check(&[("manifest.json", "[]")], "names no image");
    let tags = vec!["\"a:1\""; 2000].join(",");
    check(
        &[("manifest.json", &format!("[{{\"Config\": \"c\", \"RepoTags\": [{tags}], \"Layers\": []}}]"))],
        "more than 1000 images",
    );
    // The same in a directory, where a link would be followed by the kernel.
    let layout = dir.path().join("layout");
    std::fs::create_dir(&layout).expect("made");
    std::os::unix::fs::symlink("/etc/passwd", layout.join("manifest.json")).expect("made");
    refused(&layout, "it has no \"manifest.json\"");
    std::fs::remove_file(layout.join("manifest.json")).expect("removed");
    std::fs::write(layout.join("manifest.json"), saved).expect("written");
    refused(&layout, "it has no \"../../../etc/passwd\"");
}

/// The tar crate takes an extension header whole into memory, of whatever size it says that it is.
#[test]
fn an_extension_header_of_gigabytes_takes_no_memory() {
    let peak = || {
        let text = std::fs::read_to_string("/proc/self/status").expect("status");
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("VmHWM");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number")
    };
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("archive.tar");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut file = File::create(&path).expect("made");
    file.write_all(header.as_bytes()).expect("written");
    file.set_len((1 << 30) + 2048).expect("a sparse file");
    let before = peak();
    refused(&path, "neither index.json nor manifest.json");
    assert!(peak() < before + (64 << 10), "{} KiB, {before} before", peak());
}

/// On a disk of 16 MiB, an archive that is 64 MiB once unzipped.
#[test]
fn a_zipped_bomb_is_refused_before_the_disk_is_full() {
    let dir = tempfile::tempdir().expect("a directory");
    let disk = dir.path().join("disk");
    std::fs::create_dir(&disk).expect("made");
    mount(Some("tmpfs"), &disk, Some("tmpfs"), MsFlags::empty(), Some("size=16m")).expect("root mounts");
    let path = dir.path().join("bomb.tar.gz");
    let mut gzip =
        flate2::write::GzEncoder::new(File::create(&path).expect("made"), flate2::Compression::fast());
    gzip.write_all(&vec![0; 64 << 20]).and_then(|()| gzip.finish()).expect("written");
    let images = store(&disk);
    let told = images.import(&path).map_err(|e| e.to_string());
    let left = std::fs::read_dir(disk.join("tmp")).expect("lists").count();
    umount2(&disk, MntFlags::MNT_DETACH).expect("unmounted");
    assert!(told.as_ref().is_err_and(|e| e.contains("half of the disk's free space")), "{told:?}");
    assert_eq!(left, 0);
}
