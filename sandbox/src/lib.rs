//! The Wasm sandbox for paid jobs. **Planned**: nothing in the program needs it yet, so nothing is here yet.
//!
//! This will be the only crate that knows wasmtime, and it will know no money.
