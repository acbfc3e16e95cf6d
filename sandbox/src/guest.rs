//! Everything about one running program that is not its code: fuel, files, clock, what it printed.
//!
//! Both WASI versions are thin layers over it. Each call pays first and acts then, except where only the act
//! shows what it costs; what can be made costly by that is bounded by the limits.

use wasmtime::component::ResourceTable;
use wasmtime::{Memory, Trap};

use crate::clock::Clock;
use crate::files::{FileError, Files, InputError};
use crate::limits::MemoryMeter;
use crate::preview1::descriptors::Descriptors;
use crate::price;
use crate::progress::Progress;
use crate::random::Random;
use crate::task::Task;

/// The state of one run.
pub(crate) struct Guest {
    pub(crate) fuel: FuelMeter,
    pub(crate) memory: MemoryMeter,
    pub(crate) progress: Progress,
    /// Whether the code was given so little fuel that it yields at once, for a step.
    pub(crate) yields_soon: bool,
    pub(crate) files: Files,
    pub(crate) random: Random,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    stdin: Vec<u8>,
    stdin_read_bytes: usize,
    clock: Clock,
    /// Of a module.
    pub(crate) descriptors: Descriptors,
    /// Of a module: where the host finds its memory, once it is instantiated.
    pub(crate) exported_memory: Option<Memory>,
    /// Of a component.
    pub(crate) handles: ResourceTable,
}

/// What a host call ends a program with, when it is no answer to the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the program ended with code {0}")]
pub(crate) struct ExitCode(pub(crate) u32);

/// Why the task cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TaskError {
    #[error(transparent)]
    Input(#[from] InputError),
    #[error("an argument or environment variable contains a zero byte")]
    Zero,
    #[error("the environment variable {0:?} has no name, or one with `=`")]
    Variable(String),
}

impl Guest {
    /// The state at the start of a task.
    pub(crate) fn new(task: Task, progress: Progress) -> Result<Self, TaskError> {
        check_strings(&task)?;
        let clock = Clock::new(&task);
        let random = Random::new(&task);
        let limits = task.limits;
        let files = Files::new(task.inputs, limits.output_bytes, limits.output_files, clock.unix_ns(0))?;
        let mut handles = ResourceTable::new();
        handles.set_max_capacity(crate::limits::HANDLES);
        Ok(Self {
            fuel: FuelMeter { limit: limits.fuel, left: limits.fuel, is_spent: false },
            memory: MemoryMeter::new(limits.memory_bytes),
            progress,
            yields_soon: false,
            files,
            random,
            args: task.args,
            env: task.env,
            stdin: task.stdin,
            stdin_read_bytes: 0,
            clock,
            descriptors: Descriptors::new(),
            exported_memory: None,
            handles,
        })
    }

    /// Nanoseconds since the start.
    pub(crate) fn elapsed_ns(&self) -> u64 {
        self.clock.elapsed_ns(self.fuel.used())
    }

    /// Nanoseconds of Unix time.
    pub(crate) fn unix_ns(&self) -> u64 {
        self.clock.unix_ns(self.fuel.used())
    }

    /// Sleeps until so many nanoseconds after the start.
    pub(crate) fn sleep_until(&mut self, elapsed_ns: u64) -> Result<(), Trap> {
        let ns = elapsed_ns.saturating_sub(self.elapsed_ns());
        self.fuel.pay(self.clock.price_of_sleep(ns))?;
        self.clock.sleep(ns);
        Ok(())
    }

    /// Pays for a call that looks up a path.
    pub(crate) fn pay_for_path(&mut self, path: &str) -> Result<(), Trap> {
        self.fuel.pay(price::path(path.len() as u64))
    }

    /// What was not read yet of standard input.
    pub(crate) fn stdin_left(&self) -> &[u8] {
        &self.stdin[self.stdin_read_bytes..]
    }

    /// Notes that so much of that was read.
    pub(crate) fn advance_stdin(&mut self, bytes: usize) {
        self.stdin_read_bytes = (self.stdin_read_bytes + bytes).min(self.stdin.len());
    }

    /// Prints to standard output or standard error.
    pub(crate) fn print(&mut self, to: Stdio, bytes: &[u8]) -> Result<(), Trap> {
        let mut state = self.progress.state();
        let log = match to {
            Stdio::Out => &mut state.stdout,
            Stdio::Err => &mut state.stderr,
        };
        self.fuel.pay(price::copied(bytes.len() as u64) + price::new_bytes(log.room(bytes.len() as u64)))?;
        log.write(bytes);
        Ok(())
    }

    /// Writes to a file, all or nothing.
    pub(crate) fn write_file(
        &mut self,
        inode: u64,
        offset: u64,
        bytes: &[u8],
    ) -> Result<Result<(), FileError>, Trap> {
        let more = offset.saturating_add(bytes.len() as u64).saturating_sub(self.files.stat(inode).bytes);
        self.fuel.pay(price::copied(bytes.len() as u64))?;
        self.pay_for_growth(more)?;
        let now_ns = self.unix_ns();
        Ok(self.files.write(inode, offset, bytes, now_ns))
    }

    /// Cuts a file or makes it longer.
    pub(crate) fn set_file_size(&mut self, inode: u64, size: u64) -> Result<Result<(), FileError>, Trap> {
        self.pay_for_growth(size.saturating_sub(self.files.stat(inode).bytes))?;
        let now_ns = self.unix_ns();
        Ok(self.files.set_size(inode, size, now_ns))
    }

    /// Pays for making a file so much longer, unless it is going to be refused, which costs nothing.
    fn pay_for_growth(&mut self, bytes: u64) -> Result<(), Trap> {
        if self.files.has_room(bytes) { self.fuel.pay(price::new_bytes(bytes)) } else { Ok(()) }
    }
}

/// Where a program prints to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdio {
    Out,
    Err,
}

fn check_strings(task: &Task) -> Result<(), TaskError> {
    let variables = task.env.iter().flat_map(|(name, value)| [name, value]);
    if task.args.iter().chain(variables).any(|text| text.contains('\0')) {
        return Err(TaskError::Zero);
    }
    match task.env.iter().find(|(name, _)| name.is_empty() || name.contains('=')) {
        Some((name, _)) => Err(TaskError::Variable(name.clone())),
        None => Ok(()),
    }
}

/// A program's fuel during a host call.
///
/// Code keeps its fuel in the store, where host functions cannot reach it. So it is taken from there when code
/// calls, and put back when the call returns, if the call spent some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FuelMeter {
    limit: u64,
    left: u64,
    is_spent: bool,
}

impl FuelMeter {
    /// Fuel used until now.
    pub(crate) fn used(&self) -> u64 {
        self.limit.saturating_sub(self.left)
    }

    /// Spends fuel. Who has too little loses it all, as in code.
    pub(crate) fn pay(&mut self, fuel: u64) -> Result<(), Trap> {
        self.is_spent = true;
        match self.left.checked_sub(fuel) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Trap::OutOfFuel)
            }
        }
    }

    /// Takes over from the code.
    pub(crate) fn take_over(&mut self, left: u64) {
        (self.left, self.is_spent) = (left, false);
    }

    /// What the code is to go on with, if that is not what it had.
    pub(crate) fn hand_back(&mut self) -> Option<u64> {
        std::mem::take(&mut self.is_spent).then_some(self.left)
    }
}
