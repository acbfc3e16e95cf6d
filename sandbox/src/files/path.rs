//! From a path to a node.

use super::{FileError, Files, Inode};
use crate::limits;

/// Where a path leads: to an entry of a directory, which may not exist yet, or to a directory as such (`.`,
/// `a/..`).
pub(super) enum Place<'a> {
    /// An entry.
    Entry {
        /// The directory, which exists.
        directory: Inode,
        /// The name in it.
        name: &'a str,
        /// Whether the path ends in a slash, so that only a directory will do.
        slash: bool,
    },
    /// A directory that was reached by other means than its name.
    Directory(Inode),
}

impl Files {
    /// The node that `path` names, from the directory `base` on.
    pub(crate) fn lookup(&self, base: Inode, path: &str) -> Result<Inode, FileError> {
        match self.walk(base, path)? {
            Place::Directory(inode) => Ok(inode),
            Place::Entry { directory, name, slash } => {
                let inode = self.child(directory, name)?;
                if slash && !self.is_directory(inode) { Err(FileError::NotDirectory) } else { Ok(inode) }
            }
        }
    }

    /// Follows `path` up to its last name. It never leaves `base`: not by `..`, and not by starting with a slash.
    pub(super) fn walk<'a>(&self, base: Inode, path: &'a str) -> Result<Place<'a>, FileError> {
        check(path)?;
        let slash = path.ends_with('/');
        let mut names = path.split('/').filter(|name| !matches!(*name, "" | ".")).peekable();
        let (mut directory, mut depth) = (base, 0_usize);
        self.entries(directory)?;
        while let Some(name) = names.next() {
            let is_last = names.peek().is_none();
            match name {
                ".." => {
                    depth = depth.checked_sub(1).ok_or(FileError::NotPermitted)?;
                    directory = self.parent(directory);
                }
                _ if name.len() > limits::NAME_BYTES => return Err(FileError::NameTooLong),
                _ if is_last => {
                    let slash = slash || path.ends_with("/.");
                    return Ok(Place::Entry { directory, name, slash });
                }
                _ => {
                    directory = self.child(directory, name)?;
                    self.entries(directory)?;
                    depth += 1;
                }
            }
        }
        Ok(Place::Directory(directory))
    }

    /// How many directories a directory is in.
    pub(super) fn depth(&self, directory: Inode) -> usize {
        let mut depth = 0;
        let mut inode = directory;
        while self.parent(inode) != inode {
            inode = self.parent(inode);
            depth += 1;
        }
        depth
    }
}

fn check(path: &str) -> Result<(), FileError> {
    match path {
        "" => Err(FileError::NotFound),
        _ if path.len() > limits::PATH_BYTES => Err(FileError::NameTooLong),
        _ if path.starts_with('/') => Err(FileError::NotPermitted),
        _ if path.contains('\0') => Err(FileError::Invalid),
        _ => Ok(()),
    }
}
