//! Runs a compiled program on a task.
//!
//! ```text
//! artefact -> load -> Program         once for each program
//! Program, Task -> run -> Outcome     each in a store of its own, from which nothing remains
//! ```
//!
//! **Fuel.** All instructions and all host calls burn it. It is exact, with one exception: what code burned since
//! it last called or returned is not counted when it ends by a trap, since compiled code keeps that count in a
//! register. That is less than [`STEP_FUEL`], and the same on every machine.
//!
//! **Steps.** Every [`STEP_FUEL`] the run stops for a moment, tells the caller how far it is, and asks whether to
//! go on. The engine yields by itself when code has burned that much; but each host call that costs something
//! starts that count anew, so after one that crosses a step, code gets a single unit of fuel until it yields
//! ([`account`]).

use std::fs::File;
use std::io::{self, Read, Seek};
use std::pin::pin;
use std::task::{Context, Poll, Waker};

use rustix::io::Errno;
use wasmtime::component::Component;
use wasmtime::{
    CallHook, Engine, ExternType, InstancePre, Linker, Module, Precompiled, Store, StoreContextMut,
    ThrownException, Trap, UnknownImportError,
};

use crate::engine::engine;
use crate::guest::{ExitCode, Guest};
use crate::limits::{self, MachineLacksMemory};
use crate::preview1;
use crate::preview2::{self, bindings::ProgramPre};
use crate::progress::Progress;
use crate::task::{Exit, Kind, Outcome, Task};

#[doc(hidden)]
pub mod unmetered;

/// Fuel between two steps: some tens of milliseconds.
pub const STEP_FUEL: u64 = 100_000_000;

/// Characters of a trap's or a refusal's text. Names of imports are the program's, and may be long.
const TEXT_CHARS: usize = 512;

/// A program that can be run any number of times.
pub struct Program {
    engine: Engine,
    kind: Kind,
    entry: Entry,
}

/// How a program is started.
enum Entry {
    Module(InstancePre<Guest>),
    Component(ProgramPre<Guest>),
    /// It cannot be; why.
    None(String),
}

/// Why an artefact cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The file could not be read.
    #[error("the compiled program could not be read: {0}")]
    Read(#[from] io::Error),
    /// It is no artefact, or one of another configuration.
    #[error("the compiled program cannot be loaded: {0}; compile it again")]
    Artefact(String),
}

/// The machine failed a run, and the program is not to blame: there is no outcome, and another run or another machine
/// may come to one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MachineFailed(String);

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// Fuel used so far.
    pub fuel: u64,
    /// What was printed to standard output since the last step.
    pub stdout: &'a [u8],
    /// What was printed to standard error since the last step.
    pub stderr: &'a [u8],
}

/// Whether a run goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Go {
    /// It does.
    On,
    /// It ends here.
    Stop,
}

impl Program {
    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// Loads an artefact that [`compile`](crate::compile::compile) made. That of a module is mapped, so it takes
/// memory as it is used.
///
/// # Trust
/// An artefact is machine code. Whoever calls this has compiled it, and keeps the file from changing while the
/// program exists: nothing that a stranger sent may get here.
///
/// # Errors
/// [`RunError`] when it is not an artefact of this configuration. A program that merely cannot be started is
/// loaded, and refused by [`run`].
pub fn load(artefact: File) -> Result<Program, RunError> {
    load_for(engine(), artefact)
}

fn load_for(engine: Engine, artefact: File) -> Result<Program, RunError> {
    let error = |error: wasmtime::Error| RunError::Artefact(text(&error));
    match precompiled(&artefact)? {
        Some(Precompiled::Module) => {
            let entry = module_entry(&engine, &load_module(&engine, artefact).map_err(error)?);
            Ok(Program { engine, kind: Kind::Module, entry })
        }
        Some(Precompiled::Component) => {
            let entry = component_entry(&engine, &load_component(&engine, artefact)?.map_err(error)?);
            Ok(Program { engine, kind: Kind::Component, entry })
        }
        None => Err(RunError::Artefact("it is not one".into())),
    }
}

/// What kind of artefact a file is, by its first bytes, which are an ELF header.
fn precompiled(mut artefact: &File) -> io::Result<Option<Precompiled>> {
    const HEADER_BYTES: u64 = 64;
    let mut header = Vec::new();
    artefact.take(HEADER_BYTES).read_to_end(&mut header)?;
    artefact.rewind()?;
    // Without its table of sections, which is at the end, the header alone is an object file, if an empty one.
    if header.len() as u64 == HEADER_BYTES {
        header[40..48].fill(0);
        header[60..64].fill(0);
    }
    Ok(Engine::detect_precompiled(&header))
}

#[expect(
    unsafe_code,
    reason = "artefacts are made by our own compiler child and kept where nobody else writes; see `load`"
)]
fn load_module(engine: &Engine, artefact: File) -> wasmtime::Result<Module> {
    // SAFETY: see the reason above.
    unsafe { Module::deserialize_open_file(engine, artefact) }
}

/// wasmtime maps components by path only, which a jailed process may not have, so this reads the whole.
#[expect(
    unsafe_code,
    reason = "artefacts are made by our own compiler child and kept where nobody else writes; see `load`"
)]
fn load_component(engine: &Engine, mut artefact: File) -> io::Result<wasmtime::Result<Component>> {
    let mut bytes = Vec::new();
    artefact.read_to_end(&mut bytes)?;
    // SAFETY: see the reason above.
    Ok(unsafe { Component::deserialize(engine, bytes) })
}

fn module_entry(engine: &Engine, module: &Module) -> Entry {
    let mut linker = Linker::new(engine);
    preview1::add_to_linker(&mut linker).expect("names are defined once");
    if let Err(why) = check_exports(module) {
        return Entry::None(why.into());
    }
    linker.instantiate_pre(module).map_or_else(|error| Entry::None(import_error(&error)), Entry::Module)
}

fn import_error(error: &wasmtime::Error) -> String {
    match error.downcast_ref::<UnknownImportError>() {
        Some(import) => shorten(&format!(
            "it imports {} of {}, which the sandbox does not have",
            import.name(),
            import.module()
        )),
        None => text(error),
    }
}

/// A command has an entry point without parameters and results, and a memory for WASI to write to.
fn check_exports(module: &Module) -> Result<(), &'static str> {
    match module.get_export("_start") {
        Some(ExternType::Func(start)) if start.params().len() == 0 && start.results().len() == 0 => {}
        Some(_) => return Err("its _start is not a function without parameters and results"),
        None => return Err("it exports no function _start: it is a library, not a command"),
    }
    match module.get_export("memory") {
        Some(ExternType::Memory(memory)) if !memory.is_64() && !memory.is_shared() => Ok(()),
        _ => Err("it exports no memory under the name memory"),
    }
}

fn component_entry(engine: &Engine, component: &Component) -> Entry {
    let linked = preview2::linker(engine, component)
        .and_then(|linker| linker.instantiate_pre(component))
        .and_then(ProgramPre::new);
    linked.map_or_else(|error| Entry::None(text(&error)), Entry::Component)
}

/// Runs a program on a task, and calls `step` every [`STEP_FUEL`].
///
/// # Errors
/// [`MachineFailed`] when the machine has not the memory that the task's limits promise.
pub fn run(
    program: &Program,
    task: Task,
    step: &mut dyn FnMut(Step<'_>) -> Go,
) -> Result<Outcome, MachineFailed> {
    let fuel = task.limits.fuel;
    let progress = Progress::new(task.limits.log_bytes, STEP_FUEL);
    if let Entry::None(why) = &program.entry {
        return Ok(refusal(why.clone()));
    }
    let mut store = match Guest::new(task, progress.clone()) {
        Ok(guest) => store(&program.engine, guest, fuel),
        Err(error) => return Ok(refusal(error.to_string())),
    };
    let ended = drive(execute(&program.entry, &mut store), || report(&progress, step));
    let exit = match ended {
        Some(Ok(code)) => Exit::Code(code),
        Some(Err(failure)) => exit(failure, &store)?,
        None => Exit::Stopped,
    };
    let left = store.get_fuel().expect("fuel is configured");
    Ok(outcome(exit, fuel - left, store.into_data()))
}

fn store(engine: &Engine, guest: Guest, fuel: u64) -> Store<Guest> {
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.memory);
    store.set_hostcall_fuel(limits::CALL_BYTES);
    store.call_hook(account);
    store.fuel_async_yield_interval(Some(STEP_FUEL)).expect("fuel is configured");
    store.set_fuel(fuel).expect("fuel is configured");
    store
}

/// Moves fuel between code and host, at every crossing.
///
/// Code keeps its fuel in a register while it runs, and stores and loads it where it calls. The engine's own
/// helpers (growing memory, say) cross here, too, without that. What is put into the store then is lost or
/// counted twice, so it is touched in two cases only: when a host function of ours has paid, since that was a
/// call, and after code has yielded. It yields when its fuel is due and when a throw collects exceptions, and
/// loads its fuel after both.
fn account(mut store: StoreContextMut<'_, Guest>, crossing: CallHook) -> wasmtime::Result<()> {
    match crossing {
        CallHook::CallingHost | CallHook::ReturningFromWasm => {
            let left = store.get_fuel()?;
            let guest = store.data_mut();
            guest.fuel.take_over(left);
            guest.progress.state().fuel = guest.fuel.used();
        }
        CallHook::ReturningFromHost | CallHook::CallingWasm => {
            let guest = store.data_mut();
            let (step_at, has_yielded) = {
                let mut state = guest.progress.state();
                (state.step_at, std::mem::take(&mut state.has_yielded))
            };
            if let Some(left) = guest.fuel.hand_back() {
                guest.yields_soon = guest.fuel.used() >= step_at;
                if guest.yields_soon {
                    store.fuel_async_yield_interval(Some(1))?;
                }
                store.set_fuel(left)?;
            } else if has_yielded && std::mem::take(&mut guest.yields_soon) {
                store.fuel_async_yield_interval(Some(STEP_FUEL))?;
            }
        }
    }
    Ok(())
}

/// How a program failed: before it was started, or after.
enum Failure {
    Starting(wasmtime::Error),
    Running(wasmtime::Error),
}

/// Instantiates and runs a program up to its end, and gives its exit code.
async fn execute(entry: &Entry, mut store: &mut Store<Guest>) -> Result<u32, Failure> {
    match entry {
        Entry::Module(module) => {
            let instance = module.instantiate_async(&mut store).await.map_err(Failure::Starting)?;
            store.data_mut().exported_memory = instance.get_memory(&mut store, "memory");
            let start = instance.get_typed_func::<(), ()>(&mut store, "_start").map_err(Failure::Starting)?;
            start.call_async(&mut store, ()).await.map_err(Failure::Running)?;
            Ok(0)
        }
        Entry::Component(component) => {
            let instance = component.instantiate_async(&mut store).await.map_err(Failure::Starting)?;
            let result = instance.wasi_cli_run().call_run(&mut store).await.map_err(Failure::Running)?;
            Ok(u32::from(result.is_err()))
        }
        Entry::None(_) => unreachable!("it was refused before"),
    }
}

/// Runs a future that may yield, but waits for nothing.
fn drive<T>(future: impl Future<Output = T>, mut step: impl FnMut() -> Go) -> Option<T> {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return Some(output),
            Poll::Pending if step() == Go::Stop => return None,
            Poll::Pending => {}
        }
    }
}

/// Reports a step, if one is due.
fn report(progress: &Progress, step: &mut dyn FnMut(Step<'_>) -> Go) -> Go {
    let mut state = progress.state();
    if state.fuel < state.step_at {
        return Go::On;
    }
    state.step_at = state.fuel.saturating_add(STEP_FUEL);
    state.has_yielded = true;
    let go = step(Step { fuel: state.fuel, stdout: state.stdout.news(), stderr: state.stderr.news() });
    state.stdout.reported();
    state.stderr.reported();
    go
}

fn exit(failure: Failure, store: &Store<Guest>) -> Result<Exit, MachineFailed> {
    let (error, is_starting) = match failure {
        Failure::Starting(error) => (error, true),
        Failure::Running(error) => (error, false),
    };
    if lacks_memory(&error) {
        return Err(MachineFailed(text(&error)));
    }
    if let Some(ExitCode(code)) = error.downcast_ref() {
        return Ok(Exit::Code(*code));
    }
    match error.downcast_ref() {
        Some(Trap::OutOfFuel) => return Ok(Exit::OutOfFuel),
        Some(trap) => return Ok(Exit::Trapped(trap.to_string().replace("wasm trap: ", ""))),
        None => {}
    }
    let memory = &store.data().memory;
    Ok(match memory.refused_bytes {
        _ if error.is::<ThrownException>() => Exit::Trapped("an exception that nobody caught".into()),
        Some(needed) if is_starting => {
            let limit = memory.limit_bytes();
            Exit::Refused(format!(
                "it needs {needed} bytes of memory and tables to start, and may have {limit}"
            ))
        }
        None if is_starting => Exit::Refused(text(&error)),
        _ => Exit::Trapped(text(&error)),
    })
}

/// Whether the kernel refused memory: to one that grows, or to what the engine maps for a start.
fn lacks_memory(error: &wasmtime::Error) -> bool {
    let is_refusal = |errno: &Errno| *errno == Errno::NOMEM;
    error.is::<MachineLacksMemory>()
        || error.chain().any(|cause| cause.downcast_ref().is_some_and(is_refusal))
}

/// What an error is at bottom, without what was under way.
fn text(error: &wasmtime::Error) -> String {
    shorten(&error.root_cause().to_string())
}

fn shorten(text: &str) -> String {
    text.chars().take(TEXT_CHARS).collect()
}

fn outcome(exit: Exit, fuel: u64, guest: Guest) -> Outcome {
    let Guest { memory, files, progress, .. } = guest;
    let mut state = progress.state();
    Outcome {
        exit,
        fuel,
        memory_peak_bytes: memory.peak_bytes,
        memory_refused: memory.refused_bytes.is_some(),
        output_refused: files.refused,
        stdout: state.stdout.take(),
        stderr: state.stderr.take(),
        log_cut: state.stdout.cut || state.stderr.cut,
        outputs: files.into_outputs(),
    }
}

/// The outcome of a task that was not started.
fn refusal(why: String) -> Outcome {
    Outcome {
        exit: Exit::Refused(why),
        fuel: 0,
        memory_peak_bytes: 0,
        memory_refused: false,
        output_refused: false,
        stdout: Vec::new(),
        stderr: Vec::new(),
        log_cut: false,
        outputs: Vec::new(),
    }
}
