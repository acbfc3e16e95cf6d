//! Runs strangers' programs: deterministically, bounded, and away from everything that is the machine's.
//!
//! | step | module | in -> out |
//! |---|---|---|
//! | ask | [`task`] | arguments, files, limits, seed -> a [`Task`](task::Task) |
//! | compile | [`compile`] | WebAssembly -> an artefact, under one configuration ([`engine`]) |
//! | run | [`run`] | program, task -> an [`Outcome`](task::Outcome), reported step by step |
//!
//! A program sees WASI, preview 1 as a module and 0.2 as a component. Both are written here, over files that
//! exist in memory only (`files`), a clock made of fuel (`clock`) and random bytes made of a seed (`random`),
//! since what a program sees decides what comes out, and what it can reach is what it can break. What either
//! costs is in `price`, and what it may have in `limits`.
//!
//! **Invariant:** this is the only crate that knows wasmtime. It knows no money, no network and no async runtime.
//!
//! **Invariant:** whatever bytes a program passes, the sandbox does not panic, and allocates no more than the
//! task's limits allow.

pub mod compile;
pub mod engine;
pub mod run;
pub mod task;

mod clock;
mod files;
mod guest;
mod limits;
mod preview1;
mod preview2;
mod price;
mod progress;
mod random;
