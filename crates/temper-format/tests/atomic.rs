//! Files and directories exist whole or not at all.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use temper_format::Error;
use temper_format::atomic::{self, DirWriter, FileWriter};

fn listing(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_only_on_commit() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a");
    atomic::write(&path, b"one").unwrap();
    let writer = FileWriter::create(&path).unwrap();
    writer.write_at(b"two!", 0).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"one");
    drop(writer);
    assert_eq!(fs::read(&path).unwrap(), b"one");
    atomic::write(&path, b"2").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"2");
    assert_eq!(listing(root.path()), ["a"]);
}

#[test]
fn what_a_killed_writer_left_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a");
    fs::write(root.path().join(".a.aside"), "much longer than the new file").unwrap();
    atomic::write(&path, b"new").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    let dir = root.path().join("d");
    fs::create_dir_all(root.path().join(".d.aside/sub")).unwrap();
    fs::write(root.path().join(".d.aside/sub/old"), "old").unwrap();
    let writer = DirWriter::create(&dir).unwrap();
    writer.write("x", b"x").unwrap();
    writer.commit().unwrap();
    assert_eq!(listing(&dir), ["x"]);
    assert_eq!(listing(root.path()), ["a", "d"]);
}

#[test]
fn one_writer_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("a");
    let first = FileWriter::create(&path).unwrap();
    assert!(matches!(FileWriter::create(&path), Err(Error::Busy { .. })));
    first.commit().unwrap();
    atomic::write(&path, b"").unwrap();
    let dir = root.path().join("d");
    let first = DirWriter::create(&dir).unwrap();
    first.write("x", b"x").unwrap();
    assert!(matches!(DirWriter::create(&dir), Err(Error::Busy { .. })));
    first.commit().unwrap();
    assert_eq!(listing(&dir), ["x"]);
    drop(DirWriter::create(&dir).unwrap());
}

#[test]
fn a_directory_is_replaced_only_on_commit() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    let writer = DirWriter::create(&dir).unwrap();
    writer.write("sub/a", b"1").unwrap();
    writer.write("b", b"1").unwrap();
    assert!(!dir.exists());
    writer.commit().unwrap();
    assert_eq!(fs::read(dir.join("sub/a")).unwrap(), b"1");

    let writer = DirWriter::create(&dir).unwrap();
    writer.write("c", b"2").unwrap();
    assert_eq!(listing(&dir), ["b", "sub"]);
    drop(writer);
    assert_eq!(listing(&dir), ["b", "sub"]);

    let writer = DirWriter::create(&dir).unwrap();
    // Whatever is written below `path` belongs to the new version, other atomic writes included.
    atomic::write(writer.path().join("c"), b"2").unwrap();
    writer.commit().unwrap();
    assert_eq!(listing(&dir), ["c"]);
    assert_eq!(listing(root.path()), ["d"]);
}

#[test]
fn a_directory_whose_replacement_was_cut_short_comes_back() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    fs::create_dir(root.path().join(".d.old")).unwrap();
    fs::write(root.path().join(".d.old/a"), "1").unwrap();
    let writer = DirWriter::create(&dir).unwrap();
    assert_eq!(listing(&dir), ["a"]);
    writer.write("b", b"2").unwrap();
    writer.commit().unwrap();
    assert_eq!(listing(&dir), ["b"]);
    // An old one beside a complete new one is only litter.
    fs::create_dir(root.path().join(".d.old")).unwrap();
    atomic::restore(&dir).unwrap();
    assert_eq!(listing(&dir), ["b"]);
    DirWriter::create(&dir).unwrap().commit().unwrap();
    assert_eq!(listing(root.path()), ["d"]);
}

/// `/dev/full` answers every write with "no space left on device".
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_keeps_the_old_version_and_is_named() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("d");
    let writer = DirWriter::create(&dir).unwrap();
    writer.write("a", b"old").unwrap();
    writer.commit().unwrap();
    let writer = DirWriter::create(&dir).unwrap();
    symlink("/dev/full", writer.path().join("full")).unwrap();
    let error = writer.write("full", b"new").unwrap_err();
    assert!(error.to_string().contains("full"), "{error}");
    let Error::Io { action: "write", source, .. } = error else { panic!("{error}") };
    assert_eq!(source.kind(), std::io::ErrorKind::StorageFull);
    drop(writer);
    assert_eq!(fs::read(dir.join("a")).unwrap(), b"old");
    assert_eq!(listing(root.path()), ["d"]);
}

#[test]
fn links_are_followed_to_what_they_name() {
    let root = tempfile::tempdir().unwrap();
    let real = root.path().join("real");
    fs::create_dir(&real).unwrap();
    fs::write(real.join("file"), "old").unwrap();
    symlink(&real, root.path().join("dir")).unwrap();
    symlink(real.join("file"), root.path().join("link")).unwrap();
    atomic::write(root.path().join("link"), b"new").unwrap();
    assert_eq!(fs::read(real.join("file")).unwrap(), b"new");
    let writer = DirWriter::create(root.path().join("dir")).unwrap();
    writer.write("other", b"x").unwrap();
    writer.commit().unwrap();
    assert_eq!(listing(&real), ["other"]);
    assert!(fs::symlink_metadata(root.path().join("dir")).unwrap().is_symlink());
    // But not under the name of the aside file, where somebody could plant one.
    symlink(real.join("other"), root.path().join(".planted.aside")).unwrap();
    assert!(atomic::write(root.path().join("planted"), b"y").is_err());
    assert_eq!(fs::read(real.join("other")).unwrap(), b"x");
}

#[test]
fn paths_of_the_wrong_kind() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("f");
    fs::write(&file, "x").unwrap();
    assert!(matches!(DirWriter::create(&file), Err(Error::BadPath { found: "a file", .. })));
    assert!(matches!(atomic::write(root.path(), b""), Err(Error::BadPath { found: "a directory", .. })));
    assert!(matches!(atomic::write(root.path().join("no/where"), b""), Err(Error::Io { action: "create", .. })));
    assert!(matches!(DirWriter::create(root.path().join("no/where")), Err(Error::Io { action: "create", .. })));
    assert!(matches!(atomic::write("..", b""), Err(Error::BadPath { .. })));
    let writer = DirWriter::create(root.path().join("d")).unwrap();
    for bad in ["../x", "/x", "a/../x", "."] {
        assert!(matches!(writer.write(bad, b""), Err(Error::BadPath { .. })), "{bad}");
    }
}
