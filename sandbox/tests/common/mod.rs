//! What tests over real processes share.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "no test file uses all of it")]

use std::env;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use spare_sandbox::cache::{Artefact, Cache, Key};
use spare_sandbox::host::{CompileLimits, PoolSize, Settings, Stop, WorkerCommand, WorkerError, Workers};
use spare_sandbox::run::{Go, Step};
use spare_sandbox::task::{Determinism, Limits, Outcome, Task};

pub const CLIENT: [u8; 32] = [0; 32];

/// More than any call here takes that is not stuck.
pub const LONG: Duration = Duration::from_secs(60);

/// The worker, which cargo builds beside the tests.
pub fn worker() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples/worker")
}

/// Workers that can be told from those of other tests, which run at the same time.
pub struct Marked {
    pub workers: Workers,
    pub mark: String,
}

/// A word for a command line that no other has.
pub fn new_mark() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("mark-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub fn settings() -> Settings {
    let size = PoolSize { busy_max: 4, warm: 1 };
    Settings { compilers: PoolSize { warm: 0, ..size }, runners: size, place_wait: LONG }
}

impl Marked {
    pub fn start() -> Self {
        Self::with(&[], settings())
    }

    /// Workers that lie.
    pub fn lying(how: &str) -> Self {
        Self::with(&["lie", how], settings())
    }

    pub fn with(arguments: &[&str], settings: Settings) -> Self {
        let mark = new_mark();
        let arguments = arguments.iter().copied().chain([mark.as_str()]).map(Into::into).collect();
        let workers =
            Workers::new(WorkerCommand { program: worker(), arguments, environment: vec![] }, settings)
                .unwrap();
        Self { workers, mark }
    }

    pub fn run(&self, artefact: &Artefact, task: &Task, wall: Duration) -> Result<Outcome, WorkerError> {
        self.run_in_steps(artefact, task, wall, &mut |_| Go::On)
    }

    pub fn run_in_steps(
        &self,
        artefact: &Artefact,
        task: &Task,
        wall: Duration,
        step: &mut dyn FnMut(Step<'_>) -> Go,
    ) -> Result<Outcome, WorkerError> {
        self.workers.run(artefact, task, wall, &Stop::new(), step)
    }
}

/// Processes with `mark` on their command line.
pub fn processes(mark: &str) -> Vec<i32> {
    let numbers = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_marked = |pid: &i32| {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.split(|byte| *byte == 0).any(|word| word == mark.as_bytes())
    };
    numbers.filter(is_marked).collect()
}

/// Waits until `holds`, and gives up loudly.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up_at = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < give_up_at, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

pub fn compile_limits() -> CompileLimits {
    CompileLimits { wall: LONG, memory_bytes: 1 << 30, artefact_bytes: 256 << 20 }
}

/// A cache in a directory of its own.
pub fn cache() -> (Cache, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    (Cache::open(&directory.path().join("artefacts"), 1 << 30).unwrap(), directory)
}

/// Compiles for [`CLIENT`].
pub fn compiled(workers: &Workers, cache: &Cache, module: &[u8]) -> Artefact {
    let mut new = cache.begin(&CLIENT).unwrap();
    workers.compile(module, &compile_limits(), &Stop::new(), &mut new).unwrap();
    new.keep(Key::of(module)).unwrap()
}

/// A module with this body of its entry.
pub fn module(body: &str) -> Vec<u8> {
    let text = format!(r#"(module (memory (export "memory") 1 4000) (func (export "_start") {body}))"#);
    wat::parse_str(text).unwrap()
}

pub fn endless() -> Vec<u8> {
    module("(loop (br 0))")
}

/// A task with plenty of everything.
pub fn task() -> Task {
    Task {
        args: vec!["program".into()],
        env: vec![],
        stdin: vec![],
        inputs: vec![],
        limits: Limits {
            fuel: u64::MAX / 2,
            memory_bytes: 64 << 20,
            output_bytes: 1 << 20,
            output_files: 10,
            log_bytes: 1 << 20,
        },
        seed: [7; 32],
        starts_at_s: 1_800_000_000,
        determinism: Determinism::Deterministic,
    }
}
