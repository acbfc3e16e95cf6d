//! Runs strangers' programs: deterministically, bounded, and away from everything that is the machine's.
//!
//! | step | module | in -> out |
//! |---|---|---|
//! | ask | [`task`] | arguments, files, limits, seed -> a [`Task`](task::Task) |
//! | compile | [`compile`] | WebAssembly -> an artefact, under one configuration ([`engine`]) |
//! | keep | [`cache`] | artefact, client -> a file that is checked before it is used |
//! | run | [`run`] | program, task -> an [`Outcome`](task::Outcome), reported step by step |
//!
//! Compiling and running happen in processes of their own, each of which does it once:
//!
//! | side | module | what it does |
//! |---|---|---|
//! | the provider's process | [`host`] | keeps workers warm, gives each one order, watches it and ends it |
//! | the worker's process | [`worker`] | puts up its [`jail`], takes the order, carries it out |
//!
//! What they say to each other is in `wire`.
//!
//! What a machine can be rented out for is counted and measured in [`capacity`].
//!
//! A program sees WASI, preview 1 as a module and 0.2 as a component. Both are written here, over files that
//! exist in memory only (`files`), a clock made of fuel (`clock`) and random bytes made of a seed (`random`),
//! since what a program sees decides what comes out, and what it can reach is what it can break. What either
//! costs is in `price`, and what it may have in `limits`.
//!
//! **Invariant:** this is the only crate that knows wasmtime. It knows no money, no network and no async runtime.
//!
//! **Invariant:** strangers' bytes are compiled and run in a jail only. What the provider's process does with them
//! is to hash and to hand them on.
//!
//! **Invariant:** whatever bytes a program passes, the sandbox does not panic, and allocates no more than the
//! task's limits allow.

pub mod cache;
pub mod capacity;
pub mod compile;
pub mod engine;
pub mod host;
pub mod jail;
pub mod run;
pub mod task;
pub mod worker;

mod clock;
mod files;
mod guest;
mod limits;
mod preview1;
mod preview2;
mod price;
mod progress;
mod random;
mod wire;
