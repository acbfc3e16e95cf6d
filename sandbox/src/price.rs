//! What host calls cost, in fuel.
//!
//! Code costs about one fuel for each instruction, which takes between 0.1 and 0.4 ns. A host call is worth as
//! much fuel as a loop would burn in the time that the call takes, so that no program gets more of a machine by
//! calling than by computing, and an endless loop through calls ends as soon as one without. The figures were
//! measured on one machine and are rounded up; what matters is that they are the same everywhere. Changing one
//! changes [`configuration`](crate::engine::configuration).

/// Any call: leaving the code, finding memory and descriptor, coming back.
pub(crate) const CALL: u64 = 500;

/// Looking up a path, beside its bytes.
pub(crate) const PATH: u64 = 500;

/// Each byte of a path: a short name costs a search in a directory.
pub(crate) const PATH_BYTE: u64 = 50;

/// Making or removing a file, a directory or a descriptor: allocations, and a change of a directory.
pub(crate) const CHANGE: u64 = 2_000;

/// Each thing of which a call may name many: an I/O vector, a subscription, an argument.
pub(crate) const ITEM: u64 = 20;

/// Each entry of a directory when it is opened for listing, and each node below a directory that is moved.
pub(crate) const ENTRY: u64 = 50;

/// Each page of 64 KiB that memory grows by, on top of the instruction. A page that is touched costs some
/// thousands, but the field is a byte; what bounds it is that memory never shrinks, so each page is paid for in
/// time only once.
pub(crate) const MEMORY_PAGE: u8 = 255;

/// Throwing an exception: an allocation and a search of the stack. The frames that it unwinds were paid for when
/// they were entered.
pub(crate) const THROW: u8 = 255;

/// All of the above, and the divisors below.
pub(crate) const ALL: [u64; 11] = [
    CALL,
    PATH,
    PATH_BYTE,
    CHANGE,
    ITEM,
    ENTRY,
    MEMORY_PAGE as u64,
    THROW as u64,
    COPIED_BYTES,
    RANDOM_BYTE,
    NEW_BYTE,
];

/// So many bytes are copied for one fuel.
const COPIED_BYTES: u64 = 4;

/// Each random byte.
const RANDOM_BYTE: u64 = 8;

/// Each byte by which a file or a log becomes longer: memory that is touched for the first time.
const NEW_BYTE: u64 = 2;

/// Copying so many bytes.
pub(crate) fn copied(bytes: u64) -> u64 {
    bytes / COPIED_BYTES
}

/// Drawing so many random bytes.
pub(crate) fn random(bytes: u64) -> u64 {
    bytes.saturating_mul(RANDOM_BYTE)
}

/// Making a file or a log so many bytes longer.
pub(crate) fn new_bytes(bytes: u64) -> u64 {
    bytes.saturating_mul(NEW_BYTE)
}

/// Looking up a path of so many bytes.
pub(crate) fn path(bytes: u64) -> u64 {
    PATH + bytes.saturating_mul(PATH_BYTE)
}
