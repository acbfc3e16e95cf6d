//! A stand-in for running.
use crate::task::{Exit, Outcome, Task};
use std::fs::File;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use wasmtime::{Instance, Module, Store};
/// A program.
pub struct Program(Module);
/// Why not.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct RunError(String);
/// How far.
pub struct Step<'a> {
    /// Fuel.
    pub fuel: u64,
    /// Out.
    pub stdout: &'a [u8],
    /// Err.
    pub stderr: &'a [u8],
}
/// Whether.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// Yes.
    On,
    /// No.
    Stop,
}
/// Loads.
#[expect(unsafe_code, reason = "stand-in")]
pub fn load(artefact: File) -> Result<Program, RunError> {
    let engine = crate::engine::engine();
    // SAFETY: stand-in.
    unsafe { Module::deserialize_open_file(&engine, artefact) }.map(Program).map_err(|e| RunError(format!("{e:#}")))
}
/// Runs.
pub fn run(program: &Program, task: &Task, step: &mut dyn FnMut(Step<'_>) -> Go) -> Outcome {
    let mut store = Store::new(program.0.engine(), ());
    store.set_fuel(task.limits.fuel).expect("fuel");
    store.fuel_async_yield_interval(Some(10_000_000)).expect("interval");
    let mut steps = 0;
    let exit = {
        let mut future = pin!(async {
            let instance = Instance::new_async(&mut store, &program.0, &[]).await?;
            instance.get_typed_func::<(), ()>(&mut store, "_start")?.call_async(&mut store, ()).await
        });
        loop {
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(Ok(())) => break Exit::Code(0),
                Poll::Ready(Err(e)) => break Exit::Trapped(e.to_string()),
                Poll::Pending => {
                    steps += 1;
                    if step(Step { fuel: steps * 10_000_000, stdout: b"", stderr: b"" }) == Go::Stop {
                        break Exit::Stopped;
                    }
                }
            }
        }
    };
    Outcome {
        exit,
        fuel: task.limits.fuel - store.get_fuel().unwrap_or(0),
        memory_peak_bytes: 0,
        memory_refused: false,
        output_refused: false,
        stdout: vec![],
        stderr: vec![],
        log_cut: false,
        outputs: vec![],
    }
}
