//! Jobs in jailed workers, honest and hostile, over real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use common::{
    LONG, Marked, cache, compile_limits, compiled, endless, module, processes, settings, task, wait_until,
};
use spare_sandbox::cache::Key;
use spare_sandbox::host::{
    CompileFailure, CompileLimits, CompiledError, PoolSize, Settings, Stop, WorkerCommand, WorkerError,
    Workers,
};
use spare_sandbox::run::Go;
use spare_sandbox::task::{Determinism, Exit, Input, Task};

/// A limit that is reached soon, and far from how long anything here takes that is to be done within it.
const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_job_runs_in_a_worker() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &module("(drop (i32.add (i32.const 1) (i32.const 2)))"));
    let outcome = marked.run(&artefact, &task(), LONG).unwrap();
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!(outcome.fuel > 0 && outcome.fuel < 1_000, "{outcome:?}");
    assert_eq!(marked.run(&artefact, &task(), LONG).unwrap(), outcome, "and again, with the same outcome");
}

#[test]
fn a_trap_and_a_lack_of_fuel_are_outcomes() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let trap = compiled(&marked.workers, &cache, &module("unreachable"));
    assert!(matches!(marked.run(&trap, &task(), LONG).unwrap().exit, Exit::Trapped(_)));
    let mut little = task();
    little.limits.fuel = 1_000_000;
    let outcome = marked.run(&compiled(&marked.workers, &cache, &endless()), &little, LONG).unwrap();
    assert_eq!(outcome.exit, Exit::OutOfFuel);
}

#[test]
fn an_endless_loop_is_killed_at_its_time_limit() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &endless());
    let started = Instant::now();
    let error = marked.run(&artefact, &task(), SHORT).unwrap_err();
    assert!(matches!(error, WorkerError::Late { limit: SHORT }), "{error}");
    assert!(started.elapsed() >= SHORT);
}

#[test]
fn an_endless_loop_stops_at_a_step_and_says_how_far_it_came() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &endless());
    let mut told = 0;
    let outcome = marked.run_in_steps(&artefact, &task(), LONG, &mut |step| {
        told = step.fuel;
        Go::Stop
    });
    let outcome = outcome.unwrap();
    assert_eq!(outcome.exit, Exit::Stopped);
    assert!(told > 0 && outcome.fuel >= told, "{outcome:?} after {told}");
}

#[test]
fn another_thread_stops_a_call_at_any_time() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &endless());
    let stop = Stop::new();
    let (says, hears) = mpsc::channel();
    thread::scope(|threads| {
        let call = threads.spawn(|| {
            marked.workers.run(&artefact, &task(), LONG, &stop, &mut |_| {
                says.send(()).unwrap();
                Go::On
            })
        });
        hears.recv_timeout(LONG).unwrap();
        stop.stop();
        let ended = call.join().unwrap();
        assert!(matches!(ended, Err(WorkerError::Stopped)), "{ended:?}");
    });
    let ended = marked.workers.run(&artefact, &task(), LONG, &stop, &mut |_| Go::On);
    assert!(matches!(ended, Err(WorkerError::Stopped)), "one that was stopped before it began: {ended:?}");
}

#[test]
fn a_worker_killed_from_outside_is_named_and_the_next_job_runs() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &endless());
    let mut killed = false;
    let error = marked.run_in_steps(&artefact, &task(), LONG, &mut |_| {
        if !killed {
            killed = true;
            // The warm one too, which nobody uses then.
            processes(&marked.mark).into_iter().for_each(kill);
        }
        Go::On
    });
    assert!(matches!(error, Err(WorkerError::Killed)), "{error:?}");
    let artefact = compiled(&marked.workers, &cache, &module(""));
    assert_eq!(marked.run(&artefact, &task(), LONG).unwrap().exit, Exit::Code(0));
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    // It may have ended by itself.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

#[test]
fn memory_beyond_the_limit_is_refused_to_the_program() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    // Traps if it gets what it asks for: 2,000 pages are 125 MiB, where 64 MiB are allowed.
    let greedy = module("(if (i32.ne (memory.grow (i32.const 2000)) (i32.const -1)) (then unreachable))");
    let outcome = marked.run(&compiled(&marked.workers, &cache, &greedy), &task(), LONG).unwrap();
    assert_eq!((outcome.exit, outcome.memory_refused), (Exit::Code(0), true));
}

#[test]
fn memory_within_the_limit_can_all_be_used() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    // Writes to each of 3,900 pages, 243 MiB.
    let user = module(
        "(local $at i32) (if (i32.eq (memory.grow (i32.const 3899)) (i32.const -1)) (then unreachable))
         (loop (i32.store (local.get $at) (i32.const 1))
               (local.set $at (i32.add (local.get $at) (i32.const 4096)))
               (br_if 0 (i32.lt_u (local.get $at) (i32.const 255590400))))",
    );
    let mut task = task();
    task.limits.memory_bytes = 244 << 20;
    let outcome = marked.run(&compiled(&marked.workers, &cache, &user), &task, LONG).unwrap();
    assert_eq!(outcome.exit, Exit::Code(0), "{outcome:?}");
}

#[test]
fn a_worker_that_takes_more_memory_than_it_may_is_killed() {
    let (honest, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&honest.workers, &cache, &module(""));
    for how in ["fat", "page-tables"] {
        let error = Marked::lying(how).run(&artefact, &task(), LONG).unwrap_err();
        assert!(matches!(error, WorkerError::OutOfMemory { .. }), "{how}: {error}");
    }
}

#[test]
fn a_compile_bomb_ends_with_a_named_error_while_other_jobs_go_on() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &module(""));
    let bomb = bomb();
    let compile =
        |limits: CompileLimits| marked.workers.compile(&bomb, &limits, &Stop::new(), &mut std::io::sink());
    thread::scope(|threads| {
        let late = threads.spawn(|| compile(CompileLimits { wall: SHORT, ..compile_limits() }));
        while !late.is_finished() {
            assert_eq!(marked.run(&artefact, &task(), LONG).unwrap().exit, Exit::Code(0));
        }
        let late = late.join().unwrap();
        assert!(matches!(late, Err(CompileFailure::Worker(WorkerError::Late { .. }))), "{late:?}");
    });
    let fat = compile(CompileLimits { memory_bytes: 48 << 20, ..compile_limits() });
    assert!(matches!(fat, Err(CompileFailure::Worker(WorkerError::OutOfMemory { .. }))), "{fat:?}");
}

/// Valid, and long to compile: few functions, each of much code that all depends on what came before.
fn bomb() -> Vec<u8> {
    const FUNCTIONS: usize = 6;
    let round = [0x20, 0x00, 0x20, 0x00, 0x6c, 0x20, 0x00, 0x6a, 0x21, 0x00].repeat(80_000); // x = x * x + x
    let body = [&[0x00][..], &round, &[0x20, 0x00, 0x0b]].concat();
    let bodies = [vec![2, 0x00, 0x0b], [leb128(body.len()), body].concat().repeat(FUNCTIONS)].concat();
    let section = |id: u8, count: usize, items: &[u8]| {
        let content = [leb128(count), items.to_vec()].concat();
        [vec![id], leb128(content.len()), content].concat()
    };
    [
        b"\0asm\x01\0\0\0".to_vec(),
        section(1, 2, &[0x60, 0, 0, 0x60, 1, 0x7f, 1, 0x7f]), // () -> () and i32 -> i32
        section(3, 1 + FUNCTIONS, &[vec![0], vec![1; FUNCTIONS]].concat()),
        section(7, 1, b"\x06_start\x00\x00"),
        section(10, 1 + FUNCTIONS, &bodies),
    ]
    .concat()
}

fn leb128(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

#[test]
fn the_bomb_is_a_valid_program() {
    let marked = Marked::start();
    let len = marked.workers.compile(&bomb(), &compile_limits(), &Stop::new(), &mut std::io::sink()).unwrap();
    assert!(len > 1 << 20, "{len} bytes");
    let limits = CompileLimits { artefact_bytes: 1 << 20, ..compile_limits() };
    let long = marked.workers.compile(&bomb(), &limits, &Stop::new(), &mut std::io::sink());
    assert!(matches!(long, Err(CompileFailure::TooLong { .. })), "{long:?}");
}

#[test]
fn what_is_no_program_is_refused_with_words() {
    let marked = Marked::start();
    let refused =
        marked.workers.compile(b"no program", &compile_limits(), &Stop::new(), &mut std::io::sink());
    assert!(matches!(&refused, Err(CompileFailure::Refused(why)) if !why.is_empty()), "{refused:?}");
}

#[test]
fn what_is_no_artefact_is_refused_with_words() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let mut new = cache.begin(&common::CLIENT).unwrap();
    std::io::Write::write_all(&mut new, &[7; 10_000]).unwrap();
    let artefact = new.keep(Key::of(b"")).unwrap();
    let error = marked.run(&artefact, &task(), LONG).unwrap_err();
    assert!(matches!(error, WorkerError::Artefact(_)), "{error}");
}

#[test]
fn a_writer_that_fails_is_told_apart_from_a_compiler_that_does() {
    struct Full;
    impl std::io::Write for Full {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let marked = Marked::start();
    let full = marked.workers.compile(&module(""), &compile_limits(), &Stop::new(), &mut Full);
    assert!(matches!(full, Err(CompileFailure::Write(_))), "{full:?}");
}

#[test]
fn what_liars_say_is_nonsense_and_takes_no_longer_than_the_limit() {
    let (honest, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&honest.workers, &cache, &module(""));
    for (how, expected) in [
        ("early", "Nonsense"),
        ("other-build", "OtherBuild"),
        ("garbage", "Nonsense"),
        ("zeroes", "Nonsense"),
        ("long-head", "Nonsense"),
        ("stuck", "Nonsense"),
        ("much-printed", "Nonsense"),
        ("escape", "Nonsense"),
        ("huge-output", "Nonsense"),
        ("artefact", "Nonsense"),
        ("hang-up", "Killed"),
        ("break-out", "Jailed"),
        ("crash", "Crashed { signal: 6, words: \"\" }"),
        ("panic", "Ended { code: 101, words: "),
        ("flood", "Late"),
        ("silent", "Late"),
    ] {
        let lying = Marked::lying(how);
        // Those that are not waited for get all the time they want.
        let wall = if expected == "Late" { SHORT } else { LONG };
        let error = lying.run(&artefact, &task(), wall).unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{how}: {error:?}");
        drop(lying.workers);
        assert_eq!(processes(&lying.mark), [0; 0], "{how} is gone");
    }
}

#[test]
fn a_worker_that_does_not_listen_is_late_too() {
    let (honest, lying, (cache, _directory)) = (Marked::start(), Marked::lying("silent"), cache());
    let artefact = compiled(&honest.workers, &cache, &module(""));
    let mut big = task();
    big.stdin = vec![0; 10 << 20];
    let error = lying.run(&artefact, &big, SHORT).unwrap_err();
    assert!(matches!(error, WorkerError::Late { .. }), "{error}");
}

#[test]
fn a_compiler_that_lies_about_lengths_is_stopped() {
    let lying = Marked::lying("artefact");
    let long = lying.workers.compile(&module(""), &compile_limits(), &Stop::new(), &mut std::io::sink());
    assert!(matches!(long, Err(CompileFailure::TooLong { .. })), "{long:?}");
}

#[test]
fn a_worker_that_cannot_start_is_named() {
    let nowhere = WorkerCommand { program: "/nowhere/at/all".into(), arguments: vec![], environment: vec![] };
    let error = Workers::new(nowhere, settings()).unwrap().walls().unwrap_err();
    assert!(matches!(&error, WorkerError::NotStarted(why) if why.contains("No such file")), "{error}");
    let silent = WorkerCommand { program: "/bin/false".into(), arguments: vec![], environment: vec![] };
    let error = Workers::new(silent, settings()).unwrap().walls().unwrap_err();
    assert!(matches!(&error, WorkerError::NotStarted(why) if why.contains("exit status: 1")), "{error}");
}

#[test]
fn workers_are_bounded_in_number() {
    let size = PoolSize { busy_max: 1, warm: 1 };
    let bounded = Settings { compilers: size, runners: size, place_wait: Duration::ZERO };
    let (marked, (cache, _directory)) = (Marked::with(&[], bounded), cache());
    let artefact = compiled(&marked.workers, &cache, &endless());
    let outcome = marked.run_in_steps(&artefact, &task(), LONG, &mut |_| {
        let error = marked.run(&artefact, &task(), LONG).unwrap_err();
        assert!(matches!(error, WorkerError::AllBusy { busy: 1 }), "{error}");
        Go::Stop
    });
    assert_eq!(outcome.unwrap().exit, Exit::Stopped);
    assert_eq!(
        marked.run(&artefact, &task(), SHORT).unwrap_err().to_string(),
        "killed at its time limit of 300ms"
    );
}

#[test]
fn a_task_whose_head_is_too_long_is_refused_before_a_worker_is_used() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &module(""));
    let mut long = task();
    long.args.push("x".repeat(5 << 20));
    let error = marked.run(&artefact, &long, LONG).unwrap_err();
    assert!(matches!(error, WorkerError::TaskTooLong { .. }), "{error}");
}

#[test]
fn no_worker_outlives_its_pool() {
    let marked = Marked::start();
    wait_until("a worker is warm", || !processes(&marked.mark).is_empty());
    drop(marked.workers);
    assert_eq!(processes(&marked.mark), [0; 0]);
}

#[test]
fn no_worker_outlives_a_parent_that_is_killed() {
    let (honest, (cache, directory)) = (Marked::start(), cache());
    compiled(&honest.workers, &cache, &endless());
    let file = directory.path().join("module");
    std::fs::write(&file, endless()).unwrap();
    // One worker that ends when it finds its socket closed, and one that would not.
    for arguments in [&[][..], &["lie", "entrenched"]] {
        let mark = common::new_mark();
        let mut parent = Command::new(common::worker())
            .arg("parent")
            .args([&file, &directory.path().join("artefacts")])
            .args(arguments)
            .arg(&mark)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        BufReader::new(parent.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "busy\n");
        wait_until("there are the parent, a busy and a warm worker", || processes(&mark).len() == 3);
        parent.kill().unwrap();
        parent.wait().unwrap();
        wait_until("all of them are gone", || processes(&mark).is_empty());
    }
}

/// Copies standard input to standard output, a page at a time, and then does something else.
fn echo(and_then: &str) -> Vec<u8> {
    let text = format!(
        r#"(module
        (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 2)
        (func (export "_start")
            (i32.store (i32.const 0) (i32.const 65536))
            (loop
                (i32.store (i32.const 4) (i32.const 65536))
                (if (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)) (then unreachable))
                (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
                (br_if 0 (i32.load (i32.const 4))))
            {and_then}))"#
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn a_big_task_and_a_big_outcome_pass() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &echo(""));
    let mut big = task();
    big.stdin = (0..20u32 << 20).map(|at| (at / 1000) as u8).collect();
    big.inputs = vec![Input { path: "in/big".into(), bytes: vec![2; 60 << 20] }];
    big.limits.log_bytes = 20 << 20;
    let outcome = marked.run(&artefact, &big, LONG).unwrap();
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!(outcome.stdout == big.stdin, "what was printed is not what was read");
}

#[test]
fn what_is_printed_is_told_at_the_next_step() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &echo("(loop (br 0))"));
    let mut task = task();
    task.stdin = b"hello".to_vec();
    let mut heard = Vec::new();
    let outcome = marked.run_in_steps(&artefact, &task, LONG, &mut |step| {
        heard.push(step.stdout.to_vec());
        if heard.len() == 2 { Go::Stop } else { Go::On }
    });
    assert_eq!(outcome.unwrap().stdout, b"hello");
    assert_eq!(heard, [&b"hello"[..], &b""[..]], "once, and not again");
}

#[test]
fn real_clocks_sleep_and_entropy_work_in_the_jail() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    // Sleeps 10 ms by the monotonic clock, reads the other clock, draws 16 bytes, and prints them all.
    let text = r#"(module
        (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "clock_time_get" (func $time (param i32 i64 i32) (result i32)))
        (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
        (memory (export "memory") 1)
        (func (export "_start")
            (i32.store (i32.const 16) (i32.const 1))
            (i64.store (i32.const 24) (i64.const 10000000))
            (if (call $poll (i32.const 0) (i32.const 100) (i32.const 1) (i32.const 200)) (then unreachable))
            (if (call $time (i32.const 0) (i64.const 1) (i32.const 300)) (then unreachable))
            (if (call $random (i32.const 308) (i32.const 16)) (then unreachable))
            (i32.store (i32.const 0) (i32.const 300))
            (i32.store (i32.const 4) (i32.const 24))
            (if (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))))"#;
    let artefact = compiled(&marked.workers, &cache, &wat::parse_str(text).unwrap());
    let mut task = task();
    let printed = |task: &Task| marked.run(&artefact, task, LONG).unwrap().stdout;
    assert_eq!(printed(&task), printed(&task), "nothing of the machine's");
    task.determinism = Determinism::Free;
    let started = Instant::now();
    let first = printed(&task);
    assert!(started.elapsed() >= Duration::from_millis(10));
    let now_ns = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    let told_ns = u64::from_le_bytes(*first.first_chunk().unwrap());
    assert!(told_ns < now_ns && now_ns - told_ns < LONG.as_nanos() as u64, "{told_ns} at {now_ns}");
    assert_ne!(first[8..], printed(&task)[8..], "entropy does not repeat");
}

#[test]
fn components_run_in_the_jail() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let text = r#"(component
        (core module $m
            (memory (export "memory") 1)
            (data (i32.const 0) "\2a")
            (func (export "run") (result i32) (i32.ne (i32.load8_u (i32.const 0)) (i32.const 42))))
        (core instance $i (instantiate $m))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $exported (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $exported)))"#;
    let artefact = compiled(&marked.workers, &cache, &wat::parse_str(text).unwrap());
    assert_eq!(marked.run(&artefact, &task(), LONG).unwrap().exit, Exit::Code(0));
}

#[test]
fn jobs_at_the_same_time_do_not_mix() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let artefact = compiled(&marked.workers, &cache, &echo(""));
    thread::scope(|threads| {
        for number in 0..8u8 {
            let (marked, artefact) = (&marked, &artefact);
            threads.spawn(move || {
                for round in 0..10u8 {
                    let mut own = task();
                    own.stdin = vec![number, round];
                    let outcome = marked.run(artefact, &own, LONG).unwrap();
                    assert_eq!((outcome.exit, outcome.stdout), (Exit::Code(0), own.stdin));
                }
            });
        }
    });
}

#[test]
fn a_program_that_the_machine_has_no_memory_for_is_not_to_blame() {
    let grow = module("(local $pages i32) (drop (memory.grow (i32.const 3000)))");
    let artefact = spare_sandbox::compile::compile(&grow).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), artefact).unwrap();
    let said = Command::new(common::worker()).arg("scarce").arg(file.path()).output().unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.starts_with("Err(MachineFailed(\"the machine lacks memory: "), "{said}");

    let (cache, _directory) = cache();
    let artefact = compiled(&Marked::start().workers, &cache, &grow);
    let error = Marked::lying("failed").run(&artefact, &task(), LONG).unwrap_err();
    assert!(matches!(&error, WorkerError::Machine(why) if why == "no room"), "{error}");
}

/// A module that takes long enough to compile for others to ask for it meanwhile.
fn slow_to_compile() -> Vec<u8> {
    let body = "(local.set 0 (i32.add (i32.mul (local.get 0) (i32.const 7)) (i32.load (local.get 0))))"
        .repeat(2_000);
    let function = format!("(func (local i32) {body})");
    let text =
        format!(r#"(module (memory (export "memory") 1) (func (export "_start")) {})"#, function.repeat(10));
    wat::parse_str(text).unwrap()
}

#[test]
fn calls_for_one_program_at_one_time_share_its_compilation() {
    let (marked, (cache, _directory)) = (Marked::start(), cache());
    let module = slow_to_compile();
    let started = std::sync::Barrier::new(3);
    let ask = |client: [u8; 32]| {
        started.wait();
        marked.workers.compiled(&cache, &client, &module, &compile_limits(), &Stop::new()).unwrap()
    };
    let (one, other, third) = thread::scope(|threads| {
        let [one, other, third] =
            [[1; 32], [1; 32], [2; 32]].map(|client| threads.spawn(move || ask(client)));
        (one.join().unwrap(), other.join().unwrap(), third.join().unwrap())
    });
    assert_ne!(one.took.is_some(), other.took.is_some(), "one of them compiles: {one:?}, {other:?}");
    assert!(third.took.is_some(), "nobody gets what was compiled for another");
    for compiled in [one, other, third] {
        assert_eq!(marked.run(&compiled.artefact, &task(), LONG).unwrap().exit, Exit::Code(0));
    }
}

#[test]
fn who_waits_for_anothers_compilation_can_be_stopped_and_is_next_when_it_fails() {
    let (marked, (cache, directory)) = (Marked::start(), cache());
    let module = slow_to_compile();
    let none = CompileLimits { artefact_bytes: 1, ..compile_limits() };
    let ask = |limits: &CompileLimits, stop: &Stop| {
        marked.workers.compiled(&cache, &common::CLIENT, &module, limits, stop)
    };
    let stopped = Stop::new();
    stopped.stop();
    thread::scope(|threads| {
        let fails = threads.spawn(|| ask(&none, &Stop::new()));
        wait_until("the first compiles", || has_begun(&directory));
        let error = ask(&compile_limits(), &stopped).unwrap_err();
        assert!(error.to_string().ends_with("stopped"), "{error}");
        let next = ask(&compile_limits(), &Stop::new()).unwrap();
        assert!(next.took.is_some());
        assert!(matches!(
            fails.join().unwrap(),
            Err(CompiledError::Compile(CompileFailure::TooLong { max_bytes: 1, .. }))
        ));
    });
}

/// Whether an artefact has been begun.
fn has_begun(directory: &tempfile::TempDir) -> bool {
    let clients = std::fs::read_dir(directory.path().join("artefacts")).unwrap().flatten();
    clients.into_iter().any(|client| std::fs::read_dir(client.path()).unwrap().next().is_some())
}
