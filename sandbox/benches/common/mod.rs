//! What the benches share: workers, artefacts, tasks, and times.
#![allow(dead_code, unreachable_pub, reason = "no bench uses all of it")]

use std::env;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use spare_sandbox::cache::{Artefact, Cache, Key};
use spare_sandbox::host::{CompileLimits, PoolSize, Settings, Stop, WorkerCommand, Workers};
use spare_sandbox::jail::Profile;
use spare_sandbox::task::{Determinism, Limits, Task};
use spare_sandbox::worker;

pub const CLIENT: [u8; 32] = [1; 32];
pub const LONG: Duration = Duration::from_secs(600);

/// Every bench is also its own worker. `None` when it was started as a bench.
pub fn as_worker() -> Option<ExitCode> {
    match env::args().next_back().as_deref() {
        Some("compile") => Some(worker::main(Profile::Compile)),
        Some("run") => Some(worker::main(Profile::Run)),
        _ => None,
    }
}

pub fn workers(busy_max: usize, warm: usize) -> Workers {
    let program = env::current_exe().expect("this is an executable");
    let size = PoolSize { busy_max, warm };
    let settings = Settings { compilers: PoolSize { warm: 0, ..size }, runners: size, place_wait: LONG };
    Workers::new(WorkerCommand { program, arguments: vec![], environment: vec![] }, settings)
        .expect("threads start")
}

/// A module that prints a line.
pub fn hello() -> Vec<u8> {
    wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 8) "\10\00\00\00\06\00\00\00hello\n")
            (func (export "_start") (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))))"#,
    )
    .expect("it is a module")
}

pub fn prepared(workers: &Workers, cache: &Cache, module: &[u8]) -> Artefact {
    let limits = CompileLimits { wall: LONG, memory_bytes: 8 << 30, artefact_bytes: 1 << 30 };
    let mut new = cache.begin(&CLIENT).expect("the disk has room");
    workers.compile(module, &limits, &Stop::new(), &mut new).expect("it compiles");
    new.keep(Key::of(module)).expect("the disk has room")
}

pub fn file_of(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("the disk has room");
    std::fs::write(file.path(), bytes).expect("the disk has room");
    file
}

pub fn task(fuel: u64) -> Task {
    Task {
        args: vec!["program".into()],
        env: vec![],
        stdin: vec![],
        inputs: vec![],
        limits: Limits {
            fuel,
            memory_bytes: 2 << 30,
            output_bytes: 64 << 20,
            output_files: 10,
            log_bytes: 1 << 20,
        },
        seed: [7; 32],
        starts_at_s: 1_800_000_000,
        determinism: Determinism::Deterministic,
    }
}

/// With pauses between, in which the next worker gets warm.
pub fn measure_rested(times: usize, what: impl FnMut()) -> Vec<Duration> {
    measured(times, Duration::from_millis(20), what)
}

pub fn measure(times: usize, what: impl FnMut()) -> Vec<Duration> {
    measured(times, Duration::ZERO, what)
}

fn measured(times: usize, pause: Duration, mut what: impl FnMut()) -> Vec<Duration> {
    let mut all: Vec<Duration> = (0..times)
        .map(|_| {
            std::thread::sleep(pause);
            timed(&mut what)
        })
        .collect();
    all.sort_unstable();
    all
}

pub fn timed(what: impl FnOnce()) -> Duration {
    let started = Instant::now();
    what();
    started.elapsed()
}

pub fn print(what: &str, sorted: &[Duration]) {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:<48} {:>9.3} ms median, {:.3} ms at 99%", at(50), at(99));
}
