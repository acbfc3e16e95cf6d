//! The parent's part of the conversation in [`wire`](crate::wire): it asks, listens, and believes nothing.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::pool::Worker;
use super::{CompileFailure, CompileLimits, WorkerError};
use crate::run::{Go, Step};
use crate::task::{Limits, Outcome, Task};
use crate::wire::{self, Answer, Order, ReceiveError, Report, TaskHead};

/// How long a worker that was told to stop may take to report what came of it.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// What went wrong in talking to a worker, before it is clear why.
pub(super) enum Trouble {
    /// The socket closed, or was cut.
    Socket(io::Error),
    /// The worker said what cannot be.
    Nonsense(String),
    /// What it is to be called is known.
    Known(WorkerError),
    /// What it made could not be written.
    Write(io::Error),
}

impl From<ReceiveError> for Trouble {
    fn from(e: ReceiveError) -> Self {
        match e {
            ReceiveError::Socket(e) => Self::Socket(e),
            other => Self::Nonsense(other.to_string()),
        }
    }
}

impl From<io::Error> for Trouble {
    fn from(e: io::Error) -> Self {
        Self::Socket(e)
    }
}

/// Has a module compiled.
pub(super) fn compile(
    worker: &mut Worker,
    module: &[u8],
    limits: &CompileLimits,
    into: &mut dyn Write,
) -> Result<Result<u64, CompileFailure>, Trouble> {
    wire::send(&mut worker.line, &Order::Compile { module_bytes: module.len() as u64 })?;
    worker.line.write_all(module)?;
    match wire::receive(&mut worker.line)? {
        Report::Artefact { artefact_bytes } if artefact_bytes > limits.artefact_bytes => {
            let max_bytes = limits.artefact_bytes;
            Ok(Err(CompileFailure::TooLong { len_bytes: artefact_bytes, max_bytes }))
        }
        Report::Artefact { artefact_bytes } => match pour(worker, artefact_bytes, into) {
            Err(Trouble::Write(e)) => Ok(Err(CompileFailure::Write(e))),
            poured => poured.map(|()| Ok(artefact_bytes)),
        },
        Report::Refused(why) => Ok(Err(CompileFailure::Refused(plausible(why)?))),
        other => Err(Trouble::Nonsense(format!("{} in answer to a module", name_of(&other)))),
    }
}

/// Has a program run.
pub(super) fn run(
    worker: &mut Worker,
    head: TaskHead,
    artefact: impl AsFd,
    task: &Task,
    step: &mut dyn FnMut(Step<'_>) -> Go,
) -> Result<Outcome, Trouble> {
    wire::send(&mut worker.line, &Order::Run(head))?;
    worker.line.send_file(artefact)?;
    wire::send_task_bodies(&mut worker.line, task)?;
    follow(worker, &task.limits, step)
}

/// Hands a body on as it arrives.
fn pour(worker: &mut Worker, len_bytes: u64, into: &mut dyn Write) -> Result<(), Trouble> {
    const PIECE_BYTES: u64 = 256 << 10;
    let mut left = len_bytes;
    while left > 0 {
        let piece = wire::receive_body(&mut worker.line, left.min(PIECE_BYTES))?;
        into.write_all(&piece).map_err(Trouble::Write)?;
        left -= piece.len() as u64;
    }
    Ok(())
}

/// Hears a worker out.
fn follow(
    worker: &mut Worker,
    limits: &Limits,
    step: &mut dyn FnMut(Step<'_>) -> Go,
) -> Result<Outcome, Trouble> {
    let mut told = Told::default();
    loop {
        match wire::receive(&mut worker.line)? {
            Report::Step { fuel, stdout_bytes, stderr_bytes } => {
                told.verify_next(fuel, stdout_bytes, stderr_bytes, limits)?;
                let stdout = wire::receive_body(&mut worker.line, stdout_bytes)?;
                let stderr = wire::receive_body(&mut worker.line, stderr_bytes)?;
                let go = step(Step { fuel, stdout: &stdout, stderr: &stderr });
                answer(worker, go)?;
            }
            Report::Outcome(head) => {
                head.verify(limits).map_err(|e| Trouble::Nonsense(e.to_string()))?;
                return Ok(head.complete(&mut worker.line)?);
            }
            Report::Refused(why) => return Err(Trouble::Known(WorkerError::Artefact(plausible(why)?))),
            Report::Failed(why) => return Err(Trouble::Known(WorkerError::Machine(plausible(why)?))),
            other => return Err(Trouble::Nonsense(format!("{} in answer to a task", name_of(&other)))),
        }
    }
}

fn answer(worker: &mut Worker, go: Go) -> io::Result<()> {
    let answer = match go {
        Go::On => Answer::On,
        Go::Stop => {
            worker.line.hurry(Instant::now() + STOP_WITHIN);
            Answer::Stop
        }
    };
    wire::send(&mut worker.line, &answer)
}

/// What a worker's steps came to so far.
#[derive(Debug, Default)]
struct Told {
    fuel: u64,
    stdout_bytes: u64,
    stderr_bytes: u64,
}

impl Told {
    /// Checks that a step leads on: it must have burned or printed something, and stay within the limits.
    fn verify_next(
        &mut self,
        fuel: u64,
        stdout_bytes: u64,
        stderr_bytes: u64,
        limits: &Limits,
    ) -> Result<(), Trouble> {
        let leads_on =
            fuel > self.fuel || (fuel == self.fuel && stdout_bytes.saturating_add(stderr_bytes) > 0);
        self.fuel = fuel;
        self.stdout_bytes = self.stdout_bytes.saturating_add(stdout_bytes);
        self.stderr_bytes = self.stderr_bytes.saturating_add(stderr_bytes);
        let is_within = fuel <= limits.fuel
            && self.stdout_bytes <= limits.log_bytes
            && self.stderr_bytes <= limits.log_bytes;
        if leads_on && is_within {
            return Ok(());
        }
        Err(Trouble::Nonsense(format!("a step to {self:?}, under {limits:?}")))
    }
}

/// Checks the length of a sentence that a worker says.
fn plausible(text: String) -> Result<String, Trouble> {
    if text.len() <= wire::TEXT_MAX_BYTES {
        return Ok(text);
    }
    Err(Trouble::Nonsense(format!("an explanation of {} bytes", text.len())))
}

fn name_of(report: &Report) -> &'static str {
    match report {
        Report::Ready { .. } => "that it is ready",
        Report::Artefact { .. } => "an artefact",
        Report::Refused(_) => "a refusal",
        Report::Step { .. } => "a step",
        Report::Outcome(_) => "an outcome",
        Report::Failed(_) => "a failure of the machine",
    }
}
