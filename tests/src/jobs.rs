//! How many small jobs a client gets through over several providers, beside what workers alone could do on the same machine.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use spare_sandbox::cache::Cache;
use spare_sandbox::host::{CompileLimits, PoolSize, Settings, Stop, WorkerCommand, Workers};
use spare_sandbox::run::Go;
use spare_sandbox::task::{Determinism, Limits, Task};

use crate::net::{Net, program, wait_for};

/// A program in the text format that prints the beginning of what it is given as standard input, and leaves it in a file.
pub const ECHO: &str = r#"(module
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 100) "out/copy")
  (func (export "_start")
    (i32.store (i32.const 0) (i32.const 1000))
    (i32.store (i32.const 4) (i32.const 64))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (i32.store (i32.const 4) (i32.load (i32.const 8)))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))
    (drop (call $open (i32.const 3) (i32.const 0) (i32.const 100) (i32.const 8) (i32.const 1)
          (i64.const -1) (i64.const -1) (i32.const 0) (i32.const 16)))
    (drop (call $write (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 8)))))"#;

const PROVIDERS: u8 = 4;
const JOBS: usize = 1000;

/// Starts a network whose providers run jobs, one at a time each, and waits until they say so.
///
/// # Panics
/// When it does not come to.
pub fn start(providers: u8, founding: &[&str], providing: &[&str]) -> Net {
    let compute = ["--set", "compute.offer=true", "--set", "compute.slots=1", "--set", "compute.memory=4GiB"];
    let net = Net::found(providers, founding, &[&compute, providing].concat(), &[]);
    let nothing = module(&net, "nothing.wasm", r#"(module (func (export "_start")))"#);
    wait_for("all providers to offer what they measured", || {
        let offers = net.client.ok(&["job", "offers", &nothing, "--memory", "1MiB"]);
        let offered = offers.as_array()?.iter().filter(|offer| offer["slots"].as_u64() > Some(0));
        (offered.count() >= usize::from(providers)).then_some(())
    });
    net
}

/// Writes a program in the text format into a file of the network's folder, and says which.
///
/// # Panics
/// When it is no program, or the disk is full.
pub fn module(net: &Net, name: &str, text: &str) -> String {
    let path = net.dir.path().join(name);
    std::fs::write(&path, wat::parse_str(text).expect("a program")).expect("a file can be written");
    path.to_str().expect("paths are UTF-8").to_owned()
}

/// Writes `count` small inputs into a folder, and says which.
///
/// # Panics
/// When the disk is full.
pub fn inputs(net: &Net, count: usize) -> String {
    let dir = net.dir.path().join("inputs");
    std::fs::create_dir_all(&dir).expect("a folder can be made");
    for i in 0..count {
        std::fs::write(dir.join(format!("{i:05}")), format!("input {i}")).expect("a file can be written");
    }
    dir.to_str().expect("paths are UTF-8").to_owned()
}

/// Prints how fast small jobs go.
///
/// # Errors
/// When something does not work.
pub fn print_speeds() -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism()?.get();
    let bound = JOBS as f64 / workers_alone(cores)?.as_secs_f64();
    let net = start(PROVIDERS, &[], &[]);
    let echo = module(&net, "echo.wasm", ECHO);
    let mut single = Vec::new();
    for _ in 0..11 {
        let started = Instant::now();
        net.client.ok(&["job", "run", &echo, "--memory", "16MiB", "--check", "0"]);
        single.push(started.elapsed());
    }
    single.sort_unstable();
    let (inputs, out) = (inputs(&net, JOBS), net.dir.path().join("out"));
    let out = out.to_str().context("paths are UTF-8")?;
    let map =
        ["job", "map", &echo, "--inputs", &inputs, "--output", out, "--memory", "16MiB", "--check", "0"];
    let mapped = net.client.ok(&map);
    ensure!(mapped["done"].as_u64() == Some(JOBS as u64), "all are done: {mapped}");
    let rate = JOBS as f64 / mapped["took_s"].as_f64().context("a time")?;
    println!(
        "a small job by `spare job run`, warm     {:>8.1} ms, the middle of {}",
        ms(single[single.len() / 2]),
        single.len()
    );
    println!("{JOBS} small jobs mapped over {PROVIDERS} providers {rate:>8.1} jobs/s");
    println!("the same by workers alone, {cores} at once    {bound:>8.1} jobs/s; ratio {:.2}", rate / bound);
    Ok(())
}

fn ms(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

/// How long workers take for as many jobs, `at_once` at a time, without a network, payment or files.
fn workers_alone(at_once: usize) -> anyhow::Result<Duration> {
    let command = WorkerCommand {
        program: program(),
        arguments: vec!["worker".into()],
        environment: vec![("MIMALLOC_ARENA_EAGER_COMMIT".into(), "0".into())],
    };
    let settings = Settings {
        compilers: PoolSize { busy_max: 1, warm: 1 },
        runners: PoolSize { busy_max: at_once, warm: at_once },
        place_wait: Duration::from_secs(60),
    };
    let workers = Workers::new(command, settings)?;
    let dir = tempfile::tempdir()?;
    let cache = Cache::open(dir.path(), 1 << 30)?;
    let limits =
        CompileLimits { wall: Duration::from_secs(60), memory_bytes: 1 << 30, artefact_bytes: 1 << 28 };
    let echo = wat::parse_str(ECHO)?;
    let task = |i: usize| Task {
        args: vec!["echo".into()],
        env: Vec::new(),
        stdin: format!("input {i}").into_bytes(),
        inputs: Vec::new(),
        limits: Limits {
            fuel: 1 << 32,
            memory_bytes: 16 << 20,
            output_bytes: 1 << 20,
            output_files: 10,
            log_bytes: 1 << 20,
        },
        seed: [0; 32],
        starts_at_s: 0,
        determinism: Determinism::Deterministic,
    };
    workers.compiled(&cache, &[0; 32], &echo, &limits, &Stop::new())?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let threads = (0..at_once).map(|thread| {
            let (workers, cache, echo, limits) = (&workers, &cache, &echo, &limits);
            scope.spawn(move || -> anyhow::Result<()> {
                for i in (thread..JOBS).step_by(at_once) {
                    let compiled = workers.compiled(cache, &[0; 32], echo, limits, &Stop::new())?;
                    let wall = Duration::from_secs(60);
                    workers.run(&compiled.artefact, &task(i), wall, &Stop::new(), &mut |_| Go::On)?;
                }
                Ok(())
            })
        });
        let threads: Vec<_> = threads.collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no thread panics"))
    })?;
    Ok(started.elapsed())
}
