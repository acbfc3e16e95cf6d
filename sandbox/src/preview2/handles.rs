//! What a component holds handles to, and how its calls fail.
#![expect(unreachable_pub, reason = "the generated bindings export them again")]

use wasmtime::component::ResourceTableError;

use crate::files::{FileError, Inode, Listing};
use crate::guest::Stdio;

/// There is none.
pub enum Terminal {}

/// An open file or directory.
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    pub(super) inode: Inode,
    pub(super) flags: super::bindings::wasi::filesystem::types::DescriptorFlags,
}

/// A directory that is being listed, and the number of the next entry.
#[derive(Debug)]
pub struct Entries {
    pub(super) listing: Listing,
    pub(super) next: usize,
}

/// Why an operation on a stream failed.
#[derive(Debug, Clone, Copy)]
pub struct IoError(pub(super) FileError);

/// When something is ready.
#[derive(Debug, Clone, Copy)]
pub enum Pollable {
    /// Always, as all streams are.
    Now,
    /// So many nanoseconds after the start.
    At(u64),
}

/// Something to read from.
#[derive(Debug, Clone, Copy)]
pub enum InputStream {
    Stdin,
    File { inode: Inode, position: u64 },
}

/// Something to write to.
#[derive(Debug, Clone, Copy)]
pub enum OutputStream {
    Print(Stdio),
    File {
        inode: Inode,
        position: u64,
    },
    /// The end of a file, wherever that is.
    Append {
        inode: Inode,
    },
}

/// Why a file operation does not do what was asked: a code for the program, or the program's end.
#[derive(Debug)]
pub enum Failure {
    File(FileError),
    Trap(wasmtime::Error),
}

/// Why a stream does not do what was asked.
#[derive(Debug)]
pub enum StreamFailure {
    Closed,
    File(FileError),
    Trap(wasmtime::Error),
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<wasmtime::Error> for Failure {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

impl From<wasmtime::Trap> for Failure {
    fn from(trap: wasmtime::Trap) -> Self {
        Self::Trap(trap.into())
    }
}

impl From<ResourceTableError> for Failure {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}

impl From<FileError> for StreamFailure {
    fn from(error: FileError) -> Self {
        Self::File(error)
    }
}

impl From<wasmtime::Error> for StreamFailure {
    fn from(error: wasmtime::Error) -> Self {
        Self::Trap(error)
    }
}

impl From<wasmtime::Trap> for StreamFailure {
    fn from(trap: wasmtime::Trap) -> Self {
        Self::Trap(trap.into())
    }
}

impl From<ResourceTableError> for StreamFailure {
    fn from(error: ResourceTableError) -> Self {
        Self::Trap(error.into())
    }
}
