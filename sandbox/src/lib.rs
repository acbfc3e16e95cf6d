//! Runs strangers' programs.
//!
//! This is the only crate that knows wasmtime, and it knows no money.

pub mod cache;
pub mod compile;
pub mod engine;
pub mod host;
pub mod jail;
pub mod run;
pub mod task;
pub mod worker;

mod wire;
