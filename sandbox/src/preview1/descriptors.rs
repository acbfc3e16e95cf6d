//! The table of descriptors of a module.

use crate::files::{FileError, Files, Inode, Listing, ROOT};
use crate::guest::Stdio;
use crate::limits;

/// What a descriptor is open for.
#[derive(Debug)]
pub(crate) enum Descriptor {
    /// Standard input.
    Stdin,
    /// Standard output or standard error.
    Print(Stdio),
    /// A directory, and its entries since they were last listed from the beginning.
    Directory { inode: Inode, listing: Option<Listing> },
    /// A file.
    File(OpenFile),
}

/// An open file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OpenFile {
    pub(crate) inode: Inode,
    pub(crate) position: u64,
    pub(crate) append: bool,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// The descriptor of the root directory, which modules find open.
pub(crate) const PREOPENED: u32 = 3;

/// The table. A new descriptor gets the lowest free number.
#[derive(Debug)]
pub(crate) struct Descriptors(Vec<Option<Descriptor>>);

impl Descriptors {
    /// Standard input, output and error, and the root directory.
    pub(crate) fn new() -> Self {
        Self(vec![
            Some(Descriptor::Stdin),
            Some(Descriptor::Print(Stdio::Out)),
            Some(Descriptor::Print(Stdio::Err)),
            Some(Descriptor::Directory { inode: ROOT, listing: None }),
        ])
    }

    /// The descriptor `fd`.
    pub(crate) fn get(&self, fd: u32) -> Result<&Descriptor, FileError> {
        self.0.get(fd as usize).and_then(Option::as_ref).ok_or(FileError::BadDescriptor)
    }

    /// The descriptor `fd`, to be changed.
    pub(crate) fn get_mut(&mut self, fd: u32) -> Result<&mut Descriptor, FileError> {
        self.0.get_mut(fd as usize).and_then(Option::as_mut).ok_or(FileError::BadDescriptor)
    }

    /// The directory that `fd` is.
    pub(crate) fn directory(&self, fd: u32) -> Result<Inode, FileError> {
        match self.get(fd)? {
            Descriptor::Directory { inode, .. } => Ok(*inode),
            _ => Err(FileError::NotDirectory),
        }
    }

    /// The file or directory that `fd` is.
    pub(crate) fn inode(&self, fd: u32) -> Result<Option<Inode>, FileError> {
        Ok(match self.get(fd)? {
            Descriptor::Directory { inode, .. } => Some(*inode),
            Descriptor::File(file) => Some(file.inode),
            Descriptor::Stdin | Descriptor::Print(_) => None,
        })
    }

    /// The file that `fd` is, to be changed.
    pub(crate) fn file_mut(&mut self, fd: u32) -> Result<&mut OpenFile, FileError> {
        match self.get_mut(fd)? {
            Descriptor::File(file) => Ok(file),
            _ => Err(FileError::BadDescriptor),
        }
    }

    /// Whether there is room for one more.
    pub(crate) fn check_room(&self) -> Result<(), FileError> {
        let is_full = self.0.len() >= limits::DESCRIPTORS && self.0.iter().all(Option::is_some);
        if is_full { Err(FileError::TooManyOpen) } else { Ok(()) }
    }

    /// Adds a descriptor, for which there is room.
    pub(crate) fn add(&mut self, descriptor: Descriptor) -> u32 {
        let free = self.0.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.0.push(None);
            self.0.len() - 1
        });
        self.0[index] = Some(descriptor);
        u32::try_from(index).expect("the table is short")
    }

    /// Closes `fd`.
    pub(crate) fn close(&mut self, fd: u32, files: &mut Files) -> Result<(), FileError> {
        let slot = self.0.get_mut(fd as usize).ok_or(FileError::BadDescriptor)?;
        match slot.take().ok_or(FileError::BadDescriptor)? {
            Descriptor::Directory { inode, listing } => {
                if let Some(listing) = listing {
                    files.end_listing(listing);
                }
                files.release(inode);
            }
            Descriptor::File(file) => files.release(file.inode),
            Descriptor::Stdin | Descriptor::Print(_) => {}
        }
        Ok(())
    }

    /// Makes `to` what `from` is, and closes `from`. Both are open.
    pub(crate) fn renumber(&mut self, from: u32, to: u32, files: &mut Files) -> Result<(), FileError> {
        self.get(from)?;
        self.get(to)?;
        if from != to {
            self.close(to, files)?;
            self.0.swap(from as usize, to as usize);
        }
        Ok(())
    }
}
