//! Programs in the sandbox: what WASI does for them, what they cannot do, and that it is the same each time.
//!
//! All are WebAssembly text, so that what they do can be read here.

mod component;
mod determinism;
mod hostile;
mod mutation;
mod steps;
mod wasi;

use std::io::{Seek, Write};

use spare_sandbox::compile::{CompileError, compile};
use spare_sandbox::run::{Go, Program, load, run};
use spare_sandbox::task::{Determinism, Input, Limits, Outcome, Task};

/// What a program may use, unless a test says otherwise. All is far more than a test needs.
const LIMITS: Limits = Limits {
    fuel: 1_000_000_000,
    memory_bytes: 64 << 20,
    output_bytes: 1 << 20,
    output_files: 100,
    log_bytes: 64 << 10,
};

fn task() -> Task {
    Task {
        args: vec!["program".into()],
        env: vec![("NAME".into(), "value".into())],
        stdin: b"standard input".to_vec(),
        inputs: vec![Input { path: "in/data".into(), bytes: b"input data".to_vec() }],
        limits: LIMITS,
        seed: [7; 32],
        starts_at_s: 1_767_225_600,
        determinism: Determinism::Deterministic,
    }
}

fn with_fuel(fuel: u64) -> Task {
    Task { limits: Limits { fuel, ..LIMITS }, ..task() }
}

/// The imports that test programs choose from; each takes and returns what the standard says.
const IMPORTS: [(&str, &str); 15] = [
    ("clock_time_get", "i32 i64 i32"),
    ("fd_close", "i32"),
    ("fd_filestat_set_size", "i32 i64"),
    ("fd_pwrite", "i32 i32 i32 i64 i32"),
    ("fd_read", "i32 i32 i32 i32"),
    ("fd_readdir", "i32 i32 i32 i64 i32"),
    ("fd_seek", "i32 i64 i32 i32"),
    ("fd_write", "i32 i32 i32 i32"),
    ("path_create_directory", "i32 i32 i32"),
    ("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
    ("path_symlink", "i32 i32 i32 i32 i32"),
    ("path_unlink_file", "i32 i32 i32"),
    ("poll_oneoff", "i32 i32 i32 i32"),
    ("random_get", "i32 i32"),
    ("sched_yield", ""),
];

/// A command: its `_start` is `body`, beside which `more` declares what it needs. Memory has two pages. At 0 are
/// an I/O vector and room for results; `$print` prints a range, `$number` prints a number of eight bytes, `$exit`
/// ends the program if a number is not zero.
fn command(more: &str, body: &str) -> String {
    let imports: String = IMPORTS
        .iter()
        .map(|(name, params)| {
            format!("(import \"wasi_snapshot_preview1\" \"{name}\" (func ${name} (param {params}) (result i32)))\n")
        })
        .collect();
    format!(
        r#"(module
            {imports}
            (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
            (memory (export "memory") 2)
            {more}
            (func $exit (param $code i32)
                (if (local.get $code) (then (call $proc_exit (local.get $code)) (unreachable))))
            (func $print (param $at i32) (param $length i32)
                (i32.store (i32.const 0) (local.get $at))
                (i32.store (i32.const 4) (local.get $length))
                (call $exit (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))))
            (func $number (param $number i64)
                (i64.store (i32.const 16) (local.get $number))
                (call $print (i32.const 16) (i32.const 8)))
            (func (export "_start") {body}))"#
    )
}

/// The path of a call, in memory at `at`.
fn path(at: u32, path: &str) -> String {
    format!("(data (i32.const {at}) \"{path}\")")
}

fn compiled(text: &str) -> Result<Vec<u8>, CompileError> {
    compile(&wat::parse_str(text).expect("the test's text is well-formed"))
}

fn loaded(artefact: &[u8]) -> Program {
    let mut file = tempfile::tempfile().expect("there is a temporary directory");
    file.write_all(artefact).and_then(|()| file.rewind()).expect("it can be written to");
    load(file).expect("it was just compiled")
}

fn program(text: &str) -> Program {
    loaded(&compiled(text).unwrap_or_else(|error| panic!("{error}: {text}")))
}

fn outcome(text: &str, task: Task) -> Outcome {
    run(&program(text), task, &mut |_| Go::On).expect("the machine has memory")
}

/// The numbers that a program printed by `$number`, before anything else.
fn numbers(outcome: &Outcome) -> Vec<u64> {
    outcome.stdout.as_chunks().0.iter().map(|number| u64::from_le_bytes(*number)).collect()
}
