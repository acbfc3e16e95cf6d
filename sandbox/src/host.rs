//! The parent's side: workers are started, watched, and ended here.
//!
//! Everything blocks, and is called from threads. A call is one process, which ends with it.
//!
//! | a worker | ends as |
//! |---|---|
//! | runs longer than it may | [`WorkerError::Late`] |
//! | takes more memory than it may | [`WorkerError::OutOfMemory`] |
//! | is refused memory by the machine that its task may have | [`WorkerError::Machine`] |
//! | is stopped from another thread | [`WorkerError::Stopped`] |
//! | makes a forbidden system call | [`WorkerError::Jailed`] |
//! | is killed by the kernel or somebody else | [`WorkerError::Killed`] |
//! | crashes | [`WorkerError::Crashed`] |
//! | ends without an outcome | [`WorkerError::Ended`] |
//! | says what cannot be | [`WorkerError::Nonsense`] |
//!
//! **Invariant:** a worker is hostile. Nothing that it says or leaves unsaid costs the parent more than its
//! time limit, its output limits, and one place among the busy; what it says is checked against the task
//! before anybody sees it. What cannot be checked is whether the outcome is right.
//!
//! **Invariant:** no worker outlives its call, its pool or its parent, and no process is ended that was not
//! started here.

use std::io::{self, Write};
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use rustix::process::Resource;

pub use child::WorkerCommand;
pub use compiled::{Compiled, CompiledError};
pub use pool::PoolSize;
pub use stop::Stop;

use crate::cache::Artefact;
use crate::jail::{Profile, Walls};
use crate::run::{Go, Step};
use crate::task::{Outcome, Task};
use crate::wire::{self, TaskHead};
use child::Child;
use line::Cut;
use pool::{Busy, Pool, Worker};
use talk::Trouble;

mod child;
mod compiled;
pub(crate) mod devices;
mod line;
mod pool;
mod stop;
mod talk;

/// Memory of a worker beside what the task accounts for: the program itself, the engine, stacks, in bytes.
const WORKER_BYTES: u64 = 64 << 20;

/// The longest wait that there is.
const EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// How long a worker that closed its socket may take to end.
const END_WITHIN: Duration = Duration::from_secs(1);

/// What Rust's library says before it gives up for lack of memory.
const NO_MEMORY: &str = "memory allocation of";

/// How many workers, and how long a job waits for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Workers that compile.
    pub compilers: PoolSize,
    /// Workers that run.
    pub runners: PoolSize,
    /// How long a call waits for its place while all are busy.
    pub place_wait: Duration,
}

/// What compiling may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CompileLimits {
    /// Time, from when the worker gets the module.
    pub wall: Duration,
    /// Memory, all in all.
    pub memory_bytes: u64,
    /// Length of what comes out.
    pub artefact_bytes: u64,
}

/// How a worker failed its task. The program is not to blame for some, and may have brought about any.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// It could not be started, or could not build its jail; what it said.
    #[error("a worker could not be started: {0}")]
    NotStarted(String),
    /// Its executable is not the one of this process.
    #[error("the worker's executable is of another build than this process; restart it")]
    OtherBuild,
    /// All places stayed taken.
    #[error("all {busy} workers are busy; try again later")]
    AllBusy {
        /// How many places there are.
        busy: usize,
    },
    /// Arguments, environment and names of inputs are longer than a message may be.
    #[error(
        "arguments, environment and names of inputs take {head_bytes} bytes, where at most {max_bytes} are allowed"
    )]
    TaskTooLong {
        /// Their length.
        head_bytes: usize,
        /// The bound.
        max_bytes: usize,
    },
    /// The artefact is none, or could not be read.
    #[error("{0}")]
    Artefact(String),
    /// It took longer than its wall-clock limit, and was killed.
    #[error("killed at its time limit of {limit:?}")]
    Late {
        /// The limit.
        limit: Duration,
    },
    /// It needed more memory than it may have, and was killed.
    #[error("killed for memory: it may have {max_bytes} bytes, all in all")]
    OutOfMemory {
        /// What it may have: the task's limits and what the worker needs itself.
        max_bytes: u64,
    },
    /// This machine failed it, says the worker: it has not the memory that the limits promise.
    #[error("not the program's fault: {0}; free memory, or offer less")]
    Machine(String),
    /// [`Stop::stop`] was called.
    #[error("stopped")]
    Stopped,
    /// It made a system call that no honest worker makes. The kernel tells its log which, and nobody else.
    #[error("killed by the jail for a forbidden system call; the kernel's log names it (type=1326)")]
    Jailed,
    /// It was killed, not from here.
    #[error("killed from outside by signal 9; often that is the kernel when the machine runs out of memory")]
    Killed,
    /// It crashed.
    #[error("crashed by signal {signal}: {words}")]
    Crashed {
        /// By which signal.
        signal: i32,
        /// What it said last; it may be anything.
        words: String,
    },
    /// It ended by itself, and left the outcome out.
    #[error("ended with code {code} and without an outcome: {words}")]
    Ended {
        /// Its exit code.
        code: i32,
        /// What it said last; it may be anything.
        words: String,
    },
    /// It said what cannot be, and was killed.
    #[error("talked nonsense: {0}")]
    Nonsense(String),
}

/// Why a program was not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileFailure {
    /// It is not a program that we compile; what the compiler says.
    #[error("{0}")]
    Refused(String),
    /// What comes out is longer than it may be.
    #[error("compiled it has {len_bytes} bytes, where at most {max_bytes} are allowed")]
    TooLong {
        /// Length.
        len_bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// The artefact could not be written.
    #[error("the compiled program could not be written: {0}")]
    Write(io::Error),
    /// The compiler failed.
    #[error("compiling failed: {0}")]
    Worker(#[from] WorkerError),
}

/// What one call may use, beside what its task says.
struct Bounds {
    wall: Duration,
    memory_bytes: u64,
    processors: u64,
}

/// Jailed worker processes.
pub struct Workers {
    compilers: Pool,
    runners: Pool,
    settings: Settings,
}

impl Workers {
    /// Starts keeping workers warm.
    ///
    /// # Errors
    /// When the system starts no thread. That workers do not start shows when one is asked for.
    pub fn new(command: WorkerCommand, settings: Settings) -> io::Result<Self> {
        Ok(Self {
            compilers: Pool::new(command.clone(), Profile::Compile, settings.compilers)?,
            runners: Pool::new(command, Profile::Run, settings.runners)?,
            settings,
        })
    }

    /// Starts a worker to see what jail it builds on this machine.
    ///
    /// # Errors
    /// [`WorkerError::NotStarted`] says which wall could not be built.
    pub fn walls(&self) -> Result<Walls, WorkerError> {
        Ok(self.runners.take(&Stop::new(), self.give_up_at())?.walls)
    }

    /// Compiles a module or component and writes the artefact to `into`. Returns its length.
    ///
    /// # Errors
    /// [`CompileFailure`]. What was written until then is of no use.
    pub fn compile(
        &self,
        module: &[u8],
        limits: &CompileLimits,
        stop: &Stop,
        into: &mut dyn Write,
    ) -> Result<u64, CompileFailure> {
        let mut busy = self.compilers.take(stop, self.give_up_at())?;
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
        let bounds = Bounds { wall: limits.wall, memory_bytes: limits.memory_bytes, processors };
        self.call(&mut busy, &bounds, stop, |worker| talk::compile(worker, module, limits, into))?
    }

    /// Runs a compiled program on a task. `step` hears how far it is, and may stop it; while it thinks, the
    /// program waits and the clock runs.
    ///
    /// # Errors
    /// [`WorkerError`]. A program that fails is an [`Outcome`] and no error.
    pub fn run(
        &self,
        artefact: &Artefact,
        task: &Task,
        wall: Duration,
        stop: &Stop,
        step: &mut dyn FnMut(Step<'_>) -> Go,
    ) -> Result<Outcome, WorkerError> {
        let head = TaskHead::of(task);
        verify_length(&head)?;
        let artefact_file =
            artefact.reopen().map_err(|e| WorkerError::Artefact(format!("reopening the artefact: {e}")))?;
        let mut busy = self.runners.take(stop, self.give_up_at())?;
        let bounds = Bounds { wall, memory_bytes: memory_bytes(task, artefact.len_bytes()), processors: 1 };
        self.call(&mut busy, &bounds, stop, |worker| talk::run(worker, head, &artefact_file, task, step))
    }

    fn give_up_at(&self) -> Instant {
        after(self.settings.place_wait)
    }

    /// Bounds a worker, talks to it, and finds out what went wrong if something did.
    fn call<T>(
        &self,
        busy: &mut Busy<'_>,
        bounds: &Bounds,
        stop: &Stop,
        talk: impl FnOnce(&mut Worker) -> Result<T, Trouble>,
    ) -> Result<T, WorkerError> {
        let worker = busy.worker();
        worker.line.bound(after(bounds.wall), bounds.memory_bytes);
        set_limits(&worker.child, bounds)
            .map_err(|e| WorkerError::NotStarted(format!("limiting it: {e}")))?;
        let told = match stop.attach(&worker.child) {
            Ok(()) => talk(worker).map_err(|trouble| conclude(worker, trouble, bounds, stop)),
            Err(e) => Err(e),
        };
        stop.detach();
        told
    }
}

/// When so much time will have passed.
fn after(wait: Duration) -> Instant {
    Instant::now() + wait.min(EVER)
}

fn set_limits(child: &Child, bounds: &Bounds) -> io::Result<()> {
    let wall_s = bounds.wall.as_secs().saturating_add(1);
    child.limit(Resource::Cpu, wall_s.saturating_mul(bounds.processors))?;
    // Counts what may be written to, not what has been, so it leaves room above what is looked at.
    child.limit(Resource::Data, bounds.memory_bytes.saturating_add(bounds.memory_bytes / 4))
}

fn verify_length(head: &TaskHead) -> Result<(), WorkerError> {
    let head_bytes = spare_proofs::encode::to_bytes(head).len();
    // The order around it takes another byte.
    if head_bytes < wire::HEAD_MAX_BYTES {
        return Ok(());
    }
    Err(WorkerError::TaskTooLong { head_bytes, max_bytes: wire::HEAD_MAX_BYTES - 1 })
}

/// All memory that a worker may need for a task whose program keeps its limits.
fn memory_bytes(task: &Task, artefact_bytes: u64) -> u64 {
    let inputs = task
        .inputs
        .iter()
        .fold(task.stdin.len() as u64, |sum, input| sum.saturating_add(input.bytes.len() as u64));
    let limits = &task.limits;
    // Inputs may be held as they came and as the program sees them; what is printed, as a whole, since the
    // last step, and in the outcome. A file that grows may be copied, and outputs are collected beside the
    // files. A component's artefact is read and copied, and not mapped as a module's is.
    [limits.memory_bytes, inputs, inputs, artefact_bytes, artefact_bytes]
        .into_iter()
        .chain([limits.output_bytes; 3])
        .chain([limits.log_bytes; 6])
        .fold(WORKER_BYTES, u64::saturating_add)
}

/// Ends a worker that is in trouble, and finds out why it is.
fn conclude(worker: &mut Worker, trouble: Trouble, bounds: &Bounds, stop: &Stop) -> WorkerError {
    let e = match trouble {
        _ if stop.is_asked() => return WorkerError::Stopped,
        Trouble::Known(e) => return e,
        Trouble::Nonsense(what) => return WorkerError::Nonsense(what),
        Trouble::Socket(e) | Trouble::Write(e) => e,
    };
    match worker.line.cut() {
        Some(Cut::Late) => return WorkerError::Late { limit: bounds.wall },
        Some(Cut::Fat { .. }) => return WorkerError::OutOfMemory { max_bytes: bounds.memory_bytes },
        None => {}
    }
    let (status, words) = worker.end(END_WITHIN);
    match status.map(|status| (status.signal(), status.code())) {
        Some((Some(libc::SIGSYS), _)) => WorkerError::Jailed,
        Some((Some(libc::SIGXCPU), _)) => WorkerError::Late { limit: bounds.wall },
        Some((Some(libc::SIGABRT), _)) if words.contains(NO_MEMORY) => {
            WorkerError::OutOfMemory { max_bytes: bounds.memory_bytes }
        }
        Some((Some(libc::SIGKILL), _)) => WorkerError::Killed,
        Some((Some(signal), _)) => WorkerError::Crashed { signal, words },
        Some((None, Some(code))) => WorkerError::Ended { code, words },
        _ => WorkerError::Nonsense(format!("it left its socket ({e}) and does not end")),
    }
}
