//! What changes the tree: opening, making, removing, renaming.

use std::collections::BTreeMap;

use super::path::Place;
use super::{Content, FileError, Files, Inode, Opening};
use crate::limits;

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NewTime {
    /// Leave it.
    Same,
    /// Set it to that, in nanoseconds of Unix time.
    At(u64),
}

impl Files {
    /// Opens what `path` names, and makes a file there if that is asked for. Give the node back to
    /// [`Self::release`].
    pub(crate) fn open(
        &mut self,
        base: Inode,
        path: &str,
        how: Opening,
        now_ns: u64,
    ) -> Result<Inode, FileError> {
        let inode = match self.walk(base, path)? {
            Place::Directory(_) if how.create && how.exclusive => return Err(FileError::Exists),
            Place::Directory(inode) => inode,
            Place::Entry { directory, name, slash } => match self.child(directory, name) {
                Ok(_) if how.create && how.exclusive => return Err(FileError::Exists),
                Ok(inode) if slash && !self.is_directory(inode) => return Err(FileError::NotDirectory),
                Ok(inode) => inode,
                Err(FileError::NotFound) if how.create && how.must_be_directory => {
                    return Err(FileError::Invalid);
                }
                Err(FileError::NotFound) if how.create && slash => return Err(FileError::IsDirectory),
                Err(FileError::NotFound) if how.create => {
                    self.make(directory, name, Content::File(Vec::new()), now_ns)?
                }
                Err(error) => return Err(error),
            },
        };
        self.prepare(inode, how, now_ns)?;
        self.hold(inode);
        Ok(inode)
    }

    /// Checks that the node can be opened in that way, and cuts it if that is asked for.
    fn prepare(&mut self, inode: Inode, how: Opening, now_ns: u64) -> Result<(), FileError> {
        match self.is_directory(inode) {
            true if how.truncate => Err(FileError::IsDirectory),
            true => Ok(()),
            false if how.must_be_directory => Err(FileError::NotDirectory),
            false if how.truncate => self.set_size(inode, 0, now_ns),
            false if how.write => self.file_mut(inode).map(drop),
            false => Ok(()),
        }
    }

    /// Makes a node in a directory that has no such entry.
    fn make(
        &mut self,
        directory: Inode,
        name: &str,
        content: Content,
        now_ns: u64,
    ) -> Result<Inode, FileError> {
        self.check_changeable(directory)?;
        if self.depth(directory) >= limits::DEPTH {
            return Err(FileError::NameTooLong);
        }
        if self.count >= self.limit_count {
            self.refused = true;
            return Err(FileError::NoSpace);
        }
        self.count += 1;
        let inode = self.insert(directory, name.into(), content, true, now_ns);
        self.touch(directory, now_ns);
        Ok(inode)
    }

    /// A directory whose entries may change. One that was removed while open takes no more.
    fn check_changeable(&self, directory: Inode) -> Result<(), FileError> {
        let node = self.node(directory);
        match (node.writable, node.linked) {
            (false, _) => Err(FileError::ReadOnly),
            (true, false) => Err(FileError::NotFound),
            (true, true) => Ok(()),
        }
    }

    fn touch(&mut self, directory: Inode, now_ns: u64) {
        let times = &mut self.node_mut(directory).times;
        (times.modified_ns, times.changed_ns) = (now_ns, now_ns);
    }

    /// Makes a directory.
    pub(crate) fn create_directory(&mut self, base: Inode, path: &str, now_ns: u64) -> Result<(), FileError> {
        let Place::Entry { directory, name, .. } = self.walk(base, path)? else {
            return Err(FileError::Exists);
        };
        match self.child(directory, name) {
            Ok(_) => Err(FileError::Exists),
            Err(FileError::NotFound) => {
                self.make(directory, name, Content::Directory(BTreeMap::new()), now_ns).map(drop)
            }
            Err(error) => Err(error),
        }
    }

    /// Removes an empty directory.
    pub(crate) fn remove_directory(&mut self, base: Inode, path: &str, now_ns: u64) -> Result<(), FileError> {
        let Place::Entry { directory, name, .. } = self.walk(base, path)? else {
            return Err(FileError::Invalid);
        };
        let inode = self.child(directory, name)?;
        let is_empty = self.entries(inode)?.is_empty();
        self.check_changeable(directory)?;
        if !is_empty {
            return Err(FileError::NotEmpty);
        }
        self.unlink(inode, now_ns);
        Ok(())
    }

    /// Removes a file's name. Who has it open still has it.
    pub(crate) fn remove_file(&mut self, base: Inode, path: &str, now_ns: u64) -> Result<(), FileError> {
        let Place::Entry { directory, name, slash } = self.walk(base, path)? else {
            return Err(FileError::IsDirectory);
        };
        let inode = self.child(directory, name)?;
        match self.is_directory(inode) {
            true => return Err(FileError::IsDirectory),
            false if slash => return Err(FileError::NotDirectory),
            false => self.check_changeable(directory)?,
        }
        self.unlink(inode, now_ns);
        Ok(())
    }

    /// Takes a node's name away.
    fn unlink(&mut self, inode: Inode, now_ns: u64) {
        let node = self.node_mut(inode);
        node.linked = false;
        node.times.changed_ns = now_ns;
        let (parent, name) = (node.parent, node.name.clone());
        self.entries_mut(parent).expect("a parent is a directory").remove(&name);
        self.touch(parent, now_ns);
        self.drop_if_unused(inode);
    }

    /// Gives a node another name, which another node may lose by that. Returns how many nodes were looked at.
    pub(crate) fn rename(
        &mut self,
        from: (Inode, &str),
        to: (Inode, &str),
        now_ns: u64,
    ) -> Result<u64, FileError> {
        let Place::Entry { directory: old, name: old_name, .. } = self.walk(from.0, from.1)? else {
            return Err(FileError::Invalid);
        };
        let Place::Entry { directory: new, name: new_name, slash } = self.walk(to.0, to.1)? else {
            return Err(FileError::Exists);
        };
        let inode = self.child(old, old_name)?;
        self.check_changeable(old)?;
        self.check_changeable(new)?;
        if slash && !self.is_directory(inode) {
            return Err(FileError::NotDirectory);
        }
        let looked_at = self.check_depth(inode, new)?;
        match self.child(new, new_name) {
            Ok(other) if other == inode => return Ok(looked_at),
            Ok(other) => {
                self.check_replaceable(other, inode)?;
                self.unlink(other, now_ns);
            }
            Err(_) => {}
        }
        self.entries_mut(old)?.remove(old_name);
        self.entries_mut(new)?.insert(new_name.into(), inode);
        let node = self.node_mut(inode);
        (node.parent, node.name, node.times.changed_ns) = (new, new_name.into(), now_ns);
        self.touch(old, now_ns);
        self.touch(new, now_ns);
        Ok(looked_at)
    }

    fn check_replaceable(&self, replaced: Inode, by: Inode) -> Result<(), FileError> {
        match (self.entries(replaced), self.is_directory(by)) {
            (Ok(entries), true) if entries.is_empty() => Ok(()),
            (Ok(_), true) => Err(FileError::NotEmpty),
            (Ok(_), false) => Err(FileError::IsDirectory),
            (Err(_), true) => Err(FileError::NotDirectory),
            (Err(_), false) => Ok(()),
        }
    }

    /// Checks that a node may move into the directory `target`: not below itself, and not too deep. Returns how
    /// many nodes it is and has.
    fn check_depth(&self, moved: Inode, target: Inode) -> Result<u64, FileError> {
        let mut inode = target;
        while self.parent(inode) != inode {
            if inode == moved {
                return Err(FileError::Invalid);
            }
            inode = self.parent(inode);
        }
        let (mut deepest, mut nodes) = (0, 0);
        let mut ahead = vec![(moved, self.depth(target) + 1)];
        while let Some((inode, depth)) = ahead.pop() {
            deepest = deepest.max(depth);
            nodes += 1;
            if let Ok(entries) = self.entries(inode) {
                ahead.extend(entries.values().map(|&child| (child, depth + 1)));
            }
        }
        if deepest > limits::DEPTH { Err(FileError::NameTooLong) } else { Ok(nodes) }
    }

    /// Sets times.
    pub(crate) fn set_times(
        &mut self,
        inode: Inode,
        accessed: NewTime,
        modified: NewTime,
        now_ns: u64,
    ) -> Result<(), FileError> {
        let node = self.node_mut(inode);
        if !node.writable {
            return Err(FileError::ReadOnly);
        }
        if let NewTime::At(ns) = accessed {
            node.times.accessed_ns = ns;
        }
        if let NewTime::At(ns) = modified {
            node.times.modified_ns = ns;
        }
        node.times.changed_ns = now_ns;
        Ok(())
    }
}
