//! The parent's end of a worker's socket: reads and writes that end in time, and an eye on the worker's
//! memory meanwhile.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::child::Child;
use crate::wire;

/// How often a worker's memory is looked at. In between the kernel's limits on private memory and addresses
/// hold.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why a line was cut at the parent's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It was late.
    Late,
    /// It had more memory than it may.
    Fat {
        /// How much.
        used_bytes: u64,
    },
}

/// The parent's end of a worker's socket. Once cut it stays cut.
pub(super) struct Line {
    socket: UnixStream,
    child: Arc<Child>,
    deadline: Instant,
    memory_max_bytes: u64,
    look_at: Instant,
    cut: Option<Cut>,
}

impl Line {
    /// A line to `child`, which must become ready until `deadline`.
    pub(super) fn new(socket: UnixStream, child: Arc<Child>, deadline: Instant) -> Self {
        Self { socket, child, deadline, memory_max_bytes: u64::MAX, look_at: Instant::now(), cut: None }
    }

    /// Sets what holds from now on.
    pub(super) fn bound(&mut self, deadline: Instant, memory_max_bytes: u64) {
        (self.deadline, self.memory_max_bytes) = (deadline, memory_max_bytes);
    }

    /// Moves the deadline, but not back.
    pub(super) fn hurry(&mut self, deadline: Instant) {
        self.deadline = self.deadline.min(deadline);
    }

    /// Why it was cut, if it was.
    pub(super) fn cut(&self) -> Option<Cut> {
        self.cut
    }

    /// Sends a descriptor.
    pub(super) fn send_file(&mut self, file: impl AsFd) -> io::Result<()> {
        loop {
            self.watch()?;
            match wire::send_file(&self.socket, &file) {
                Err(e) => self.outlast(e.into(), PollFlags::OUT)?,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Waits until the socket is ready, if `error` says that it is not.
    fn outlast(&mut self, error: io::Error, flags: PollFlags) -> io::Result<()> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => {
                let wait = self.deadline.min(self.look_at).saturating_duration_since(Instant::now());
                let timeout =
                    Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
                match rustix::event::poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
                    Err(e) => Err(e.into()),
                }
            }
            _ => Err(error),
        }
    }

    /// Cuts the line when it is time to. A worker that talks without end passes here too.
    fn watch(&mut self) -> io::Result<()> {
        let now = Instant::now();
        if self.cut.is_none() && now >= self.deadline {
            self.cut = Some(Cut::Late);
        }
        if self.cut.is_none() && now >= self.look_at {
            self.look_at = now + LOOK_EVERY;
            let used_bytes = self.child.memory_bytes().unwrap_or(0);
            self.cut = (used_bytes > self.memory_max_bytes).then_some(Cut::Fat { used_bytes });
        }
        match self.cut {
            Some(_) => Err(io::ErrorKind::TimedOut.into()),
            None => Ok(()),
        }
    }
}

impl Read for Line {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            self.watch()?;
            match (&self.socket).read(into) {
                Err(e) => self.outlast(e, PollFlags::IN)?,
                Ok(len) => return Ok(len),
            }
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            self.watch()?;
            match (&self.socket).write(bytes) {
                Err(e) => self.outlast(e, PollFlags::OUT)?,
                Ok(len) => return Ok(len),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
