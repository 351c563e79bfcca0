//! Files and directories that exist whole or not at all.
//!
//! Everything is written beside its target, under `.NAME.aside` in the same directory, then synced to disk, then
//! renamed into place, then the directory is synced. Whoever fails or is killed on the way leaves the old version as
//! it was, and the next writer of the same target removes what was left aside. One target has one writer at a time;
//! a second one gets [`Error::Busy`].

use crate::error::Error;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

/// Replaces the file at `path` by `bytes`, or leaves it as it was and says why.
pub fn write(path: impl AsRef<Path>, bytes: &[u8]) -> Result<(), Error> {
    let file = FileWriter::create(path)?;
    file.write_at(bytes, 0)?;
    file.commit()
}

/// A file that is being written aside; [`FileWriter::commit`] puts it in place, dropping it discards it.
#[derive(Debug)]
pub struct FileWriter {
    target: PathBuf,
    aside: PathBuf,
    file: File,
    committed: bool,
}

impl FileWriter {
    /// Starts a new version of the file at `path`. A symbolic link is followed: its target is replaced.
    pub fn create(path: impl AsRef<Path>) -> Result<Self, Error> {
        let target = resolve(path.as_ref())?;
        if target.is_dir() {
            return Err(Error::bad_path(&target, "a directory", "a file or a free name"));
        }
        let aside = beside(&target, ".aside")?;
        // Not truncated on opening: another writer may hold it.
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(NO_FOLLOW)
            .open(&aside)
            .map_err(Error::io("create", &aside))?;
        lock(&file, &target)?;
        check_still(&file, &aside, &target)?;
        file.set_len(0).map_err(Error::io("create", &aside))?;
        Ok(Self { target, aside, file, committed: false })
    }

    /// Where the file will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes `bytes` at `offset`; gaps read as zeros.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(Error::io("write", &self.target))
    }

    /// Cuts the file, or fills it up with zeros, to `bytes`.
    pub fn set_len(&self, bytes: u64) -> Result<(), Error> {
        self.file.set_len(bytes).map_err(Error::io("write", &self.target))
    }

    /// Syncs the file, renames it into place and syncs the directory.
    pub fn commit(mut self) -> Result<(), Error> {
        self.file.sync_all().map_err(Error::io("write", &self.target))?;
        fs::rename(&self.aside, &self.target).map_err(Error::io("put in place", &self.target))?;
        self.committed = true;
        sync(parent(&self.target))
    }
}

impl Drop for FileWriter {
    fn drop(&mut self) {
        if !self.committed {
            // The error that brought us here is the one to report; what stays is removed by the next writer.
            let _ = fs::remove_file(&self.aside);
        }
    }
}

/// A directory that is being written aside; [`DirWriter::commit`] puts it in place, dropping it discards it.
///
/// Replacing an existing directory keeps the old one until the new one is complete and on disk. On Linux the two are
/// exchanged in one step; where the file system cannot do that, the old one is moved to `.NAME.old` first, and
/// [`restore`] brings it back if the process dies between the two steps.
#[derive(Debug)]
pub struct DirWriter {
    target: PathBuf,
    aside: PathBuf,
    committed: bool,
    // Holds the lock for as long as the writer lives.
    _lock: File,
}

impl DirWriter {
    /// Starts a new version of the directory `target`, whose parent must exist. A symbolic link is followed.
    pub fn create(target: impl AsRef<Path>) -> Result<Self, Error> {
        restore(target.as_ref())?;
        let target = resolve(target.as_ref())?;
        if target.exists() && !target.is_dir() {
            return Err(Error::bad_path(&target, "a file", "a directory or a free name"));
        }
        let aside = beside(&target, ".aside")?;
        remove_stale(&aside, &target)?;
        fs::create_dir(&aside).map_err(Error::io("create", &aside))?;
        let dir = File::open(&aside).map_err(Error::io("open", &aside))?;
        lock(&dir, &target)?;
        Ok(Self { target, aside, committed: false, _lock: dir })
    }

    /// The directory to write into until [`DirWriter::commit`].
    pub fn path(&self) -> &Path {
        &self.aside
    }

    /// Where the directory will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes one file, `relative` to the directory; folders on the way are created.
    pub fn write(&self, relative: impl AsRef<Path>, bytes: &[u8]) -> Result<(), Error> {
        let relative = relative.as_ref();
        if relative.components().any(|c| !matches!(c, Component::Normal(_))) {
            return Err(Error::bad_path(relative, "not a plain relative path", "one that stays inside its directory"));
        }
        let path = self.aside.join(relative);
        let folder = parent(&path);
        fs::create_dir_all(folder).map_err(Error::io("create", folder))?;
        fs::write(&path, bytes).map_err(Error::io("write", &path))
    }

    /// Syncs every file and folder, puts the directory in place and removes the old one.
    pub fn commit(mut self) -> Result<(), Error> {
        sync_tree(&self.aside)?;
        put_in_place(&self.aside, &self.target)?;
        self.committed = true;
        sync(parent(&self.target))
    }
}

impl Drop for DirWriter {
    fn drop(&mut self) {
        if !self.committed {
            // As for files: what stays is removed by the next writer.
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

/// Brings back a directory whose replacement was cut short between its two steps (see [`DirWriter`]). To be called
/// before a directory that a [`DirWriter`] maintains is read; does nothing in the usual case.
pub fn restore(target: impl AsRef<Path>) -> Result<(), Error> {
    let target = target.as_ref();
    // A link that leads nowhere exists too, and is not ours to replace.
    if fs::symlink_metadata(target).is_ok() {
        return Ok(());
    }
    let old = beside(target, ".old")?;
    if !old.is_dir() {
        return Ok(());
    }
    fs::rename(&old, target).map_err(Error::io("restore", target))?;
    sync(parent(target))
}

/// `O_NOFOLLOW`: a link planted under the name of the aside file must not be written through.
#[cfg(target_os = "linux")]
const NO_FOLLOW: i32 = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
#[cfg(not(target_os = "linux"))]
const NO_FOLLOW: i32 = 0;

fn put_in_place(aside: &Path, target: &Path) -> Result<(), Error> {
    let old = beside(target, ".old")?;
    if !target.exists() {
        fs::rename(aside, target).map_err(Error::io("put in place", target))?;
    } else if exchange(aside, target).map_err(Error::io("put in place", target))? {
        // The aside name now holds the old version. Should it stay, the next writer removes it.
        let _ = fs::remove_dir_all(aside);
    } else {
        replace_in_two_steps(aside, target, &old)?;
    }
    if old.is_dir() {
        let _ = fs::remove_dir_all(&old);
    }
    Ok(())
}

/// Exchanges two directories in one step; false where the file system or the kernel cannot.
#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> io::Result<bool> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    use rustix::io::Errno;
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(true),
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> io::Result<bool> {
    Ok(false)
}

fn replace_in_two_steps(aside: &Path, target: &Path, old: &Path) -> Result<(), Error> {
    if old.is_dir() {
        fs::remove_dir_all(old).map_err(Error::io("remove", old))?;
    }
    fs::rename(target, old).map_err(Error::io("set aside", target))?;
    fs::rename(aside, target).map_err(|error| {
        let _ = fs::rename(old, target);
        Error::io("put in place", target)(error)
    })
}

/// Removes what a killed writer left behind, unless a living one holds it.
fn remove_stale(aside: &Path, target: &Path) -> Result<(), Error> {
    let Ok(kind) = fs::symlink_metadata(aside) else { return Ok(()) };
    if !kind.is_dir() {
        return fs::remove_file(aside).map_err(Error::io("remove", aside));
    }
    let dir = File::open(aside).map_err(Error::io("open", aside))?;
    lock(&dir, target)?;
    fs::remove_dir_all(aside).map_err(Error::io("remove", aside))
}

/// Some file systems have no locks; there a second writer at the same time is the user's to avoid.
fn lock(file: &File, target: &Path) -> Result<(), Error> {
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::Busy { path: target.to_path_buf() }),
        Ok(()) | Err(TryLockError::Error(_)) => Ok(()),
    }
}

/// The writer that held the lock before may have put this very file in place in the meantime; it must not be emptied.
fn check_still(file: &File, aside: &Path, target: &Path) -> Result<(), Error> {
    let held = file.metadata().map_err(Error::io("create", aside))?;
    match fs::symlink_metadata(aside) {
        Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => Ok(()),
        _ => Err(Error::Busy { path: target.to_path_buf() }),
    }
}

/// Syncs all files below `dir`, then the folders from the inside out. Links are left alone.
fn sync_tree(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(Error::io("read", dir))? {
        let entry = entry.map_err(Error::io("read", dir))?;
        let (path, kind) = (entry.path(), entry.file_type().map_err(Error::io("read", dir))?);
        if kind.is_dir() {
            sync_tree(&path)?;
        } else if kind.is_file() {
            sync(&path)?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), Error> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io("sync", path))
}

/// Follows links when there is something at `path`, so that what is replaced is the thing itself.
fn resolve(path: &Path) -> Result<PathBuf, Error> {
    if path.exists() { path.canonicalize().map_err(Error::io("resolve", path)) } else { Ok(path.to_path_buf()) }
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn beside(path: &Path, suffix: &str) -> Result<PathBuf, Error> {
    let Some(name) = path.file_name() else {
        return Err(Error::bad_path(path, "not the name of something", "a name inside a directory"));
    };
    let mut aside = OsString::from(".");
    aside.push(name);
    aside.push(suffix);
    Ok(path.with_file_name(aside))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_steps_replace_and_restore() {
        let root = tempfile::tempdir().unwrap();
        let (target, old) = (root.path().join("m"), root.path().join(".m.old"));
        let aside = root.path().join(".m.aside");
        for (dir, text) in [(&target, "1"), (&aside, "2"), (&old, "0")] {
            fs::create_dir(dir).unwrap();
            fs::write(dir.join("a"), text).unwrap();
        }
        replace_in_two_steps(&aside, &target, &old).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"2");
        assert_eq!(fs::read(old.join("a")).unwrap(), b"1");
        // Killed between the two renames: only the old one is left.
        fs::remove_dir_all(&target).unwrap();
        restore(&target).unwrap();
        assert_eq!(fs::read(target.join("a")).unwrap(), b"1");
        assert!(!old.exists());
    }

    #[test]
    fn a_failed_second_step_brings_the_old_one_back() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("m");
        fs::create_dir(&target).unwrap();
        let error = replace_in_two_steps(&root.path().join("gone"), &target, &root.path().join(".m.old")).unwrap_err();
        assert!(error.to_string().contains("put in place"), "{error}");
        assert!(target.is_dir());
    }
}
