//! What the jail and the worker's process cost, beside running the same in this process.
//!
//! ```text
//! cargo bench -p spare-sandbox --bench workers [-- BIG_MODULE.wasm]
//! ```

use std::env;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use spare_sandbox::cache::{Artefact, Cache, Found, Key};
use spare_sandbox::compile::compile;
use spare_sandbox::host::{CompileLimits, PoolSize, Settings, Stop, WorkerCommand, Workers};
use spare_sandbox::jail::Profile;
use spare_sandbox::run::{Go, load, run};
use spare_sandbox::task::{Determinism, Exit, Limits, Task};
use spare_sandbox::worker;

const CLIENT: [u8; 32] = [1; 32];
const LONG: Duration = Duration::from_secs(600);

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    match words.last().map(String::as_str) {
        Some("compile") => return worker::main(Profile::Compile),
        Some("run") => return worker::main(Profile::Run),
        _ => {}
    }
    let directory = tempfile::tempdir().expect("a directory for artefacts");
    let cache = Cache::open(directory.path(), 1 << 30).expect("a cache");
    start_to_ready();
    small_jobs(&cache);
    if let Some(path) = words.first() {
        big_module(&cache, Path::new(path));
    }
    ExitCode::SUCCESS
}

fn workers(busy_max: usize, warm: usize) -> Workers {
    let program = env::current_exe().expect("this is an executable");
    let size = PoolSize { busy_max, warm };
    let settings = Settings { compilers: PoolSize { warm: 0, ..size }, runners: size, place_wait: LONG };
    Workers::new(WorkerCommand { program, arguments: vec![] }, settings).expect("threads start")
}

fn start_to_ready() {
    let workers = workers(1, 0);
    print(
        "a worker, from nothing to ready",
        &measure(100, || assert!(workers.walls().is_ok(), "the jail is built")),
    );
}

fn small_jobs(cache: &Cache) {
    let module = wat::parse_str(
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
            (memory (export "memory") 1) (data (i32.const 8) "\10\00\00\00\06\00\00\00hello\n")
            (func (export "_start") (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))))"#,
    )
    .expect("it is a module");
    let workers = workers(2, 2);
    let artefact = prepared(&workers, cache, &module);
    let job = || {
        let outcome =
            workers.run(&artefact, &task(1 << 30), LONG, &Stop::new(), &mut |_| Go::On).expect("it runs");
        assert_eq!((outcome.exit, &outcome.stdout[..]), (Exit::Code(0), &b"hello\n"[..]));
    };
    print("a small job in a warm worker, all in all", &measure_rested(500, job));
    let started = Instant::now();
    std::thread::scope(|threads| (0..2).for_each(|_| drop(threads.spawn(|| (0..500).for_each(|_| job())))));
    println!("{:<48} {:>9.2} s", "1,000 small jobs, two at a time", started.elapsed().as_secs_f64());
    let file = directory_file(&compile(&module).expect("it compiles"));
    print(
        "the same in this process, loading it each time",
        &measure(500, || {
            let program = load(std::fs::File::open(file.path()).expect("it is there")).expect("it loads");
            assert_eq!(run(&program, task(1 << 30), &mut |_| Go::On).expect("it runs").exit, Exit::Code(0));
        }),
    );
    let program = load(std::fs::File::open(file.path()).expect("it is there")).expect("it loads");
    print(
        "the same in this process, loaded once",
        &measure(2_000, || {
            assert_eq!(run(&program, task(1 << 30), &mut |_| Go::On).expect("it runs").exit, Exit::Code(0));
        }),
    );
}

fn big_module(cache: &Cache, path: &Path) {
    let module = std::fs::read(path).expect("the module is there");
    let workers = workers(2, 1);
    let started = Instant::now();
    let artefact = prepared(&workers, cache, &module);
    let lens = format!("{} bytes compiled to {}", module.len(), artefact.len_bytes());
    println!("{lens:<48} {:>9.2} s", started.elapsed().as_secs_f64());
    let key = Key::of(&module);
    print(
        "found in the cache, and hashed",
        &measure(20, || {
            assert!(matches!(cache.get(&CLIENT, key), Ok(Found::Artefact(_))));
        }),
    );
    print(
        "from asking the cache to the first instruction",
        &measure_rested(20, || {
            let Ok(Found::Artefact(artefact)) = cache.get(&CLIENT, key) else { panic!("it was kept") };
            // It burns its fuel at the first instructions, so that this is the way there.
            let outcome =
                workers.run(&artefact, &task(10), LONG, &Stop::new(), &mut |_| Go::On).expect("it runs");
            assert_eq!(outcome.exit, Exit::OutOfFuel);
        }),
    );
}

fn prepared(workers: &Workers, cache: &Cache, module: &[u8]) -> Artefact {
    let limits = CompileLimits { wall: LONG, memory_bytes: 8 << 30, artefact_bytes: 1 << 30 };
    let mut new = cache.begin(&CLIENT).expect("the disk has room");
    workers.compile(module, &limits, &Stop::new(), &mut new).expect("it compiles");
    new.keep(Key::of(module)).expect("the disk has room")
}

fn directory_file(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("the disk has room");
    std::fs::write(file.path(), bytes).expect("the disk has room");
    file
}

fn task(fuel: u64) -> Task {
    Task {
        args: vec!["program".into()],
        env: vec![],
        stdin: vec![],
        inputs: vec![],
        limits: Limits {
            fuel,
            memory_bytes: 1 << 30,
            output_bytes: 1 << 20,
            output_files: 10,
            log_bytes: 1 << 20,
        },
        seed: [7; 32],
        starts_at_s: 1_800_000_000,
        determinism: Determinism::Deterministic,
    }
}

/// With pauses between, in which the next worker gets warm.
fn measure_rested(times: usize, what: impl FnMut()) -> Vec<Duration> {
    measured(times, Duration::from_millis(20), what)
}

fn measure(times: usize, what: impl FnMut()) -> Vec<Duration> {
    measured(times, Duration::ZERO, what)
}

fn measured(times: usize, pause: Duration, mut what: impl FnMut()) -> Vec<Duration> {
    let mut all: Vec<Duration> = (0..times)
        .map(|_| {
            std::thread::sleep(pause);
            let started = Instant::now();
            what();
            started.elapsed()
        })
        .collect();
    all.sort_unstable();
    all
}

fn print(what: &str, sorted: &[Duration]) {
    let at = |percent: usize| sorted[(sorted.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:<48} {:>9.3} ms median, {:.3} ms at 99%", at(50), at(99));
}
