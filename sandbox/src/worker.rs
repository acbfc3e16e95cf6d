//! The worker: a process that jails itself, takes one order, and ends.
//!
//! It is started with its socket as standard input, nothing as standard output, and a pipe for its last words
//! as standard error. It builds its jail and its engine before it is needed, so that a job finds it warm.
//!
//! **One order and no second.** A guest may have taken the worker over unnoticed, so whatever comes after it
//! would be in its hands: another client's secrets, or the same client's next receipt, which the provider
//! signs. A new process costs some milliseconds of a processor, and none of a job's time as long as warm ones
//! are kept.
//!
//! **Invariant:** not a byte from the parent, and so none from a client, is read before the jail stands.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use rustix::process::Signal;

use crate::capacity::vulkan::{self, VulkanError};
use crate::jail::{self, JailError, Profile};
use crate::run::{Go, Step};
use crate::task::Task;
use crate::wire::{self, Answer, Order, ReceiveError, Report};
use crate::{compile, engine, run};

/// Why a worker ended without having done its work. The parent reads it from standard error.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error("the jail could not be built: {0}")]
    Jail(#[from] JailError),
    #[error("the socket to the parent: {0}")]
    Socket(#[from] io::Error),
    #[error("the parent sent what is no order: {0}")]
    Order(#[from] ReceiveError),
    #[error("a worker that {0:?}s got an order for another")]
    OtherProfile(Profile),
}

/// Why a process that looks for graphics processors ended without an answer.
#[derive(Debug, thiserror::Error)]
enum DevicesError {
    #[error("{0}")]
    Vulkan(#[from] VulkanError),
    #[error("the socket to the parent: {0}")]
    Socket(#[from] io::Error),
}

/// All that a worker's process does: jails itself, takes one order from its standard input, and carries it out.
pub fn main(profile: Profile) -> ExitCode {
    match work(profile) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

/// All that a process does which looks for graphics processors: names them on its standard input, which is a
/// socket, and ends. See [`capacity::gpus`](crate::capacity::gpus).
///
/// It is not jailed, since drivers need devices and files. It reads nothing from anybody either.
pub fn devices() -> ExitCode {
    match list_devices() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::FAILURE
        }
    }
}

fn list_devices() -> Result<(), DevicesError> {
    // A driver that hangs must not outlive whoever waits for it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)?;
    let mut parent = Parent(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(wire::send(&mut parent, &vulkan::candidates()?)?)
}

fn work(profile: Profile) -> Result<(), WorkError> {
    let walls = jail::apply(profile)?;
    let mut parent = Parent(io::stdin().as_fd().try_clone_to_owned()?);
    let configuration = engine::configuration();
    wire::send(&mut parent, &Report::Ready { configuration, walls })?;
    match (profile, wire::receive(&mut parent)) {
        // A worker that is not needed any more sees its socket close.
        (_, Err(ReceiveError::Socket(e))) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        (_, Err(e)) => Err(e.into()),
        (Profile::Compile, Ok(Order::Compile { module_bytes })) => compile_one(&mut parent, module_bytes),
        (Profile::Run, Ok(Order::Run(head))) => {
            let artefact = File::from(wire::receive_file(&parent.0)?);
            let task = head.complete(&mut parent)?;
            run_one(&mut parent, artefact, task)
        }
        (_, Ok(_)) => Err(WorkError::OtherProfile(profile)),
    }
}

fn compile_one(parent: &mut Parent, module_bytes: u64) -> Result<(), WorkError> {
    let module = wire::receive_body(parent, module_bytes)?;
    match compile::compile(&module) {
        Ok(artefact) => {
            wire::send(parent, &Report::Artefact { artefact_bytes: artefact.len() as u64 })?;
            Ok(parent.write_all(&artefact)?)
        }
        Err(e) => Ok(wire::send(parent, &Report::Refused(wire::shortened(&e.to_string())))?),
    }
}

fn run_one(parent: &mut Parent, artefact: File, task: Task) -> Result<(), WorkError> {
    let program = match run::load(artefact) {
        Ok(program) => program,
        Err(e) => return Ok(wire::send(parent, &Report::Refused(wire::shortened(&e.to_string())))?),
    };
    let mut lost = None;
    let outcome = run::run(&program, task, &mut |step| {
        report(parent, &step).unwrap_or_else(|e| {
            lost = Some(e);
            Go::Stop
        })
    });
    match (lost, outcome) {
        (Some(e), _) => Err(e),
        (None, Ok(outcome)) => Ok(wire::send_outcome(parent, &outcome)?),
        (None, Err(e)) => Ok(wire::send(parent, &Report::Failed(wire::shortened(&e.to_string())))?),
    }
}

/// Reports a step and waits for what the parent says to it.
fn report(parent: &mut Parent, step: &Step<'_>) -> Result<Go, WorkError> {
    let (stdout_bytes, stderr_bytes) = (step.stdout.len() as u64, step.stderr.len() as u64);
    wire::send(parent, &Report::Step { fuel: step.fuel, stdout_bytes, stderr_bytes })?;
    parent.write_all(step.stdout)?;
    parent.write_all(step.stderr)?;
    Ok(match wire::receive(parent)? {
        Answer::On => Go::On,
        Answer::Stop => Go::Stop,
    })
}

/// The socket to the parent, by the two plainest system calls.
struct Parent(OwnedFd);

impl Read for Parent {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(rustix::io::read(&self.0, into)?)
    }
}

impl Write for Parent {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(rustix::io::write(&self.0, bytes)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
