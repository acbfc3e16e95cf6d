//! What a program may have at once.
//!
//! Bounds that a task chooses are in [`Limits`](crate::task::Limits); here are those that are the same for all,
//! and the one that counts memory. A program that reaches one is told by an error, where WASI or WebAssembly have
//! one, and ends otherwise.

use rustix::io::Errno;
use wasmtime::ResourceLimiter;

/// Descriptors of a module, or handles of a component.
pub(crate) const DESCRIPTORS: usize = 1_024;

/// Handles of a component: descriptors, streams, pollables, listings and errors.
pub(crate) const HANDLES: usize = 4 * DESCRIPTORS;

/// Instances, one in a module, and some dozens in a component that was made of an interpreter and its libraries.
pub(crate) const INSTANCES: usize = 256;

/// Linear memories. Each reserves 4 GiB of addresses, whatever it holds.
pub(crate) const MEMORIES: usize = 32;

/// Tables.
pub(crate) const TABLES: usize = 512;

/// Bytes of a path.
pub(crate) const PATH_BYTES: usize = 4_096;

/// Bytes of a name between two slashes.
pub(crate) const NAME_BYTES: usize = 255;

/// Directories inside one another.
pub(crate) const DEPTH: usize = 64;

/// Entries in all directory listings that are open at once, together.
pub(crate) const LISTED_ENTRIES: usize = 1 << 20;

/// I/O vectors or subscriptions of one call.
pub(crate) const ITEMS: u32 = 1_024;

/// Bytes that a component passes or is given in one call.
pub(crate) const CALL_BYTES: usize = 16 << 20;

/// Bytes that a component reads at once, or is told that it may write at once.
pub(crate) const STREAM_BYTES: u64 = 1 << 20;

/// All of the above that decide what comes out of a run.
pub(crate) const ALL: [usize; 12] = [
    DESCRIPTORS,
    HANDLES,
    INSTANCES,
    MEMORIES,
    TABLES,
    PATH_BYTES,
    NAME_BYTES,
    DEPTH,
    LISTED_ENTRIES,
    ITEMS as usize,
    CALL_BYTES,
    STREAM_BYTES as usize,
];

/// What an element of a table takes: a pointer. References to exceptions take half of it.
const ELEMENT_BYTES: usize = size_of::<usize>();

/// The machine has not the memory that the limits promise. That is no doing of the program, and nothing that it could
/// be told: it would compute something else than elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the machine lacks memory: {0}")]
pub(crate) struct MachineLacksMemory(pub(crate) Errno);

/// Counts linear memories, tables and the heap of exceptions, together.
#[derive(Debug)]
pub(crate) struct MemoryMeter {
    limit_bytes: u64,
    used_bytes: u64,
    /// Most that was used at once. Memory does not shrink, so it is what is used.
    pub(crate) peak_bytes: u64,
    /// Set by a refusal: what would have been used.
    pub(crate) refused_bytes: Option<u64>,
}

impl MemoryMeter {
    /// Nothing used yet.
    pub(crate) fn new(limit_bytes: u64) -> Self {
        Self { limit_bytes, used_bytes: 0, peak_bytes: 0, refused_bytes: None }
    }

    /// The limit.
    pub(crate) fn limit_bytes(&self) -> u64 {
        self.limit_bytes
    }

    fn grow(&mut self, current_bytes: usize, desired_bytes: usize) -> bool {
        let more_bytes = desired_bytes.saturating_sub(current_bytes) as u64;
        let wanted_bytes = self.used_bytes.saturating_add(more_bytes);
        if wanted_bytes > self.limit_bytes {
            self.refused_bytes = Some(wanted_bytes);
            return false;
        }
        self.used_bytes = wanted_bytes;
        self.peak_bytes = self.peak_bytes.max(wanted_bytes);
        true
    }
}

impl ResourceLimiter for MemoryMeter {
    /// A growth beyond what the program declared itself fails after this, so it is not counted.
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(current, desired))
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let bytes = |elements: usize| elements.saturating_mul(ELEMENT_BYTES);
        Ok(maximum.is_none_or(|maximum| desired <= maximum) && self.grow(bytes(current), bytes(desired)))
    }

    /// Growing beyond what a memory can have is the program's business. That the machine lacks memory is not.
    fn memory_grow_failed(&mut self, error: wasmtime::Error) -> wasmtime::Result<()> {
        match error.downcast_ref::<Errno>() {
            Some(errno) => Err(MachineLacksMemory(*errno).into()),
            None => Ok(()),
        }
    }

    fn instances(&self) -> usize {
        INSTANCES
    }

    fn tables(&self) -> usize {
        TABLES
    }

    fn memories(&self) -> usize {
        MEMORIES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memories_and_tables_share_one_limit() -> wasmtime::Result<()> {
        let mut meter = MemoryMeter::new(1_000);
        assert!(meter.memory_growing(0, 600, None)?);
        assert!(meter.table_growing(0, 50, None)?, "400 bytes more");
        assert!(!meter.table_growing(50, 51, None)?);
        assert_eq!((meter.peak_bytes, meter.refused_bytes), (1_000, Some(1_008)));
        assert!(!meter.table_growing(0, usize::MAX, None)?);
        Ok(())
    }

    #[test]
    fn a_machine_without_memory_ends_the_program() {
        let mut meter = MemoryMeter::new(1_000);
        let error = meter.memory_grow_failed(Errno::NOMEM.into()).unwrap_err();
        assert_eq!(error.downcast_ref(), Some(&MachineLacksMemory(Errno::NOMEM)));
        assert!(meter.memory_grow_failed(wasmtime::format_err!("beyond the type's limits")).is_ok());
    }

    #[test]
    fn what_fails_by_the_programs_own_maximum_is_not_counted() -> wasmtime::Result<()> {
        let mut meter = MemoryMeter::new(1_000);
        assert!(!meter.memory_growing(0, 600, Some(500))?);
        assert_eq!((meter.peak_bytes, meter.refused_bytes), (0, None));
        Ok(())
    }
}
