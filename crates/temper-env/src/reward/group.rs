//! Child processes in groups of their own, each of which is ended exactly once.
//!
//! A process id may go to a stranger once its process has been reaped, so a group is only ever signalled while it is on
//! a list of groups whose leader has not been reaped; the list's lock is held meanwhile.
//!
//! A program that is killed can end nobody. So each group has a second member, a shell that waits for the end of a pipe which we hold
//! and never write to, and then kills the group that it is in, itself included.

use std::io;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// The leaders of the groups that run, unless the program is ending.
static GROUPS: Mutex<Groups> = Mutex::new(Groups { leaders: Vec::new(), closed: false });

struct Groups {
    leaders: Vec<u32>,
    closed: bool,
}

fn groups() -> MutexGuard<'static, Groups> {
    GROUPS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Kills the process groups of all reward commands that run, and lets none start any more: for a program that is about
/// to exit without dropping its [`Scorer`](crate::Scorer)s. Where there are no process groups (off Unix), it only stops
/// the starting; a command there ends when its input is closed, if it reads it.
pub fn kill_children() {
    let mut groups = groups();
    groups.closed = true;
    groups.leaders.drain(..).for_each(signal);
}

#[cfg(unix)]
fn signal(leader: u32) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(leader) = Pid::from_raw(leader.cast_signed()) {
        let _ = kill_process_group(leader, Signal::KILL);
    }
}

#[cfg(not(unix))]
fn signal(_leader: u32) {}

/// Starts the shell that ends a leader's group once we are gone. Where it cannot be started, only that case is lost.
#[cfg(unix)]
fn watch(leader: u32) -> Option<Child> {
    use std::os::unix::process::CommandExt;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", "read -r gone; kill -KILL 0"]).process_group(leader.cast_signed());
    shell.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()
}

#[cfg(not(unix))]
fn watch(_leader: u32) -> Option<Child> {
    None
}

/// A child and its descendants.
pub(super) struct Group {
    child: Child,
    /// The shell that waits in the group for our end.
    watcher: Option<Child>,
    status: Option<ExitStatus>,
}

impl Group {
    /// Starts a command as the leader of a group of its own: its children die with it, and Ctrl-C at the terminal does
    /// not reach it before us.
    pub(super) fn start(command: &mut Command) -> io::Result<Self> {
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(command, 0);
        // Locked before it is there, so that none can be missed.
        let mut groups = groups();
        if groups.closed {
            return Err(io::Error::other("the program is ending"));
        }
        let child = command.spawn()?;
        groups.leaders.push(child.id());
        Ok(Self { watcher: watch(child.id()), child, status: None })
    }

    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Waits until the leader has exited, at most so long; whether it has. It is not reaped.
    pub(super) fn exits_within(&mut self, grace: Duration) -> bool {
        let begun = Instant::now();
        loop {
            if self.status.is_some() || self.has_exited() {
                return true;
            }
            if begun.elapsed() >= grace {
                return false;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[cfg(unix)]
    fn has_exited(&self) -> bool {
        use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(Pid::from_child(&self.child)), options), Ok(Some(_)))
    }

    #[cfg(not(unix))]
    fn has_exited(&mut self) -> bool {
        self.status = self.child.try_wait().ok().flatten();
        self.status.is_some()
    }

    /// Kills whatever is left of the group, and reaps its leader. Later calls only tell the status again.
    pub(super) fn end(&mut self) -> Option<ExitStatus> {
        let mut groups = groups();
        if let Some(at) = groups.leaders.iter().position(|&leader| leader == self.child.id()) {
            signal(groups.leaders.swap_remove(at));
        }
        drop(groups);
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.kill();
            let _ = watcher.wait();
        }
        if self.status.is_none() {
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
        self.status
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.end();
    }
}
