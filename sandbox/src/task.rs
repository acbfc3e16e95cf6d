//! What a job is to the sandbox, and what comes out of it.
//!
//! A [`Task`] together with the program determines the [`Outcome`], fuel included, on every machine whose configuration is the
//! same, unless the task asks for [`Determinism::Free`].

use std::fmt;

use serde::{Deserialize, Serialize};

/// What kind of program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A core module that imports WASI preview 1 and exports `_start`.
    Module,
    /// A component that exports `wasi:cli/run`.
    Component,
}

/// Whether the outcome is the same on every machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Determinism {
    /// The clock is virtual and randomness is drawn from the seed, so that anyone may run the task again and compare.
    Deterministic,
    /// The machine's clock and entropy. Nobody can check such an outcome.
    Free,
}

/// What a program may use up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Limits {
    /// Fuel: about one for each WebAssembly instruction, and what host calls cost.
    pub fuel: u64,
    /// Bytes of all linear memories and tables together.
    pub memory_bytes: u64,
    /// Bytes of all files that the program has written, together.
    pub output_bytes: u64,
    /// Files and directories that the program has made.
    pub output_files: u32,
    /// Bytes of standard output, and as many of standard error. What goes beyond is cut off.
    pub log_bytes: u64,
}

/// A file that the program finds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Input {
    /// Where, relative to the root: names with `/` between, none of them empty, `.` or `..`.
    pub path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// All that a run depends on, beside the program.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Task {
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Standard input.
    pub stdin: Vec<u8>,
    /// Files, which the program may only read.
    pub inputs: Vec<Input>,
    /// Bounds.
    pub limits: Limits,
    /// Where random bytes come from.
    pub seed: [u8; 32],
    /// What the clock says at the start, in seconds of Unix time.
    pub starts_at_s: u64,
    /// Whether clock and random bytes are the task's or the machine's.
    pub determinism: Determinism,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Exit {
    /// The program ended by itself, with this code.
    Code(u32),
    /// It used all its fuel.
    OutOfFuel,
    /// It did what WebAssembly does not allow; the trap's name, without addresses.
    Trapped(String),
    /// It could not be started: an unknown import, no entry point, a limit below what it needs at the start.
    Refused(String),
    /// It was stopped from outside, at a step.
    Stopped,
}

impl Exit {
    /// Whether the program says that it did what it was to do.
    pub fn is_success(&self) -> bool {
        *self == Self::Code(0)
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "ended with code {code}"),
            Self::OutOfFuel => write!(f, "used all its fuel; allow it more"),
            Self::Trapped(trap) => write!(f, "trapped: {trap}"),
            Self::Refused(why) => write!(f, "was not started: {why}"),
            Self::Stopped => write!(f, "was stopped"),
        }
    }
}

/// A file that the program left in `/out`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Output {
    /// Where, relative to `/out`.
    pub path: String,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// What came out of a run.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// Fuel used.
    pub fuel: u64,
    /// Most bytes of linear memories and tables at once.
    pub memory_peak_bytes: u64,
    /// Whether memory or a table could not grow because of the limit: what often is behind a trap.
    pub memory_refused: bool,
    /// Whether a file could not be written because of the limits.
    pub output_refused: bool,
    /// Standard output, as far as it was kept.
    pub stdout: Vec<u8>,
    /// Standard error, as far as it was kept.
    pub stderr: Vec<u8>,
    /// Whether more was printed than was kept.
    pub log_cut: bool,
    /// Files in `/out`, sorted by path.
    pub outputs: Vec<Output>,
}
