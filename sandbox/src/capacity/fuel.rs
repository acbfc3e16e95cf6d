//! How fast a job burns fuel here.

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;

use crate::cache::Artefact;
use crate::host::{CompileFailure, CompileLimits, Stop, WorkerError, Workers};
use crate::run::Go;
use crate::task::{Determinism, Exit, Limits, Task};

/// `fuel.wat`, assembled: a second program that reads programs has no place in the provider's process.
#[rustfmt::skip]
const PROGRAM: &[u8] = &[
    0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00, 0x01, 0x04, 0x01, 0x60, 0x00, 0x00, 0x03, 0x02, 0x01, 0x00, 0x05, 0x03, 0x01, 0x00, 0x10, 0x07,
    0x13, 0x02, 0x06, 0x6d, 0x65, 0x6d, 0x6f, 0x72, 0x79, 0x02, 0x00, 0x06, 0x5f, 0x73, 0x74, 0x61, 0x72, 0x74, 0x00, 0x00, 0x0a, 0x81, 0x01, 0x01,
    0x7f, 0x03, 0x01, 0x7f, 0x01, 0x7e, 0x01, 0x7f, 0x41, 0x80, 0xfe, 0xac, 0x0d, 0x21, 0x00, 0x42, 0xc4, 0xf4, 0xfd, 0xdd, 0xdc, 0x91, 0xd0, 0x9c,
    0x01, 0x21, 0x01, 0x03, 0x40, 0x20, 0x01, 0x20, 0x01, 0x42, 0x0d, 0x86, 0x85, 0x21, 0x01, 0x20, 0x01, 0x20, 0x01, 0x42, 0x07, 0x88, 0x85, 0x21,
    0x01, 0x20, 0x01, 0x20, 0x01, 0x42, 0x11, 0x86, 0x85, 0x21, 0x01, 0x20, 0x01, 0xa7, 0x41, 0xf8, 0xff, 0x3f, 0x71, 0x21, 0x02, 0x20, 0x02, 0x20,
    0x02, 0x29, 0x03, 0x00, 0x20, 0x01, 0x7c, 0x37, 0x03, 0x00, 0x20, 0x01, 0x42, 0x80, 0x80, 0x80, 0x80, 0x30, 0x83, 0x50, 0x04, 0x40, 0x20, 0x02,
    0x20, 0x02, 0x29, 0x03, 0x00, 0x42, 0x95, 0xf8, 0xa9, 0xfa, 0x97, 0xb7, 0xde, 0x9b, 0x9e, 0x7f, 0x7e, 0x37, 0x03, 0x00, 0x0b, 0x20, 0x00, 0x41,
    0x01, 0x6b, 0x22, 0x00, 0x0d, 0x00, 0x0b, 0x0b, 0x00, 0x28, 0x04, 0x6e, 0x61, 0x6d, 0x65, 0x02, 0x15, 0x01, 0x00, 0x03, 0x00, 0x04, 0x6c, 0x65,
    0x66, 0x74, 0x01, 0x06, 0x72, 0x61, 0x6e, 0x64, 0x6f, 0x6d, 0x02, 0x02, 0x61, 0x74, 0x03, 0x0a, 0x01, 0x00, 0x01, 0x00, 0x05, 0x61, 0x67, 0x61,
    0x69, 0x6e,
];

/// How often it is run. The first run may find a processor that still sleeps.
const RUNS: usize = 5;

/// More than one run takes, which is some 0.2 s.
const WALL: Duration = Duration::from_secs(30);

/// More than one run burns.
const FUEL: u64 = 1 << 31;

/// How fast this machine runs jobs, one at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FuelRate {
    /// Fuel that a job burns in a second: the median of some runs.
    pub fuel_per_s: u64,
    /// The slowest run's.
    pub slowest_per_s: u64,
    /// The fastest run's.
    pub fastest_per_s: u64,
}

/// Why the rate could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The program could not be compiled.
    #[error("compiling the program that is measured: {0}")]
    Compile(#[from] CompileFailure),
    /// There was no place for the compiled program.
    #[error("keeping the program that is measured: {0}")]
    Keep(#[from] io::Error),
    /// A worker failed.
    #[error("running the program that is measured: {0}")]
    Worker(#[from] WorkerError),
    /// The program ended otherwise than it should.
    #[error("the program that is measured {0}")]
    Ended(Exit),
}

/// Runs a fixed program some times in workers, which takes about a second, and tells how fast it burned fuel from
/// asking to the outcome: integer arithmetic, memory that is not in the processor's first cache, and branches that
/// cannot be foretold.
///
/// Jobs of other kinds are up to a few times faster or slower. Jobs beside one another are slower where processors
/// share what they compute with, and so is this if others are busy meanwhile.
///
/// # Errors
/// [`MeasureError`] when workers do not work here.
pub fn measure(workers: &Workers) -> Result<FuelRate, MeasureError> {
    let mut file = memory_file()?;
    let limits = CompileLimits { wall: WALL, memory_bytes: 1 << 30, artefact_bytes: 16 << 20 };
    let len_bytes = workers.compile(PROGRAM, &limits, &Stop::new(), &mut file)?;
    let artefact = Artefact::new(file, len_bytes);
    let mut rates = (0..RUNS).map(|_| run(workers, &artefact)).collect::<Result<Vec<_>, _>>()?;
    rates.sort_unstable();
    let (slowest_per_s, fastest_per_s) = (rates[0], rates[RUNS - 1]);
    Ok(FuelRate { fuel_per_s: rates[RUNS / 2], slowest_per_s, fastest_per_s })
}

/// One run's fuel in a second.
fn run(workers: &Workers, artefact: &Artefact) -> Result<u64, MeasureError> {
    let started = Instant::now();
    let outcome = workers.run(artefact, &task(), WALL, &Stop::new(), &mut |_| Go::On)?;
    let took = started.elapsed();
    match outcome.exit {
        Exit::Code(0) => Ok((outcome.fuel as f64 / took.as_secs_f64()) as u64),
        other => Err(MeasureError::Ended(other)),
    }
}

/// A file without a name and a disk. Kernels from 6.3 on want to be told that nobody will start it as a program,
/// which older ones do not know.
fn memory_file() -> io::Result<File> {
    let made = rustix::fs::memfd_create("fuel", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        .or_else(|_| rustix::fs::memfd_create("fuel", MemfdFlags::CLOEXEC))?;
    Ok(made.into())
}

fn task() -> Task {
    Task {
        args: Vec::new(),
        env: Vec::new(),
        stdin: Vec::new(),
        inputs: Vec::new(),
        limits: Limits { fuel: FUEL, memory_bytes: 16 << 20, output_bytes: 0, output_files: 0, log_bytes: 0 },
        seed: [0; 32],
        starts_at_s: 0,
        determinism: Determinism::Deterministic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_what_its_text_says() {
        let assembled = wat::parse_str(include_str!("fuel.wat")).unwrap();
        assert_eq!(assembled, PROGRAM, "write this here: {assembled:#04x?}");
    }
}
