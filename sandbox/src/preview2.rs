//! WASI 0.2 for components: io, clocks, random, cli and filesystem.
//!
//! Names and types are those of the standard, in `wit/`. The engine gives a component that was made for an older
//! 0.2 what is defined for the newest, so there is one version here. What a component imports beyond that is
//! defined to end the program, by name, when it is called: many import sockets that they never use.

use wasmtime::Engine;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, HasSelf, Linker, LinkerInstance, ResourceType};

use crate::guest::Guest;
use handles::Terminal;

mod cli;
mod filesystem;
mod handles;
mod streams;

/// What `wit/` says, as Rust.
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "wit",
        world: "spare:sandbox/program",
        imports: { default: trappable },
        exports: { default: async },
        trappable_error_type: {
            "wasi:filesystem/types.error-code" => super::handles::Failure,
            "wasi:io/streams.stream-error" => super::handles::StreamFailure,
        },
        with: {
            "wasi:cli/terminal-input.terminal-input": super::handles::Terminal,
            "wasi:cli/terminal-output.terminal-output": super::handles::Terminal,
            "wasi:filesystem/types.descriptor": super::handles::Descriptor,
            "wasi:filesystem/types.directory-entry-stream": super::handles::Entries,
            "wasi:io/error.error": super::handles::IoError,
            "wasi:io/poll.pollable": super::handles::Pollable,
            "wasi:io/streams.input-stream": super::handles::InputStream,
            "wasi:io/streams.output-stream": super::handles::OutputStream,
        },
    });
}

/// What is in this linker is what a component can call.
pub(crate) fn linker(engine: &Engine, component: &Component) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    bindings::Program::add_to_linker::<Guest, HasSelf<Guest>>(&mut linker, |guest| guest)?;
    for (name, import) in component.component_type().imports(engine) {
        if !is_implemented(name) {
            define_trap(engine, &mut linker.root(), name, name, import.ty)?;
        }
    }
    Ok(linker)
}

/// Interfaces that are implemented, at any version 0.2.
const IMPLEMENTED: [&str; 20] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:filesystem/preopens",
    "wasi:filesystem/types",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/insecure",
    "wasi:random/insecure-seed",
    "wasi:random/random",
];

fn is_implemented(import: &str) -> bool {
    import
        .split_once('@')
        .is_some_and(|(name, version)| version.starts_with("0.2.") && IMPLEMENTED.contains(&name))
}

/// Defines an import that ends the program with its name.
fn define_trap(
    engine: &Engine,
    linker: &mut LinkerInstance<'_, Guest>,
    name: &str,
    full_name: &str,
    item: ComponentItem,
) -> wasmtime::Result<()> {
    match item {
        ComponentItem::ComponentFunc(_) => {
            let full_name = full_name.to_owned();
            linker.func_new(name, move |_, _, _, _| {
                wasmtime::bail!("it called {full_name}, which the sandbox does not have")
            })
        }
        ComponentItem::Resource(_) => linker.resource(name, ResourceType::host::<Terminal>(), |_, _| Ok(())),
        ComponentItem::ComponentInstance(instance) => {
            let mut below = linker.instance(name)?;
            for (member, import) in instance.exports(engine) {
                define_trap(engine, &mut below, member, &format!("{full_name}#{member}"), import.ty)?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
