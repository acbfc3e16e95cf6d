//! What a machine can run, over real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod common;

use std::time::{Duration, Instant};

use common::{LONG, Marked, new_mark, processes, wait_until, worker};
use spare_sandbox::capacity::{self, DetectionFailed, Gpus, Why};
use spare_sandbox::host::{WorkerCommand, WorkerError};

const SHORT: Duration = Duration::from_millis(300);

#[test]
fn a_job_burns_fuel_at_some_rate() {
    let rate = capacity::measure(&Marked::start().workers).unwrap();
    println!("{rate:?}");
    assert!(rate.slowest_per_s <= rate.fuel_per_s && rate.fuel_per_s <= rate.fastest_per_s, "{rate:?}");
    // A hundredth and a hundred times of what a desktop does.
    assert!((20_000_000..200_000_000_000).contains(&rate.fuel_per_s), "{rate:?}");
}

/// Machines that run tests have a software renderer, a card, or no Vulkan at all.
#[test]
fn devices_are_looked_for_in_a_process_that_ends() {
    let mark = new_mark();
    let found = gpus(&[&mark], LONG).unwrap();
    println!("{found:#?}");
    for set_aside in &found.set_aside {
        assert!(matches!(set_aside.why, Why::Software | Why::Twice), "{set_aside:?}");
    }
    for gpu in found.gpus.iter().chain(found.set_aside.iter().map(|device| &device.gpu)) {
        assert!(!gpu.name.is_empty() && !gpu.driver.is_empty() && gpu.memory_bytes > 0, "{gpu:?}");
    }
    wait_until("the process is gone", || processes(&mark).is_empty());
}

#[test]
fn a_driver_that_crashes_takes_no_more_with_it_than_the_search() {
    let DetectionFailed(error) = gpus(&["driver", "crash"], LONG).unwrap_err();
    let WorkerError::Crashed { signal, words } = error else { panic!("{error}") };
    assert_eq!((signal, &*words), (libc::SIGABRT, "trying Some Card"));
    let error = gpus(&["driver", "exit"], LONG).unwrap_err();
    assert_eq!(error.to_string(), "detection failed: ended with code 3 and without an outcome: no licence");
}

#[test]
fn a_driver_that_hangs_or_swells_or_chatters_is_killed() {
    let mark = new_mark();
    let started = Instant::now();
    let DetectionFailed(error) = gpus(&["driver", "hang", &mark], SHORT).unwrap_err();
    assert!(matches!(error, WorkerError::Late { limit: SHORT }), "{error}");
    assert!(started.elapsed() >= SHORT);
    let DetectionFailed(error) = gpus(&["driver", "fat", &mark], LONG).unwrap_err();
    assert!(matches!(error, WorkerError::OutOfMemory { .. }), "{error}");
    let DetectionFailed(error) = gpus(&["driver", "chatter", &mark], LONG).unwrap_err();
    assert!(matches!(error, WorkerError::Nonsense(_)), "{error}");
    wait_until("the processes are gone", || processes(&mark).is_empty());
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let command = WorkerCommand { program: "/does/not/exist".into(), arguments: vec![], environment: vec![] };
    let DetectionFailed(error) = capacity::gpus(&command, LONG).unwrap_err();
    assert!(matches!(error, WorkerError::NotStarted(_)), "{error}");
}

fn gpus(arguments: &[&str], wall: Duration) -> Result<Gpus, DetectionFailed> {
    let arguments = arguments.iter().map(Into::into).collect();
    capacity::gpus(&WorkerCommand { program: worker(), arguments, environment: vec![] }, wall)
}
