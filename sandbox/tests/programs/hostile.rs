//! Programs that mean harm. Each ends within its limits, and its outcome says why.

use std::time::Instant;

use spare_sandbox::compile::CompileError;
use spare_sandbox::task::{Exit, Limits, Outcome, Task};

use crate::{LIMITS, command, compiled, numbers, outcome, path, task, with_fuel};

const FUEL: u64 = 50_000_000;

/// Rights, flags and errors of preview 1 that these programs use.
const READ_WRITE: &str = "(i64.const 66)";
const CREATE: &str = "(i32.const 1)";
const NO_SPACE: u32 = 51;
const TOO_MANY_OPEN: u32 = 33;
const NOT_PERMITTED: u32 = 63;
const NOT_SUPPORTED: u32 = 58;
const FAULT: u32 = 21;

fn open(at: u32, length: u32) -> String {
    format!(
        "(call $path_open (i32.const 3) (i32.const 0) (i32.const {at}) (i32.const {length}) {CREATE} {READ_WRITE} {READ_WRITE}
            (i32.const 0) (i32.const 24))"
    )
}

/// Runs a program that never ends, and checks that it does, having used what it was given and no more.
fn runs_out(more: &str, body: &str) -> Outcome {
    let outcome = outcome(&command(more, body), with_fuel(FUEL));
    assert_eq!((&outcome.exit, outcome.fuel), (&Exit::OutOfFuel, FUEL));
    outcome
}

fn refusal(outcome: Outcome) -> String {
    match outcome.exit {
        Exit::Refused(why) => why,
        exit => panic!("it was not refused, but {exit}"),
    }
}

#[test]
fn an_endless_loop_ends() {
    runs_out("", "(loop $again (br $again))");
}

#[test]
fn an_endless_loop_through_host_calls_ends_as_soon() {
    for call in [
        "(drop (call $sched_yield))",
        "(drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 16)))",
        "(drop (call $fd_close (i32.const 77)))",
        "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 0) (i32.const 8)))",
        "(drop (call $poll_oneoff (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 8)))",
        "(drop (call $random_get (i32.const 0) (i32.const 0)))",
    ] {
        let started = Instant::now();
        runs_out("", &format!("(loop $again {call} (br $again))"));
        assert!(
            started.elapsed().as_secs() < 10,
            "{call} takes far longer than its fuel: {:?}",
            started.elapsed()
        );
    }
}

#[test]
fn bulk_instructions_cost_what_they_move() {
    let body = "(loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 131072)) (br $again))";
    let outcome = runs_out("", body);
    assert_eq!(outcome.exit, Exit::OutOfFuel);
    let body = "(loop $again (memory.copy (i32.const 0) (i32.const 1) (i32.const 131071)) (br $again))";
    runs_out("", body);
}

#[test]
fn memory_grows_up_to_the_limit() {
    let body = "(local $pages i32)
        (loop $again
            (br_if $again (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
        (call $number (i64.extend_i32_u (memory.size)))";
    let outcome = outcome(&command("", body), task());
    assert_eq!(outcome.exit, Exit::Code(0));
    assert_eq!(numbers(&outcome), [LIMITS.memory_bytes / 65_536]);
    assert_eq!((outcome.memory_peak_bytes, outcome.memory_refused), (LIMITS.memory_bytes, true));
}

#[test]
fn several_memories_share_the_limit() {
    let more = "(memory $second 2) (memory $third 2)";
    let body = "(loop $again (br_if $again (i32.ne (memory.grow $second (i32.const 1)) (i32.const -1))))
        (loop $again (br_if $again (i32.ne (memory.grow $third (i32.const 1)) (i32.const -1))))
        (call $number (i64.extend_i32_u (i32.add (memory.size $second) (memory.size $third))))";
    let outcome = outcome(&command(more, body), task());
    assert_eq!(numbers(&outcome), [LIMITS.memory_bytes / 65_536 - 2]);
    assert_eq!(outcome.memory_peak_bytes, LIMITS.memory_bytes);
}

#[test]
fn memory_that_is_too_large_from_the_start_is_refused_with_numbers() {
    let why = refusal(outcome(&command("(memory 65535)", ""), task()));
    let needed = 65_537_u64 * 65_536;
    assert_eq!(
        why,
        format!(
            "it needs {needed} bytes of memory and tables to start, and may have {}",
            LIMITS.memory_bytes
        )
    );
}

#[test]
fn tables_count_as_memory() {
    let more = "(table $table 1 funcref)";
    let body = "(loop $again
            (br_if $again (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
        (call $number (i64.extend_i32_u (table.size $table)))";
    let outcome = outcome(&command(more, body), task());
    let [elements] = numbers(&outcome)[..] else { panic!("it prints one number") };
    let used_bytes = elements * 8 + 2 * 65_536;
    assert_eq!((outcome.memory_peak_bytes, outcome.memory_refused), (used_bytes, true));
    assert!(used_bytes <= LIMITS.memory_bytes && used_bytes + 8_000 > LIMITS.memory_bytes);
    refusal(crate::outcome(&command("(table 10000000 funcref)", ""), task()));
}

#[test]
fn what_is_printed_beyond_the_limit_is_cut() {
    let outcome = runs_out("", "(loop $again (call $print (i32.const 0) (i32.const 65536)) (br $again))");
    assert_eq!((outcome.stdout.len() as u64, outcome.log_cut), (LIMITS.log_bytes, true));
}

#[test]
fn files_have_no_more_bytes_than_the_limit() {
    let write = "(loop $again
        (call $exit (call $fd_write (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (br $again))";
    let body = format!(
        "(call $exit {}) (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1000)) {write}",
        open(40, 8)
    );
    let outcome = outcome(&command(&path(40, "out/file"), &body), task());
    assert_eq!((outcome.exit, outcome.output_refused), (Exit::Code(NO_SPACE), true));
    assert_eq!(
        outcome.outputs[0].bytes.len() as u64,
        LIMITS.output_bytes / 1_000 * 1_000,
        "all or nothing of each write"
    );
}

#[test]
fn holes_count_and_absurd_sizes_are_refused_at_once() {
    let exact = LIMITS.output_bytes;
    for (size, code) in [(exact, 0), (exact + 1, NO_SPACE), (1 << 60, NO_SPACE), (u64::MAX, NO_SPACE)] {
        let body = format!(
            "(call $exit {}) (call $exit (call $fd_filestat_set_size (i32.load (i32.const 24)) (i64.const {size})))",
            open(40, 8)
        );
        let outcome = outcome(&command(&path(40, "out/file"), &body), task());
        assert_eq!((outcome.exit, outcome.output_refused), (Exit::Code(code), code != 0), "size {size}");
        let body = format!(
            "(call $exit {}) (i32.store (i32.const 0) (i32.const 64)) (i32.store (i32.const 4) (i32.const 1))
            (call $exit (call $fd_pwrite (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i64.const {}) (i32.const 8)))",
            open(40, 8),
            size - 1
        );
        let outcome = crate::outcome(&command(&path(40, "out/file"), &body), task());
        assert_eq!(outcome.exit, Exit::Code(code), "a byte before {size}");
    }
}

#[test]
fn there_are_no_more_files_than_the_limit() {
    // The name is a number of eight bytes, of which the first counts.
    let body = format!(
        "(loop $again
            (call $exit {})
            (call $exit (call $fd_close (i32.load (i32.const 24))))
            (i64.store (i32.const 44) (i64.add (i64.load (i32.const 44)) (i64.const 1)))
            (br $again))",
        open(40, 12)
    );
    let limits = Limits { output_files: 20, ..LIMITS };
    let outcome = outcome(&command(&path(40, "out/aaaaaaaa"), &body), Task { limits, ..task() });
    assert_eq!((outcome.exit, outcome.output_refused), (Exit::Code(NO_SPACE), true));
    assert_eq!(outcome.outputs.len(), 20);
}

#[test]
fn descriptors_are_few_and_making_them_costs() {
    let body = format!("(loop $again (call $exit {}) (br $again))", open(40, 8));
    let outcome = outcome(&command(&path(40, "out/file"), &body), task());
    assert_eq!(outcome.exit, Exit::Code(TOO_MANY_OPEN));
    let body = format!(
        "(loop $again (call $exit {}) (call $exit (call $fd_close (i32.load (i32.const 24)))) (br $again))",
        open(40, 8)
    );
    let started = Instant::now();
    runs_out(&path(40, "out/file"), &body);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn endless_recursion_is_a_trap_at_the_same_depth_each_time() {
    let text = command(
        "(func $deeper (param i32) (result i32) (i32.add (i32.const 1) (call $deeper (local.get 0))))",
        "(drop (call $deeper (i32.const 0)))",
    );
    let first = outcome(&text, task());
    assert_eq!(first.exit, Exit::Trapped("call stack exhausted".into()));
    assert_eq!(first, outcome(&text, task()));
}

#[test]
fn whoever_sleeps_for_ever_is_awake_at_once() {
    let started = Instant::now();
    let sleep = "(i64.store (i32.const 88) (i64.const -1))
        (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))";
    runs_out("", &format!("(loop $again {sleep} (br $again))"));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn no_path_leads_out() {
    for outside in
        ["..", "../..", "../../etc/passwd", "/etc/passwd", "/", "in/../..", "out/../../x", "./../x"]
    {
        let body = format!("(call $exit {})", open(40, outside.len() as u32));
        let outcome = outcome(&command(&path(40, outside), &body), task());
        assert_eq!(outcome.exit, Exit::Code(NOT_PERMITTED), "{outside}");
    }
}

#[test]
fn there_are_no_symbolic_links() {
    let more = format!("{}{}", path(40, "/etc/passwd"), path(60, "out/link"));
    let link =
        "(call $path_symlink (i32.const 40) (i32.const 11) (i32.const 3) (i32.const 60) (i32.const 8))";
    let outcome = outcome(&command(&more, &format!("(call $exit {link})")), task());
    assert_eq!((outcome.exit, outcome.outputs.len()), (Exit::Code(NOT_SUPPORTED), 0));
}

#[test]
fn four_gibibytes_of_random_bytes_are_bounded_by_memory_and_by_fuel() {
    let body = "(call $exit (call $random_get (i32.const 0) (i32.const -1)))";
    let small = outcome(&command("", body), task());
    assert_eq!(small.exit, Exit::Code(FAULT));
    let large =
        command("", body).replace("(memory (export \"memory\") 2)", "(memory (export \"memory\") 65536)");
    let limits = Limits { fuel: FUEL, memory_bytes: 4 << 30, ..LIMITS };
    let started = Instant::now();
    let outcome = outcome(&large, Task { limits, ..task() });
    assert_eq!((outcome.exit, outcome.fuel), (Exit::OutOfFuel, FUEL));
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}

#[test]
fn what_cannot_be_started_is_refused_by_name() {
    let unknown =
        r#"(module (import "env" "system" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    assert_eq!(
        refusal(outcome(unknown, task())),
        "it imports system of env, which the sandbox does not have"
    );
    let mistyped = r#"(module (import "wasi_snapshot_preview1" "fd_close" (func)) (memory (export "memory") 1) (func (export "_start")))"#;
    assert!(refusal(outcome(mistyped, task())).contains("incompatible"));
    let library = r#"(module (memory (export "memory") 1) (func (export "add")))"#;
    assert!(refusal(outcome(library, task())).contains("_start"));
    let result = r#"(module (memory (export "memory") 1) (func (export "_start") (result i32) i32.const 1))"#;
    assert!(refusal(outcome(result, task())).contains("_start"));
    for memory in
        [r#"(memory (export "heap") 1)"#, "(memory 1)", r#"(global (export "memory") i32 (i32.const 1))"#, ""]
    {
        let text = format!(r#"(module {memory} (func (export "_start")))"#);
        assert!(refusal(outcome(&text, task())).contains("no memory"), "{memory}");
    }
}

#[test]
fn what_would_take_long_to_compile_is_refused_by_name() {
    let exports: String = (0..50_001).map(|index| format!("(export \"{index}\" (func 0))")).collect();
    let functions = "(func)".repeat(250_001);
    let locals = format!("(func (local {}))", "i32 ".repeat(40_000)).repeat(101);
    let body = format!("(func {})", "(drop (i32.const 1))".repeat(400_000));
    let branches = format!("(func {})", "(loop)".repeat(40_001));
    let squares = format!("(func {})", "(loop)".repeat(40_000)).repeat(6);
    let tables = "(table 1 exnref)".into();
    for (declarations, expected) in [
        (format!("(func){exports}"), "50001 exports"),
        (functions, "250001 functions"),
        (locals, "local variables"),
        (body, "a function has"),
        (branches, "40001 branches in a function"),
        (squares, "branches in its functions, squared"),
        (tables, "tables of exceptions"),
    ] {
        let error = compiled(&format!("(module {declarations})")).expect_err("it is refused");
        assert!(error.to_string().contains(expected), "{error}");
    }
    assert_eq!(spare_sandbox::compile::compile(b"#!/bin/sh"), Err(CompileError::NotWebAssembly));
}

#[test]
fn what_the_machine_could_decide_is_off() {
    for text in [
        "(module (memory 1 1 shared))",
        "(module (memory i64 1))",
        "(module (func (param v128 v128 v128) (result v128) (f32x4.relaxed_madd (local.get 0) (local.get 1) (local.get 2))))",
        "(module (type (struct (field i32))))",
    ] {
        assert!(matches!(compiled(text), Err(CompileError::Invalid(_))), "{text}");
    }
}

#[test]
fn nobody_catches_an_exception_that_the_program_does_not() {
    let outcome = outcome(&command("(tag $tag)", "(throw $tag)"), task());
    assert_eq!(outcome.exit, Exit::Trapped("an exception that nobody caught".into()));
}

#[test]
fn throwing_for_ever_ends() {
    let started = Instant::now();
    let body = "(loop $again (block $caught (try_table (catch_all $caught) (throw $tag))) (br $again))";
    runs_out("(tag $tag)", body);
    assert!(started.elapsed().as_secs() < 10, "{:?}", started.elapsed());
}
