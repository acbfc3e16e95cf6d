//! A client's program as an artefact, compiled once however many ask.

use std::time::{Duration, Instant};

use super::{CompileFailure, CompileLimits, Stop, WorkerError, Workers};
use crate::cache::{Artefact, Cache, CacheError, Client, Found, Key};

/// A client's program, ready to run.
#[derive(Debug)]
pub struct Compiled {
    /// What runs.
    pub artefact: Artefact,
    /// How long it took to compile, if this call did that.
    pub took: Option<Duration>,
    /// Whether it was kept before and has changed on disk, of which the machine's owner should know.
    pub was_rotten: bool,
}

/// Why there is no artefact.
#[derive(Debug, thiserror::Error)]
pub enum CompiledError {
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
    /// Compiling failed.
    #[error(transparent)]
    Compile(#[from] CompileFailure),
}

impl Workers {
    /// Finds what a client's module was compiled to, or compiles and keeps it. Of calls for the same at the same time
    /// one compiles, and the others wait for it and find what it kept; if it fails, the next of them tries.
    ///
    /// # Errors
    /// [`CompiledError`]. Who is stopped while another compiles gets [`WorkerError::Stopped`].
    pub fn compiled(
        &self,
        cache: &Cache,
        client: &Client,
        module: &[u8],
        limits: &CompileLimits,
        stop: &Stop,
    ) -> Result<Compiled, CompiledError> {
        let key = Key::of(module);
        let turn = cache.turn(client, key, || stop.is_asked());
        let _turn = turn.ok_or(CompileFailure::Worker(WorkerError::Stopped))?;
        let was_rotten = match cache.get(client, key)? {
            Found::Artefact(artefact) => return Ok(Compiled { artefact, took: None, was_rotten: false }),
            Found::Rotten => true,
            Found::Nothing => false,
        };
        let started = Instant::now();
        let mut new = cache.begin(client)?;
        self.compile(module, limits, stop, &mut new)?;
        Ok(Compiled { artefact: new.keep(key)?, took: Some(started.elapsed()), was_rotten })
    }
}
