//! The same task gives the same outcome.

use spare_sandbox::task::{Determinism, Exit, Task};

use crate::{command, numbers, outcome, path, task};

/// Prints clocks, random bytes, a listing and the time after sleeping an hour, and leaves a file.
fn curious() -> String {
    let more = format!("{}{}", path(40, "out/file"), path(48, "in"));
    let body = "
        (call $exit (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (call $exit (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (call $exit (call $clock_time_get (i32.const 2) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (i32.store (i32.const 80) (i32.const 1)) (i64.store (i32.const 88) (i64.const 3600000000000))
        (call $exit (call $poll_oneoff (i32.const 64) (i32.const 128) (i32.const 1) (i32.const 8)))
        (call $exit (call $clock_time_get (i32.const 0) (i64.const 0) (i32.const 16))) (call $print (i32.const 16) (i32.const 8))
        (call $exit (call $random_get (i32.const 256) (i32.const 1000))) (call $print (i32.const 256) (i32.const 1000))
        (call $exit (call $fd_readdir (i32.const 3) (i32.const 2048) (i32.const 4096) (i64.const 0) (i32.const 16)))
        (call $print (i32.const 2048) (i32.load (i32.const 16)))
        (call $exit (call $path_open (i32.const 3) (i32.const 0) (i32.const 40) (i32.const 8) (i32.const 1) (i64.const 66) (i64.const 66)
            (i32.const 0) (i32.const 24)))
        (i32.store (i32.const 0) (i32.const 256)) (i32.store (i32.const 4) (i32.const 1000))
        (call $exit (call $fd_write (i32.load (i32.const 24)) (i32.const 0) (i32.const 1) (i32.const 8)))";
    command(&more, body)
}

#[test]
fn a_program_that_looks_at_everything_sees_the_same_again() {
    let first = outcome(&curious(), task());
    assert_eq!(first.exit, Exit::Code(0));
    assert_eq!(first.outputs[0].bytes.len(), 1_000);
    assert_eq!(first, outcome(&curious(), task()));
    let [unix_ns, elapsed_ns, processor_ns, later_ns] = numbers(&first)[..4] else {
        unreachable!("four numbers")
    };
    assert!(unix_ns > 1_767_225_600_000_000_000 && elapsed_ns > 0 && processor_ns > elapsed_ns);
    assert!(
        (3_600_000_000_000..3_600_000_100_000).contains(&(later_ns - unix_ns)),
        "an hour and what it computed"
    );
    let other_seed = outcome(&curious(), Task { seed: [8; 32], ..task() });
    assert_eq!(first.stdout[..32], other_seed.stdout[..32]);
    assert_ne!(first.outputs, other_seed.outputs);
}

#[test]
fn in_freedom_clock_and_random_bytes_are_the_machines() {
    let text = curious().replace("3600000000000", "2000000");
    let free = || outcome(&text, Task { determinism: Determinism::Free, ..task() });
    let (first, second) = (free(), free());
    assert_eq!(first.exit, Exit::Code(0));
    assert_ne!(first.outputs, second.outputs);
    let (first_ns, second_ns) = (numbers(&first)[0], numbers(&second)[0]);
    assert!(second_ns > first_ns && second_ns - first_ns < 60_000_000_000, "it is the clock of this machine");
    assert!(first.fuel >= 1_900_000, "and sleeping costs");
}

#[test]
fn waiting_by_looking_at_the_clock_ends_since_that_takes_time_too() {
    let body = "(call $exit (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 16)))
        (i64.store (i32.const 24) (i64.add (i64.load (i32.const 16)) (i64.const 10000000)))
        (loop $again
            (call $exit (call $clock_time_get (i32.const 1) (i64.const 0) (i32.const 16)))
            (br_if $again (i64.lt_u (i64.load (i32.const 16)) (i64.load (i32.const 24)))))";
    let outcome = outcome(&command("", body), task());
    assert_eq!(outcome.exit, Exit::Code(0));
    assert!((10_000_000..11_000_000).contains(&outcome.fuel), "{}", outcome.fuel);
}

#[test]
fn nans_are_canonical() {
    let body = "(local $zero f64)
        (call $number (i64.reinterpret_f64 (f64.div (local.get $zero) (local.get $zero))))
        (call $number (i64.reinterpret_f64 (f64.add (f64.reinterpret_i64 (i64.const 0x7ff0dead0000beef)) (f64.const 1))))";
    assert_eq!(numbers(&outcome(&command("", body), task())), [0x7ff8 << 48; 2]);
}
