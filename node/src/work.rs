//! Work: compile -> run in a jailed worker -> what came out.
//!
//! A provider carries out what is ordered from it here, and whoever checks a receipt runs the same again here. Nothing in this module knows money or
//! peers: it takes [`Work`] and the bytes that it names, and gives [`Ran`].

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use spare_market::job::{
    Ended, JobLimits, Material, Outputs, PATH_MAX_BYTES, REASON_MAX_BYTES, Ran, Work, WorkError,
};
use spare_proofs::encode::to_bytes;
use spare_sandbox::cache::{Cache, CacheError};
use spare_sandbox::capacity::{self, DetectionFailed, FuelRate, Gpus, MeasureError};
use spare_sandbox::engine::configuration;
use spare_sandbox::host::{
    CompileFailure, CompileLimits, Compiled, CompiledError, PoolSize, Settings, Stop, WorkerCommand,
    WorkerError, Workers,
};
use spare_sandbox::jail;
use spare_sandbox::run::{Go, Step};
use spare_sandbox::task::{Determinism, Exit, Input, Limits, Outcome, Task};

/// Who has something compiled: nobody gets what was compiled for somebody else.
pub use spare_sandbox::cache::Client;

/// Programs that a node runs for itself, as against those of clients.
pub const OWN: Client = [0; 32];
/// Longest module that is compiled.
pub const MODULE_MAX_BYTES: u64 = 128 << 20;
/// What compiling may use. A module of 69 MB takes half a minute on an ordinary machine.
const COMPILE_LIMITS: CompileLimits =
    CompileLimits { wall: Duration::from_secs(300), memory_bytes: 6 << 30, artefact_bytes: 1 << 30 };
/// Has mimalloc, which this program allocates with, take memory from the system as it is needed. At once it takes a GiB, which is more than the limit that
/// a small program's worker is put under.
const MEMORY_AS_NEEDED: [&str; 2] = ["MIMALLOC_ARENA_EAGER_COMMIT", "0"];
/// How long work waits for a worker.
const PLACE_WAIT: Duration = Duration::from_secs(60);

/// Why work was not carried out. A program that fails is no such thing, but a result.
#[derive(Debug, thiserror::Error)]
pub enum WorkFailure {
    /// No program can be given that.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// This machine cannot jail strangers' programs.
    #[error("programs cannot be run safely here: {0}")]
    Unsafe(#[from] jail::Unsafe),
    /// The bytes that the work names are not those that there are.
    #[error("the bytes of {0} are not those that are named")]
    Material(String),
    /// The module is too long.
    #[error("the module has {0} bytes, {MODULE_MAX_BYTES} are the most")]
    ModuleTooLong(u64),
    /// The module was not compiled, or what it was compiled to could not be kept.
    #[error("the module was not compiled: {0}")]
    Compile(#[from] CompiledError),
    /// The worker failed.
    #[error("the program was not run to its end: {0}")]
    Worker(WorkerError),
    /// It was stopped.
    #[error("it was stopped")]
    Stopped,
    /// The cache of compiled modules cannot be used.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// The system refused something.
    #[error("workers could not be started: {0}")]
    Start(#[from] std::io::Error),
}

impl WorkFailure {
    /// Whether it did not begin since all workers had other work.
    pub fn is_for_want_of_workers(&self) -> bool {
        matches!(
            self,
            Self::Worker(WorkerError::AllBusy { .. })
                | Self::Compile(CompiledError::Compile(CompileFailure::Worker(WorkerError::AllBusy { .. })))
        )
    }
}

/// The bytes that work names.
#[derive(Debug, Clone, Default)]
pub struct Materials {
    /// The program.
    pub module: Vec<u8>,
    /// Standard input, if any.
    pub stdin: Vec<u8>,
    /// Input files, in the order of [`Work::inputs`].
    pub inputs: Vec<Vec<u8>>,
}

/// What came out of work, with its bytes.
#[derive(Debug, Clone)]
pub struct Done {
    /// What is signed.
    pub ran: Ran,
    /// What was printed to standard output.
    pub stdout: Vec<u8>,
    /// What was printed to standard error.
    pub stderr: Vec<u8>,
    /// Output files by their path.
    pub outputs: Vec<(String, Vec<u8>)>,
    /// Whether memory could not grow because of the limit.
    pub memory_refused: bool,
    /// Whether a file could not be written because of the limits.
    pub output_refused: bool,
    /// How long compiling took, if it was not cached.
    pub compiled_in: Option<Duration>,
    /// How long running took.
    pub ran_in: Duration,
}

/// Where work is carried out: workers, and what they compiled.
pub struct Workshop {
    workers: Workers,
    command: WorkerCommand,
    cache: Cache,
}

impl Workshop {
    /// A workshop of this very program's workers. It runs `runners` programs at once, keeps as many workers warm, and keeps what is compiled in
    /// `cache_dir`, of at most `cache_bytes`.
    ///
    /// # Errors
    /// [`WorkFailure::Unsafe`] where programs could not be jailed, others when the folder cannot be used.
    pub fn open(cache_dir: &Path, cache_bytes: u64, runners: usize) -> Result<Self, WorkFailure> {
        jail::support().verify()?;
        let settings = Settings {
            compilers: PoolSize { busy_max: 1, warm: 1 },
            runners: PoolSize { busy_max: runners, warm: runners },
            place_wait: PLACE_WAIT,
        };
        let command = WorkerCommand {
            program: this_program()?,
            arguments: vec!["worker".into()],
            environment: vec![MEMORY_AS_NEEDED.map(Into::into).into()],
        };
        let workers = Workers::new(command.clone(), settings)?;
        Ok(Self { workers, command, cache: Cache::open(cache_dir, cache_bytes)? })
    }

    /// How fast programs run here. Blocks for some seconds.
    ///
    /// # Errors
    /// When workers do not work here.
    pub fn measure(&self) -> Result<FuelRate, MeasureError> {
        capacity::measure(&self.workers)
    }

    /// Graphics processors, looked for in a process of its own. Blocks.
    ///
    /// # Errors
    /// When that process fails.
    pub fn gpus(&self, within: Duration) -> Result<Gpus, DetectionFailed> {
        capacity::gpus(&self.command, within)
    }

    /// Carries out `work` for `client`, within `wall` from when its program starts. `step` hears how far it is, and may stop it. Blocks.
    ///
    /// # Errors
    /// [`WorkFailure`].
    pub fn carry_out(
        &self,
        client: &Client,
        work: &Work,
        materials: Materials,
        wall: Duration,
        stop: &Stop,
        step: &mut dyn FnMut(Step<'_>) -> Go,
    ) -> Result<Done, WorkFailure> {
        work.check()?;
        check_materials(work, &materials)?;
        let Compiled { artefact, took: compiled_in, was_rotten } =
            match self.workers.compiled(&self.cache, client, &materials.module, &COMPILE_LIMITS, stop) {
                // What is no program is none anywhere: that is what comes out.
                Err(CompiledError::Compile(CompileFailure::Refused(why))) => {
                    return done(work, refused(why), None, Duration::ZERO);
                }
                compiled => compiled?,
            };
        if was_rotten {
            tracing::error!("a compiled program had changed on disk; it was compiled again");
        }
        let started = Instant::now();
        let outcome = self.workers.run(&artefact, &task(work, materials), wall, stop, step);
        let outcome = outcome.map_err(WorkFailure::Worker)?;
        done(work, outcome, compiled_in, started.elapsed())
    }
}

/// This program's file. After an update it is the one that still runs, and not the new one of the same name.
fn this_program() -> std::io::Result<PathBuf> {
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

fn check_materials(work: &Work, materials: &Materials) -> Result<(), WorkFailure> {
    if work.module.bytes > MODULE_MAX_BYTES {
        return Err(WorkFailure::ModuleTooLong(work.module.bytes));
    }
    let is = |named: &Material, bytes: &[u8], what: &str| match *named == Material::of(bytes) {
        true => Ok(()),
        false => Err(WorkFailure::Material(what.to_owned())),
    };
    is(&work.module, &materials.module, "the module")?;
    is(&work.stdin.unwrap_or(Material::of(&[])), &materials.stdin, "standard input")?;
    if work.inputs.len() != materials.inputs.len() {
        return Err(WorkFailure::Material("the inputs".to_owned()));
    }
    work.inputs.iter().zip(&materials.inputs).try_for_each(|((path, named), bytes)| is(named, bytes, path))
}

/// The work as the sandbox takes it.
fn task(work: &Work, materials: Materials) -> Task {
    let paths = work.inputs.iter().map(|(path, _)| path.clone());
    let JobLimits { fuel, memory_bytes, output_bytes, output_files, log_bytes } = work.limits;
    Task {
        args: work.args.clone(),
        env: work.env.clone(),
        stdin: materials.stdin,
        inputs: paths.zip(materials.inputs).map(|(path, bytes)| Input { path, bytes }).collect(),
        limits: Limits { fuel, memory_bytes, output_bytes, output_files, log_bytes },
        seed: work.seed,
        starts_at_s: work.starts_at_s,
        determinism: if work.is_deterministic { Determinism::Deterministic } else { Determinism::Free },
    }
}

/// The outcome of what is no program.
fn refused(why: String) -> Outcome {
    Outcome {
        exit: Exit::Refused(why),
        fuel: 0,
        memory_peak_bytes: 0,
        memory_refused: false,
        output_refused: false,
        stdout: Vec::new(),
        stderr: Vec::new(),
        log_cut: false,
        outputs: Vec::new(),
    }
}

fn done(
    work: &Work,
    outcome: Outcome,
    compiled_in: Option<Duration>,
    ran_in: Duration,
) -> Result<Done, WorkFailure> {
    let Outcome {
        exit,
        fuel,
        memory_peak_bytes,
        memory_refused,
        output_refused,
        stdout,
        stderr,
        log_cut,
        outputs,
    } = outcome;
    let ended = match exit {
        Exit::Code(code) => Ended::Code(code),
        Exit::OutOfFuel => Ended::OutOfFuel,
        Exit::Trapped(why) => Ended::Trapped(shortened(why)),
        Exit::Refused(why) => Ended::Refused(shortened(why)),
        Exit::Stopped => return Err(WorkFailure::Stopped),
    };
    let outputs: Vec<(String, Vec<u8>)> =
        outputs.into_iter().map(|output| (output.path, output.bytes)).collect();
    let listed = outputs.iter().map(|(path, bytes)| (path.clone(), Material::of(bytes))).collect();
    let ran = Ran {
        work: work.id(),
        configuration: configuration(),
        ended,
        fuel,
        memory_peak_bytes,
        stdout: Material::of(&stdout),
        stderr: Material::of(&stderr),
        is_log_cut: log_cut,
        outputs: Material::of(&to_bytes(&Outputs(listed))),
        output_bytes: outputs.iter().map(|(_, bytes)| bytes.len() as u64).sum(),
    };
    // The sandbox keeps to the limits, but in a process that the program may have taken over.
    let has_long_path = outputs.iter().any(|(path, _)| path.len() > PATH_MAX_BYTES);
    if has_long_path || !ran.is_within(work) {
        let nonsense = WorkerError::Nonsense("its outcome is beyond the limits".to_owned());
        return Err(WorkFailure::Worker(nonsense));
    }
    Ok(Done { ran, stdout, stderr, outputs, memory_refused, output_refused, compiled_in, ran_in })
}

fn shortened(mut why: String) -> String {
    why.truncate(why.floor_char_boundary(REASON_MAX_BYTES));
    why
}
