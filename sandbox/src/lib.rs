//! Runs strangers' programs.
//!
//! This is the only crate that knows wasmtime, and it knows no money.

pub mod task;
