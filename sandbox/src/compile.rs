//! Turns WebAssembly into an artefact: machine code for [`run`](crate::run).
//!
//! A compiler is the largest thing that a stranger's bytes meet, so this is called in a process of its own, with
//! bounds on memory and time. What is cheap to count is counted first, so that a program which was made to be
//! slow to compile is refused by name instead of by a dead process.
//!
//! **Invariant:** an artefact is a function of program and configuration. It is never accepted from elsewhere.

use wasmtime::wasmparser::{AbstractHeapType, Encoding, FunctionBody, HeapType, Operator, Parser, Payload};

use crate::engine::engine;
use crate::task::Kind;

/// Bytes of a program. The largest that people are known to run, a Verilog synthesiser, has 69 MB.
pub const PROGRAM_BYTES: usize = 128 << 20;

/// Functions with a body. The synthesiser has 46,000.
const FUNCTIONS: u64 = 250_000;

/// Bytes of one function's body. The synthesiser's longest has 223,000.
const FUNCTION_BYTES: u64 = 1 << 20;

/// Local variables of all functions together. The synthesiser has 300,000, but a few bytes declare tens of thousands.
const LOCALS: u64 = 4_000_000;

/// Branches, and what they can lead to, in one function. The synthesiser has up to 10,000.
const BRANCHES: u64 = 40_000;

/// The squares of that, together, since compiling takes up to 10 ns for each: loops in loops of a single megabyte
/// would take minutes. The synthesiser has 1.6 billion.
const BRANCHES_SQUARED: u64 = 8_000_000_000;

/// Imports, exports and globals of all modules together. A dynamically linked interpreter exports some thousands.
const IMPORTS: u64 = 10_000;
const EXPORTS: u64 = 50_000;
const GLOBALS: u64 = 50_000;

/// Types, data segments and element segments.
const TYPES: u64 = 50_000;
const SEGMENTS: u64 = 250_000;

/// Modules and components in a component, and what a component's own sections say of them.
const MODULES: u64 = 256;
const COMPONENT_ITEMS: u64 = 100_000;

/// Why a program is not compiled. All but `TooMany` and `TooLong` are WebAssembly's own rules.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It does not begin as WebAssembly does.
    #[error("it is not WebAssembly, neither a module nor a component")]
    NotWebAssembly,
    /// It is too long.
    #[error("{what} has {bytes} bytes, and may have {limit_bytes}")]
    TooLong {
        /// What.
        what: &'static str,
        /// How long it is.
        bytes: u64,
        /// How long it may be.
        limit_bytes: u64,
    },
    /// It has too many of something.
    #[error("it has {count} {what}, and may have {limit}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many were counted.
        count: u64,
        /// How many there may be.
        limit: u64,
    },
    /// It is against the rules of WebAssembly, or needs what is switched off.
    #[error("it is not valid here: {0}")]
    Invalid(String),
}

/// Whether a program is a module or a component.
///
/// # Errors
/// [`CompileError::NotWebAssembly`] when it is neither.
pub fn kind_of(program: &[u8]) -> Result<Kind, CompileError> {
    match Parser::new(0).parse_all(program).next() {
        Some(Ok(Payload::Version { encoding: Encoding::Module, .. })) => Ok(Kind::Module),
        Some(Ok(Payload::Version { encoding: Encoding::Component, .. })) => Ok(Kind::Component),
        _ => Err(CompileError::NotWebAssembly),
    }
}

/// Compiles a program into an artefact.
///
/// # Errors
/// [`CompileError`] when it is not WebAssembly, larger than the bounds, or not valid.
pub fn compile(program: &[u8]) -> Result<Vec<u8>, CompileError> {
    let kind = kind_of(program)?;
    check(program)?;
    let engine = engine();
    let artefact = match kind {
        Kind::Module => engine.precompile_module(program),
        Kind::Component => engine.precompile_component(program),
    };
    artefact.map_err(|error| CompileError::Invalid(format!("{:#}", error.root_cause())))
}

/// Counts, and refuses what has too much. It takes about a second for each 100 MB.
fn check(program: &[u8]) -> Result<(), CompileError> {
    too_long("the program", program.len() as u64, PROGRAM_BYTES as u64)?;
    let mut counts = Counts::default();
    for payload in Parser::new(0).parse_all(program) {
        counts.add(&payload.map_err(invalid)?)?;
    }
    Ok(())
}

/// What was counted, over all modules in a program.
#[derive(Debug, Default)]
struct Counts {
    functions: u64,
    locals: u64,
    branches_squared: u64,
    imports: u64,
    exports: u64,
    globals: u64,
    types: u64,
    segments: u64,
    modules: u64,
    component_items: u64,
}

impl Counts {
    fn add(&mut self, payload: &Payload<'_>) -> Result<(), CompileError> {
        match payload {
            Payload::TypeSection(section) => count(&mut self.types, section.count(), "types", TYPES),
            Payload::ImportSection(section) => count(&mut self.imports, section.count(), "imports", IMPORTS),
            Payload::ExportSection(section) => count(&mut self.exports, section.count(), "exports", EXPORTS),
            Payload::GlobalSection(section) => count(&mut self.globals, section.count(), "globals", GLOBALS),
            Payload::DataSection(section) => count(&mut self.segments, section.count(), "segments", SEGMENTS),
            Payload::ElementSection(section) => {
                count(&mut self.segments, section.count(), "segments", SEGMENTS)
            }
            Payload::FunctionSection(section) => {
                count(&mut self.functions, section.count(), "functions", FUNCTIONS)
            }
            Payload::CodeSectionEntry(body) => self.function(body),
            Payload::TableSection(section) => {
                for table in section.clone() {
                    check_table(table.map_err(invalid)?.ty.element_type.heap_type())?;
                }
                Ok(())
            }
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => {
                count(&mut self.modules, 1, "modules and components", MODULES)
            }
            Payload::InstanceSection(section) => self.component_items(section.count()),
            Payload::ComponentInstanceSection(section) => self.component_items(section.count()),
            Payload::ComponentAliasSection(section) => self.component_items(section.count()),
            Payload::ComponentTypeSection(section) => self.component_items(section.count()),
            Payload::ComponentCanonicalSection(section) => self.component_items(section.count()),
            Payload::ComponentImportSection(section) => self.component_items(section.count()),
            Payload::ComponentExportSection(section) => self.component_items(section.count()),
            _ => Ok(()),
        }
    }

    fn function(&mut self, body: &FunctionBody<'_>) -> Result<(), CompileError> {
        let range = body.range();
        too_long("a function", (range.end - range.start) as u64, FUNCTION_BYTES)?;
        for group in body.get_locals_reader().map_err(invalid)? {
            count(&mut self.locals, group.map_err(invalid)?.0, "local variables", LOCALS)?;
        }
        let mut branches = 0;
        for operator in body.get_operators_reader().map_err(invalid)? {
            count(
                &mut branches,
                is_branch(&operator.map_err(invalid)?).into(),
                "branches in a function",
                BRANCHES,
            )?;
        }
        self.branches_squared += branches * branches;
        too_many("branches in its functions, squared", self.branches_squared, BRANCHES_SQUARED)
    }

    fn component_items(&mut self, more: u32) -> Result<(), CompileError> {
        count(&mut self.component_items, more, "items of components", COMPONENT_ITEMS)
    }
}

/// Whether an instruction branches, or is what one leads to.
fn is_branch(operator: &Operator<'_>) -> bool {
    matches!(
        operator,
        Operator::Block { .. }
            | Operator::Loop { .. }
            | Operator::If { .. }
            | Operator::Else
            | Operator::TryTable { .. }
            | Operator::Br { .. }
            | Operator::BrIf { .. }
            | Operator::BrTable { .. }
            | Operator::BrOnNull { .. }
            | Operator::BrOnNonNull { .. }
    )
}

/// Exceptions that are kept in a table live on, and each collection copies what lives: a program could make one
/// throw cost seconds. Compilers keep them in local variables.
fn check_table(elements: HeapType) -> Result<(), CompileError> {
    match elements {
        HeapType::Abstract { ty: AbstractHeapType::Exn | AbstractHeapType::NoExn, .. } => {
            Err(CompileError::TooMany { what: "tables of exceptions", count: 1, limit: 0 })
        }
        _ => Ok(()),
    }
}

fn count(counted: &mut u64, more: u32, what: &'static str, limit: u64) -> Result<(), CompileError> {
    *counted += u64::from(more);
    too_many(what, *counted, limit)
}

fn too_many(what: &'static str, count: u64, limit: u64) -> Result<(), CompileError> {
    if count > limit { Err(CompileError::TooMany { what, count, limit }) } else { Ok(()) }
}

fn too_long(what: &'static str, bytes: u64, limit_bytes: u64) -> Result<(), CompileError> {
    if bytes > limit_bytes { Err(CompileError::TooLong { what, bytes, limit_bytes }) } else { Ok(()) }
}

fn invalid(error: wasmtime::wasmparser::BinaryReaderError) -> CompileError {
    CompileError::Invalid(error.to_string())
}
