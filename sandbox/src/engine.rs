//! The one configuration under which everything is compiled and run.
//!
//! **Goal:** the same program and task give the same outcome on every machine, fuel and stack overflow included.
//! So the target is fixed to a processor that all machines of an architecture contain, NaNs are canonical, and
//! proposals that leave a choice to the machine (threads, relaxed SIMD) are off, as are those that no compiler
//! for WASI needs, since each is code that strangers could attack.
//!
//! **Non-goal:** stopping a program by wall-clock time. Fuel bounds every loop; whoever wants a process gone
//! kills it.

use std::hash::{Hash, Hasher};
use std::sync::LazyLock;

use wasmtime::{Config, Engine, OperatorCost};

use crate::{limits, price};

/// The engine's name and version. Programs compiled by another one are compiled again.
pub const ENGINE_VERSION: &str = "wasmtime 48.0.8";

/// Rises whenever what a program sees of WASI changes: an error code, an order, a timestamp.
const WASI_VERSION: u32 = 1;

/// What the compiled code of one program may put on the stack, in bytes. Deeper is a trap.
const STACK_BYTES: usize = 1 << 20;

/// What is left of a stack for the sandbox itself, in bytes, when the program has used all its own.
const HOST_STACK_BYTES: usize = 512 << 10;

/// Features of x86-64-v2, which every server and desktop since 2009 has: without them rounding and counting bits
/// are calls.
const X86_64_V2: [&str; 6] =
    ["has_cmpxchg16b", "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"];

/// The engine: compiler and runtime. A process has one.
///
/// # Panics
/// On an operating system or architecture that wasmtime does not compile for.
pub fn engine() -> Engine {
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        Engine::new(&settings()).expect("the configuration is constant, and tests build it")
    });
    ENGINE.clone()
}

/// A name for everything that decides what comes out of a run, beside program and task: two machines that agree
/// on it agree on outcomes.
pub fn configuration() -> [u8; 32] {
    let mut hasher = StableHasher(blake3::Hasher::new_derive_key("spare 2026 sandbox configuration v1"));
    ENGINE_VERSION.hash(&mut hasher);
    engine().precompile_compatibility_hash().hash(&mut hasher);
    (WASI_VERSION, STACK_BYTES, limits::ALL, price::ALL).hash(&mut hasher);
    hasher.0.finalize().into()
}

/// All settings, before anything is built with them.
pub(crate) fn settings() -> Config {
    let mut config = Config::new();
    config.target(&target()).expect("the target is the one that this is built for");
    if cfg!(target_arch = "x86_64") {
        enable_x86_64_v2(&mut config);
    }
    config
        .cranelift_nan_canonicalization(true)
        .consume_fuel(true)
        .operator_cost(operator_cost())
        .max_wasm_stack(STACK_BYTES)
        .async_stack_size(STACK_BYTES + HOST_STACK_BYTES)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_function_references(false)
        .wasm_gc(false)
        // Exceptions are what LLVM makes of C++'s, so real programs have them. Their objects are on a heap that
        // counts as memory.
        .wasm_exceptions(true)
        // A trap says what happened; where it happened is of no use to who has no symbols.
        .generate_address_map(false);
    config
}

/// The triple that this is built for, without what the machine at hand has beyond it.
fn target() -> String {
    let environment = if cfg!(target_env = "musl") { "musl" } else { "gnu" };
    format!("{}-unknown-linux-{environment}", std::env::consts::ARCH)
}

#[expect(
    unsafe_code,
    reason = "a wrong flag would miscompile; these name processor features, which wasmtime checks for before it runs code"
)]
fn enable_x86_64_v2(config: &mut Config) {
    for feature in X86_64_V2 {
        // SAFETY: see the reason above.
        unsafe { config.cranelift_flag_enable(feature) };
    }
}

/// What instructions cost: one each as wasmtime has it, and one for each byte or element that a bulk instruction
/// moves, which is charged before it starts. What is missing there is the price of memory, and of exceptions,
/// which search the stack.
fn operator_cost() -> OperatorCost {
    let mut cost = OperatorCost::default();
    cost.variable.memory_grow_per_page = price::MEMORY_PAGE;
    cost.Throw = price::THROW;
    cost.ThrowRef = price::THROW;
    cost
}

/// Feeds what the standard library's `Hash` writes to BLAKE3: the same on every machine of one architecture.
struct StableHasher(blake3::Hasher);

impl Hasher for StableHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        u64::from_le_bytes(self.0.finalize().as_bytes()[..8].try_into().expect("eight bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_one_that_is_built_in() {
        let lock = include_str!("../../Cargo.lock");
        let (name, version) = ENGINE_VERSION.split_once(' ').expect("name and version");
        assert!(
            lock.contains(&format!("name = \"{name}\"\nversion = \"{version}\"\n")),
            "not in Cargo.lock: {ENGINE_VERSION}"
        );
    }

    #[test]
    fn the_configuration_is_the_same_each_time() {
        assert_eq!(configuration(), configuration());
    }
}
