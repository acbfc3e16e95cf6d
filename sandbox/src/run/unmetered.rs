//! Compiles and runs without fuel, so that a bench can tell what metering costs. Nothing else may call this: what runs
//! here runs for as long as it likes.
//!
//! All else is as it is with fuel: settings, WASI, limits of memory. Without fuel there are no steps either.

use std::fs::File;
use std::sync::LazyLock;

use wasmtime::{Engine, Store};

use super::{Entry, Go, Program, RunError, drive, execute, exit, load_for, outcome, refusal};
use crate::engine;
use crate::guest::Guest;
use crate::progress::Progress;
use crate::task::{Exit, Outcome, Task};

/// A program without meters. It cannot be given to [`run`](super::run).
pub struct Unmetered(Program);

/// Compiles a module.
///
/// # Errors
/// What the engine says.
pub fn compile(module: &[u8]) -> Result<Vec<u8>, String> {
    engine().precompile_module(module).map_err(|error| error.to_string())
}

/// Loads what [`compile`] made.
///
/// # Errors
/// [`RunError`] when it is something else.
pub fn load(artefact: File) -> Result<Unmetered, RunError> {
    load_for(engine(), artefact).map(Unmetered)
}

/// Runs to the end. The outcome's fuel is 0.
pub fn run(Unmetered(program): &Unmetered, task: Task) -> Outcome {
    if let Entry::None(why) = &program.entry {
        return refusal(why.clone());
    }
    let progress = Progress::new(task.limits.log_bytes, u64::MAX);
    let mut store = match Guest::new(task, progress) {
        Ok(guest) => Store::new(&program.engine, guest),
        Err(error) => return refusal(error.to_string()),
    };
    store.limiter(|guest| &mut guest.memory);
    let ended = drive(execute(&program.entry, &mut store), || Go::On);
    let exit = match ended {
        Some(Ok(code)) => Exit::Code(code),
        Some(Err(failure)) => exit(failure, &store).expect("the machine has memory for a bench"),
        None => Exit::Stopped,
    };
    outcome(exit, 0, store.into_data())
}

fn engine() -> Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        let mut settings = engine::settings();
        settings.consume_fuel(false);
        Engine::new(&settings).expect("the configuration is constant, and the bench builds it")
    });
    ENGINE.clone()
}
