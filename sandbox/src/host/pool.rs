//! Workers of one profile: some warm, a bounded number busy.
//!
//! One thread starts them all, and buries them. It has to be one that lives as long as the pool, since the
//! kernel ends a worker with the thread that started it; and so it also does when the parent is killed.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{self, Read};
use std::process::{ChildStderr, ExitStatus};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::child::{Child, WorkerCommand};
use super::line::Line;
use super::{Stop, WorkerError};
use crate::engine;
use crate::jail::{Profile, Walls};
use crate::wire::{self, ReceiveError, Report};

/// How long a worker may take to build its jail and its engine.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long a killed process may take to be gone before others are buried first.
const GONE_WITHIN: Duration = Duration::from_secs(5);

/// After a worker could not be started, how long until one is started that nobody waits for.
const REST: Duration = Duration::from_secs(1);

/// How often a caller who waits looks whether it is to stop.
const STOP_EVERY: Duration = Duration::from_millis(20);

/// Workers that a job tries, when those that were warm turn out to be dead.
const TRIES: usize = 3;

/// Bytes of a worker's last words that are kept.
const WORDS_BYTES: u64 = 2 << 10;

/// How many workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// Busy at once, at most.
    pub busy_max: usize,
    /// Kept warm beside them.
    pub warm: usize,
}

/// Workers of one profile.
pub(super) struct Pool {
    shared: Arc<Shared>,
    starter: Option<JoinHandle<()>>,
}

struct Shared {
    command: WorkerCommand,
    profile: Profile,
    size: PoolSize,
    configuration: [u8; 32],
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    warm: VecDeque<Worker>,
    busy: usize,
    waiting: usize,
    dead: VecDeque<Arc<Child>>,
    failure: Option<String>,
    closing: bool,
}

/// A worker that has done nothing yet, or does its one thing. Dropped, it is killed.
pub(super) struct Worker {
    pub(super) child: Arc<Child>,
    pub(super) line: Line,
    words: ChildStderr,
}

/// A worker that is somebody's, and its place among the busy ones.
pub(super) struct Busy<'a> {
    worker: Option<Worker>,
    shared: &'a Shared,
    /// The jail that it reported.
    pub(super) walls: Walls,
}

impl Pool {
    /// Starts keeping workers.
    pub(super) fn new(command: WorkerCommand, profile: Profile, size: PoolSize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            command,
            profile,
            size,
            configuration: engine::configuration(),
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        let starter = thread::Builder::new().name("workers".into()).spawn({
            let shared = Arc::clone(&shared);
            move || shared.start_and_bury()
        })?;
        Ok(Self { shared, starter: Some(starter) })
    }

    /// A worker that is ready. Waits for a place until `give_up_at`.
    pub(super) fn take(&self, stop: &Stop, give_up_at: Instant) -> Result<Busy<'_>, WorkerError> {
        let place = self.shared.place(stop, give_up_at)?;
        let mut failure = WorkerError::NotStarted("it ended at once".into());
        for _ in 0..TRIES {
            let mut worker = self.shared.next(stop)?;
            match worker.become_ready(&self.shared.configuration) {
                Ok(_) if worker.child.reap(Duration::ZERO).is_some() => {}
                Ok(walls) => return Ok(place.filled(worker, walls)),
                Err(e) => failure = e,
            }
            self.shared.bury(worker);
        }
        Err(failure)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state().closing = true;
        self.shared.changed.notify_all();
        if let Some(starter) = self.starter.take() {
            let _ = starter.join(); // It does not panic; if it did, its workers are dead with it.
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, most).unwrap_or_else(PoisonError::into_inner).0
    }

    /// A place among the busy.
    fn place(&self, stop: &Stop, give_up_at: Instant) -> Result<Place<'_>, WorkerError> {
        let mut state = self.state();
        while state.busy >= self.size.busy_max {
            if stop.is_asked() {
                return Err(WorkerError::Stopped);
            }
            let left = give_up_at.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(WorkerError::AllBusy { busy: state.busy });
            }
            state = self.wait(state, left.min(STOP_EVERY));
        }
        state.busy += 1;
        Ok(Place(self))
    }

    /// The worker that was started first, or a new one.
    fn next(&self, stop: &Stop) -> Result<Worker, WorkerError> {
        let give_up_at = Instant::now() + READY_WITHIN;
        let mut state = self.state();
        state.waiting += 1;
        let taken = loop {
            self.changed.notify_all();
            if let Some(worker) = state.warm.pop_front() {
                break Ok(worker);
            } else if let Some(failure) = state.failure.take() {
                break Err(WorkerError::NotStarted(failure));
            } else if stop.is_asked() {
                break Err(WorkerError::Stopped);
            } else if Instant::now() >= give_up_at {
                break Err(WorkerError::NotStarted("no process was started in time".into()));
            }
            state = self.wait(state, STOP_EVERY);
        };
        state.waiting -= 1;
        self.changed.notify_all();
        taken
    }

    fn bury(&self, worker: Worker) {
        worker.child.kill();
        self.state().dead.push_back(worker.child);
        self.changed.notify_all();
    }

    /// Starts a worker, while others may use the state.
    fn start<'a>(&'a self, state: MutexGuard<'a, State>, rest_until: &mut Instant) -> MutexGuard<'a, State> {
        drop(state);
        let started = Worker::start(&self.command, self.profile.name(), &[]);
        let mut state = self.state();
        match started {
            Ok(worker) => state.warm.push_back(worker),
            Err(e) => {
                *rest_until = Instant::now() + REST;
                state.failure = Some(e.to_string());
            }
        }
        self.changed.notify_all();
        state
    }

    /// What the starting thread does until the pool closes.
    fn start_and_bury(&self) {
        let mut state = self.state();
        let mut rest_until = Instant::now();
        while !state.closing {
            if state.waiting == 0 {
                state.failure = None; // Whoever was to hear of it has gone.
            }
            let is_short = state.warm.len() < self.size.warm + state.waiting && state.failure.is_none();
            let rests = Instant::now() < rest_until && state.waiting == 0;
            let starts = is_short && !rests;
            let Some(child) = state.dead.pop_front() else {
                state = if starts { self.start(state, &mut rest_until) } else { self.wait(state, REST) };
                continue;
            };
            // One is buried for each that is started, so the dead do not pile up; but nobody waits for a
            // burial.
            drop(state);
            let gone = child.reap(if starts { Duration::ZERO } else { GONE_WITHIN }).is_some();
            state = self.state();
            state.dead.extend((!gone).then_some(child));
            if starts {
                state = self.start(state, &mut rest_until);
            }
        }
        for worker in state.warm.drain(..).collect::<Vec<_>>() {
            worker.child.kill();
            state.dead.push_back(worker.child);
        }
        for child in state.dead.drain(..) {
            child.reap(GONE_WITHIN);
        }
    }
}

/// A place among the busy, given back when dropped.
struct Place<'a>(&'a Shared);

impl<'a> Place<'a> {
    fn filled(self, worker: Worker, walls: Walls) -> Busy<'a> {
        let shared = self.0;
        std::mem::forget(self); // The place is the worker's from here on.
        Busy { worker: Some(worker), shared, walls }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.state().busy -= 1;
        self.0.changed.notify_all();
    }
}

impl Busy<'_> {
    /// The worker.
    pub(super) fn worker(&mut self) -> &mut Worker {
        self.worker.as_mut().expect("it is there until this is dropped")
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(worker) = self.worker.take() {
            self.shared.bury(worker);
        }
        drop(Place(self.shared));
    }
}

impl Worker {
    /// Starts one for `role`. It is [bound](Line::bound) before anything is read from it.
    pub(super) fn start(
        command: &WorkerCommand,
        role: &str,
        environment: &[(&str, OsString)],
    ) -> io::Result<Self> {
        let (child, ends) = Child::start(command, role, environment)?;
        let child = Arc::new(child);
        let line = Line::new(ends.socket, Arc::clone(&child), Instant::now());
        Ok(Self { child, line, words: ends.words })
    }

    /// Waits until the worker says that it is ready, and checks that it is of this build.
    fn become_ready(&mut self, expected: &[u8; 32]) -> Result<Walls, WorkerError> {
        self.line.bound(Instant::now() + READY_WITHIN, u64::MAX);
        match wire::receive(&mut self.line) {
            Ok(Report::Ready { configuration, walls }) if configuration == *expected => Ok(walls),
            Ok(Report::Ready { .. }) => Err(WorkerError::OtherBuild),
            Ok(_) => Err(WorkerError::Nonsense("it reported before it was ready".into())),
            Err(ReceiveError::Socket(e)) => {
                let (status, words) = self.end(GONE_WITHIN);
                let how = status.map_or("it did not end".into(), |status| status.to_string());
                Err(WorkerError::NotStarted(format!("{e}; {how}; {words}")))
            }
            Err(e) => Err(WorkerError::Nonsense(e.to_string())),
        }
    }

    /// Lets the process end by itself for a moment, kills it, and takes its status and last words.
    pub(super) fn end(&mut self, by_itself_within: Duration) -> (Option<ExitStatus>, String) {
        let status = self.child.reap(by_itself_within).or_else(|| {
            self.child.kill();
            self.child.reap(GONE_WITHIN)
        });
        let mut words = Vec::new();
        if status.is_some() {
            // Nobody is left who could write, so this does not block. What cannot be read is not said.
            let _ = (&mut self.words).take(WORDS_BYTES).read_to_end(&mut words);
        }
        (status, String::from_utf8_lossy(&words).trim().to_owned())
    }
}
