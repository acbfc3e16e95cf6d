//! What the jail and the worker's process cost, beside running the same in this process.
//!
//! ```text
//! cargo bench -p spare-sandbox --bench workers [-- BIG_MODULE.wasm]
//! ```

mod common;

use std::env;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use common::{CLIENT, LONG, file_of, hello, measure, measure_rested, prepared, print, task, workers};
use spare_sandbox::cache::{Cache, Found, Key};
use spare_sandbox::compile::compile;
use spare_sandbox::host::Stop;
use spare_sandbox::run::{Go, load, run};
use spare_sandbox::task::Exit;

fn main() -> ExitCode {
    if let Some(code) = common::as_worker() {
        return code;
    }
    let words: Vec<String> = env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let directory = tempfile::tempdir().expect("a directory for artefacts");
    let cache = Cache::open(directory.path(), 1 << 30).expect("a cache");
    start_to_ready();
    small_jobs(&cache);
    if let Some(path) = words.first() {
        big_module(&cache, Path::new(path));
    }
    ExitCode::SUCCESS
}

fn start_to_ready() {
    let workers = workers(1, 0);
    print(
        "a worker, from nothing to ready",
        &measure(100, || assert!(workers.walls().is_ok(), "the jail is built")),
    );
}

fn small_jobs(cache: &Cache) {
    let module = hello();
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
    let file = file_of(&compile(&module).expect("it compiles"));
    print(
        "the same in this process, loading it each time",
        &measure(500, || {
            let program = load(File::open(file.path()).expect("it is there")).expect("it loads");
            assert_eq!(run(&program, task(1 << 30), &mut |_| Go::On).expect("it runs").exit, Exit::Code(0));
        }),
    );
    let program = load(File::open(file.path()).expect("it is there")).expect("it loads");
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
