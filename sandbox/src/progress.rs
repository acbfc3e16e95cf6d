//! What is known of a run while it is under way: fuel, and what was printed.
//!
//! It is shared because the store, and the guest in it, cannot be looked at while the code is paused.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What is known of a run while it is under way.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<State>>);

/// See [`Progress`].
pub(crate) struct State {
    /// Fuel used.
    pub(crate) fuel: u64,
    /// Fuel at which the next step is due.
    pub(crate) step_at: u64,
    /// Whether code yielded, and has not gone on yet.
    pub(crate) has_yielded: bool,
    /// Standard output.
    pub(crate) stdout: Log,
    /// Standard error.
    pub(crate) stderr: Log,
}

impl Progress {
    /// Nothing used, nothing printed; the first step is due at `step_at`, and each log keeps `log_bytes`.
    pub(crate) fn new(log_bytes: u64, step_at: u64) -> Self {
        let log = || Log::new(log_bytes);
        Self(Arc::new(Mutex::new(State {
            fuel: 0,
            step_at,
            has_yielded: false,
            stdout: log(),
            stderr: log(),
        })))
    }

    /// The state, for as long as nothing else happens.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A log of bounded length.
#[derive(Default)]
pub(crate) struct Log {
    kept: Vec<u8>,
    limit_bytes: u64,
    /// Whether more was printed than was kept.
    pub(crate) cut: bool,
    reported_bytes: usize,
}

impl Log {
    fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    /// How many of `bytes` more bytes would be kept.
    pub(crate) fn room(&self, bytes: u64) -> u64 {
        bytes.min(self.limit_bytes.saturating_sub(self.kept.len() as u64))
    }

    /// Keeps what there is room for. The program is not told of the rest: what it computes does not depend on who
    /// reads its log.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        let kept = self.room(bytes.len() as u64) as usize;
        self.kept.extend_from_slice(&bytes[..kept]);
        self.cut |= kept < bytes.len();
    }

    /// What was printed since the last report.
    pub(crate) fn news(&self) -> &[u8] {
        &self.kept[self.reported_bytes..]
    }

    /// Notes that all of it is reported.
    pub(crate) fn reported(&mut self) {
        self.reported_bytes = self.kept.len();
    }

    /// All that was kept.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        self.reported_bytes = 0;
        std::mem::take(&mut self.kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_beginning_and_says_that_it_was_cut() {
        let mut log = Log::new(5);
        log.write(b"abc");
        assert_eq!((log.news(), log.cut), (&b"abc"[..], false));
        log.reported();
        log.write(b"def");
        assert_eq!((log.news(), log.cut), (&b"de"[..], true));
        log.write(b"g");
        assert_eq!(log.take(), b"abcde");
    }
}
