//! The error numbers of preview 1.

use wasmtime::Trap;

use crate::files::FileError;

/// An error number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) u32);

impl Errno {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const BADF: Self = Self(8);
    pub(crate) const EXIST: Self = Self(20);
    pub(crate) const FAULT: Self = Self(21);
    pub(crate) const ILSEQ: Self = Self(25);
    pub(crate) const INVAL: Self = Self(28);
    pub(crate) const ISDIR: Self = Self(31);
    pub(crate) const MFILE: Self = Self(33);
    pub(crate) const NAMETOOLONG: Self = Self(37);
    pub(crate) const NOENT: Self = Self(44);
    pub(crate) const NOSPC: Self = Self(51);
    pub(crate) const NOTDIR: Self = Self(54);
    pub(crate) const NOTEMPTY: Self = Self(55);
    pub(crate) const NOTSUP: Self = Self(58);
    pub(crate) const PERM: Self = Self(63);
    pub(crate) const ROFS: Self = Self(69);
    pub(crate) const SPIPE: Self = Self(70);
}

impl From<FileError> for Errno {
    fn from(error: FileError) -> Self {
        match error {
            FileError::NotFound => Self::NOENT,
            FileError::Exists => Self::EXIST,
            FileError::NotDirectory => Self::NOTDIR,
            FileError::IsDirectory => Self::ISDIR,
            FileError::NotEmpty => Self::NOTEMPTY,
            FileError::NotPermitted => Self::PERM,
            FileError::ReadOnly => Self::ROFS,
            FileError::NoSpace => Self::NOSPC,
            FileError::NameTooLong => Self::NAMETOOLONG,
            FileError::Invalid => Self::INVAL,
            FileError::TooManyOpen => Self::MFILE,
            FileError::BadDescriptor => Self::BADF,
            FileError::Unsupported => Self::NOTSUP,
        }
    }
}

/// Why a function does not do what was asked: a number for the program, or the program's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Errno(Errno),
    Trap(Trap),
}

/// What a function returns. Results beside the error number go to the guest's memory.
pub(crate) type Answer<T = ()> = Result<T, Fault>;

impl From<Errno> for Fault {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno)
    }
}

impl From<FileError> for Fault {
    fn from(error: FileError) -> Self {
        Self::Errno(error.into())
    }
}

impl From<Trap> for Fault {
    fn from(trap: Trap) -> Self {
        Self::Trap(trap)
    }
}
