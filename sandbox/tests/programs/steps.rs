//! Progress, and stopping.

use spare_sandbox::run::{Go, STEP_FUEL, Step, run};
use spare_sandbox::task::{Exit, Outcome, Task};

use crate::{command, program, task, with_fuel};

const STEPS: u64 = 5;

/// Runs a program that never ends for some steps, and returns the fuel of each.
fn stopped_after_steps(body: &str, task: Task) -> (Vec<u64>, Outcome) {
    let mut fuels = Vec::new();
    let outcome = run(&program(&command("(tag $tag)", body)), task, &mut |step: Step<'_>| {
        fuels.push(step.fuel);
        if fuels.len() as u64 == STEPS { Go::Stop } else { Go::On }
    });
    (fuels, outcome.expect("the machine has memory"))
}

#[test]
fn a_run_can_be_stopped_at_each_step_whether_it_computes_or_calls() {
    let compute = "(loop $again (br $again))";
    let call = "(loop $again (drop (call $sched_yield)) (br $again))";
    let both = "(local $count i32)
        (loop $again
            (local.set $count (i32.const 100000))
            (loop $inner (br_if $inner (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
            (drop (call $sched_yield))
            (br $again))";
    let throw = "(loop $again (block $caught (try_table (catch_all $caught) (throw $tag))) (br $again))";
    for body in [compute, call, both, throw] {
        let (fuels, outcome) = stopped_after_steps(body, with_fuel(u64::MAX));
        assert_eq!(outcome.exit, Exit::Stopped);
        assert_eq!(fuels.last(), Some(&outcome.fuel), "steps are exact");
        for (index, fuel) in (1..).zip(&fuels) {
            let due = index * STEP_FUEL;
            assert!((due..due + due / 100).contains(fuel), "step {index} of {body} at {fuel}");
        }
    }
}

#[test]
fn bulk_instructions_count_in_full() {
    let body = "(loop $again (memory.fill (i32.const 0) (i32.const 1) (i32.const 131072)) (br $again))";
    let (fuels, outcome) = stopped_after_steps(body, with_fuel(u64::MAX));
    assert_eq!(fuels.last(), Some(&outcome.fuel));
    assert!(outcome.fuel < STEPS * (STEP_FUEL + 131_072 + 100));
}

#[test]
fn growing_memory_between_calls_loses_no_fuel() {
    // The engine's own helpers cross to the host while code has a part of its fuel in a register.
    let grow =
        "(drop (memory.grow (i32.const 0))) (drop (call $sched_yield)) (drop (memory.grow (i32.const 0)))";
    let body = |rounds: u32| {
        format!(
            "(local $count i32) (local.set $count (i32.const {rounds}))
            (loop $again {grow} (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))"
        )
    };
    let fuel = |rounds| crate::outcome(&command("", &body(rounds)), with_fuel(u64::MAX)).fuel;
    let each = fuel(2) - fuel(1);
    assert_eq!(fuel(1_000_000) - fuel(1), each * 999_999, "{each} for each round, across many steps");
}

#[test]
fn what_is_printed_is_reported_once_and_kept() {
    let print = "(local $count i32) (local.set $count (i32.const 900000))
        (loop $again (call $number (i64.extend_i32_u (local.get $count)))
            (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))";
    let mut limits = task().limits;
    (limits.fuel, limits.log_bytes) = (u64::MAX, u64::MAX);
    let mut reported = Vec::new();
    let mut steps = 0;
    let outcome = run(&program(&command("", print)), Task { limits, ..task() }, &mut |step: Step<'_>| {
        reported.extend_from_slice(step.stdout);
        steps += 1;
        Go::On
    });
    let outcome = outcome.unwrap();
    assert!(steps > 3);
    assert_eq!((outcome.stdout.len(), outcome.log_cut), (900_000 * 8, false));
    assert!(reported.len() < outcome.stdout.len() && outcome.stdout.starts_with(&reported));
}

#[test]
fn what_burned_before_an_exception_is_not_lost() {
    let throws = "(tag $tag)
        (func $throws (param $count i32)
            (loop $again
                (drop (call $sched_yield))
                (br_if $again (local.tee $count (i32.sub (local.get $count) (i32.const 1)))))
            (throw $tag))";
    let body = |rounds: u32, length: u32| {
        format!(
            "(local $rounds i32) (local.set $rounds (i32.const {rounds}))
            (loop $again
                (block $caught (try_table (catch_all $caught) (call $throws (i32.const {length}))))
                (br_if $again (local.tee $rounds (i32.sub (local.get $rounds) (i32.const 1)))))"
        )
    };
    let fuel =
        |rounds, length| crate::outcome(&command(throws, &body(rounds, length)), with_fuel(u64::MAX)).fuel;
    for length in [10, 100_000] {
        let each = fuel(2, length) - fuel(1, length);
        assert!(each > u64::from(length) * 500);
        assert_eq!(fuel(11, length) - fuel(1, length), each * 10, "across steps, too");
    }
}
