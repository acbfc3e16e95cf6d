//! One worker's process, as its parent holds it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Resource, Rlimit};

/// How a worker is started: a program whose last argument says what it is for. With `compile` and `run` it calls
/// [`worker::main`](crate::worker::main) for the profile of that name, with `devices`
/// [`worker::devices`](crate::worker::devices).
#[derive(Debug, Clone)]
pub struct WorkerCommand {
    /// The executable.
    pub program: PathBuf,
    /// Arguments before that last one.
    pub arguments: Vec<OsString>,
    /// Environment variables. It has no others but those that its role needs.
    pub environment: Vec<(OsString, OsString)>,
}

/// A process that was started here, until it has been reaped.
pub(super) struct Child {
    process: Mutex<std::process::Child>,
    pid: Pid,
    end: OwnedFd,
}

/// What a new process is talked to by: the socket, which does not block, and its last words.
pub(super) struct Ends {
    pub(super) socket: UnixStream,
    pub(super) words: ChildStderr,
}

impl Child {
    /// Starts a worker for `role`, with no environment but the given. It must be called on a thread that lives as long as the
    /// worker may: the kernel kills a worker when the thread that started it ends.
    pub(super) fn start(
        command: &WorkerCommand,
        role: &str,
        environment: &[(&str, OsString)],
    ) -> io::Result<(Self, Ends)> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut process = Command::new(&command.program)
            .args(&command.arguments)
            .arg(role)
            .env_clear()
            .envs(command.environment.iter().map(|(name, value)| (name, value)))
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let words = process.stderr.take().expect("it was asked for");
        let pid = Pid::from_child(&process);
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(end) => Ok((Self { process: Mutex::new(process), pid, end }, Ends { socket, words })),
            Err(e) => {
                let _ = process.kill();
                let _ = process.wait();
                Err(e.into())
            }
        }
    }

    /// Kills the process, if it has not been reaped.
    pub(super) fn kill(&self) {
        // Fails only for a process that is gone.
        let _ = self.process().kill();
    }

    /// Waits for the process's end and takes its status. `None` when it has not ended within `wait`.
    pub(super) fn reap(&self, wait: Duration) -> Option<ExitStatus> {
        let timeout = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
        // A signal that interrupts this makes the wait shorter, which callers must expect in any case.
        let _ = rustix::event::poll(&mut [PollFd::new(&self.end, PollFlags::IN)], Some(&timeout));
        self.process().try_wait().ok().flatten()
    }

    /// Bytes of memory that are the process's own, swapped or not, and the kernel's for its page tables.
    /// Files that it has mapped are the page cache's. `None` where `/proc` hides it.
    pub(super) fn memory_bytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()?;
        let own = status.lines().filter_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_own = matches!(name, "RssAnon" | "RssShmem" | "VmSwap" | "VmPTE");
            is_own.then(|| value.trim().strip_suffix(" kB")?.parse::<u64>().ok())?
        });
        Some(own.sum::<u64>() << 10)
    }

    /// Sets the most of a resource that the process may use. When that is gone it gets a signal, and one unit
    /// later it is killed.
    pub(super) fn limit(&self, resource: Resource, most: u64) -> io::Result<()> {
        let inherited = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        let most = most.min(inherited);
        let limit = Rlimit { current: Some(most), maximum: Some(most.saturating_add(1).min(inherited)) };
        rustix::process::prlimit(Some(self.pid), resource, limit)?;
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, std::process::Child> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
