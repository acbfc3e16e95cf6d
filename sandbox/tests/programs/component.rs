//! Components: the programs of the other tests, made into components by an adapter that turns preview 1 into 0.2,
//! as toolchains do.

use spare_sandbox::run::{Go, run};
use spare_sandbox::task::{Exit, Kind, Outcome, Task};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::ComponentEncoder;

use crate::{command, loaded, numbers, path, program, task, with_fuel};

fn component(text: &str) -> Vec<u8> {
    let module = wat::parse_str(text).expect("the test's text is well-formed");
    ComponentEncoder::default()
        .module(&module)
        .and_then(|encoder| {
            encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)
        })
        .and_then(|encoder| encoder.validate(true).encode())
        .expect("it is a command")
}

fn outcome(text: &str, task: Task) -> Outcome {
    let artefact = spare_sandbox::compile::compile(&component(text)).expect("it is valid");
    let program = loaded(&artefact);
    assert_eq!(program.kind(), Kind::Component);
    run(&program, task, &mut |_| Go::On).expect("the machine has memory")
}

#[test]
fn a_component_reads_writes_prints_and_ends_as_a_module_does() {
    let more = format!("{}{}", path(40, "in/data"), path(56, "out/copy"));
    let body = "
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 7) (i32.const 0) (i64.const 2) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (i32.store (i32.const 0) (i32.const 512)) (i32.store (i32.const 4) (i32.const 100))
        (call $exit (call $fd_read (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 4)))
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 56) (i32.const 8) (i32.const 9) (i64.const 64) (i64.const 0)
            (i32.const 0) (i32.const 24)))
        (call $exit (call $fd_write (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (i32.store (i32.const 4) (i32.const 100))
        (call $exit (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 4)))
        (call $print (i32.const 512) (i32.load (i32.const 4)))
        (call $exit (i32.const 1))";
    let text = command(&more, body);
    let (as_module, as_component) = (crate::outcome(&text, task()), outcome(&text, task()));
    assert_eq!(as_component.exit, Exit::Code(1));
    assert_eq!(as_component.stdout, b"standard input");
    assert_eq!(as_component.outputs[0].bytes, b"input data");
    assert_eq!(
        (as_module.exit, as_module.stdout, as_module.outputs),
        (as_component.exit, as_component.stdout, as_component.outputs)
    );
}

#[test]
fn clocks_random_bytes_and_listings_are_the_same_again() {
    let body = "
        (call $exit (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 3600000000000))
        (call $exit (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))
        (call $exit (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (call $exit (call $random_get (i32.const 256) (i32.const 1000))) (call $print (i32.const 256) (i32.const 1000))
        (call $exit (call $fd_readdir (i32.const 3) (i32.const 2048) (i32.const 4096) (i64.const 0) (i32.const 16)))
        (call $print (i32.const 2048) (i32.load (i32.const 16)))";
    let first = outcome(&command("", body), task());
    assert_eq!(first.exit, Exit::Code(0));
    let (before_ns, after_ns) = (numbers(&first)[0], numbers(&first)[1]);
    assert!(
        (3_600_000_000_000..3_600_001_000_000).contains(&(after_ns - before_ns)),
        "{}",
        after_ns - before_ns
    );
    assert_eq!(first, outcome(&command("", body), task()));
}

#[test]
fn hostile_components_end_too() {
    const FUEL: u64 = 50_000_000;
    let open = "(drop (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 8) (i32.const 1) (i64.const 66) (i64.const 66)
            (i32.const 0) (i32.const 24)))";
    for call in [
        "",
        "(drop (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 16)))",
        "(drop (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))",
        "(drop (call $random_get (i32.const 0) (i32.const 65536)))",
        "(i64.store (i32.const 88) (i64.const -1)) (drop (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))",
        &format!("{open} (drop (call $fd_close (i32.load (i32.const 24))))"),
    ] {
        let text = command(&path(40, "out/file"), &format!("(loop $again {call} (br $again))"));
        let outcome = outcome(&text, with_fuel(FUEL));
        assert_eq!((outcome.exit, outcome.fuel), (Exit::OutOfFuel, FUEL), "{call}");
    }
}

#[test]
fn a_component_that_opens_without_end_is_told_or_ended() {
    let body = "(loop $again
            (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 8) (i32.const 1) (i64.const 66) (i64.const 66)
                (i32.const 0) (i32.const 24)))
            (br $again))";
    let outcome = outcome(&command(&path(40, "out/file"), body), task());
    assert_ne!(outcome.exit, Exit::OutOfFuel);
}

/// A component that calls a function which nobody has.
const STRANGE: &str = r#"(component
    (import "wasi:sockets/strange@0.2.0" (instance $strange (export "call" (func))))
    (core func $call (canon lower (func $strange "call")))
    (core module $module
        (import "strange" "call" (func $call))
        (func (export "run") (result i32) CALL (i32.const 0)))
    (core instance $instance (instantiate $module (with "strange" (instance (export "call" (func $call))))))
    (func $run (result (result)) (canon lift (core func $instance "run")))
    (instance $exported (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $exported)))"#;

#[test]
fn an_unknown_import_ends_the_program_by_name_but_only_if_it_is_called() {
    let run = |text: &str| crate::run(&program(text), task(), &mut |_| Go::On).unwrap();
    assert_eq!(run(&STRANGE.replace("CALL", "")).exit, Exit::Code(0));
    let why = "it called wasi:sockets/strange@0.2.0#call, which the sandbox does not have";
    assert_eq!(run(&STRANGE.replace("CALL", "(call $call)")).exit, Exit::Trapped(why.into()));
}

#[test]
fn a_component_that_is_no_command_is_refused() {
    let outcome = crate::run(&program("(component)"), task(), &mut |_| Go::On).unwrap();
    assert!(matches!(&outcome.exit, Exit::Refused(why) if why.contains("wasi:cli/run")), "{}", outcome.exit);
}
