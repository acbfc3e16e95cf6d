//! The files that a program sees: a tree in memory.
//!
//! ```text
//! /        read-only; holds the task's inputs at their paths
//! /out     writable; the files in it at the end are the outputs
//! /tmp     writable; dropped
//! ```
//!
//! **Goals:** nothing of the host's file system is in it, so there is nothing to escape to. Every byte and every
//! file that the program makes is counted, exactly, whether it is named, open or both. Everything that a program
//! can observe follows from the task and from what it did: inode numbers count up in order of creation,
//! directories list by name, times come from the caller.
//!
//! **Non-goals:** links of any kind, permissions, devices, more than one process.
//!
//! **Invariant:** only directories and files below `/out` and `/tmp` change. A node exists as long as it has a
//! name or is open.

use std::collections::BTreeMap;

use crate::limits;
use crate::task::{Input, Output};

pub(crate) mod change;
pub(crate) mod path;

/// Names a node for good: numbers are never used again.
pub(crate) type Inode = u64;

/// Why a file operation was refused. Preview 1 and 0.2 each have a code for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    #[error("there is no such file or directory")]
    NotFound,
    #[error("it exists")]
    Exists,
    #[error("it is not a directory")]
    NotDirectory,
    #[error("it is a directory")]
    IsDirectory,
    #[error("the directory is not empty")]
    NotEmpty,
    #[error("the path leads out of its directory")]
    NotPermitted,
    #[error("only /out and /tmp can be written")]
    ReadOnly,
    #[error("the limit of bytes or files is reached")]
    NoSpace,
    #[error("the name or the path is too long, or too deep")]
    NameTooLong,
    #[error("the request makes no sense")]
    Invalid,
    #[error("too much is open")]
    TooManyOpen,
    #[error("it is not open for this")]
    BadDescriptor,
    #[error("there are no links and no sockets")]
    Unsupported,
}

/// Access, modification and status change, in nanoseconds of Unix time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Times {
    pub(crate) accessed_ns: u64,
    pub(crate) modified_ns: u64,
    pub(crate) changed_ns: u64,
}

impl Times {
    fn all(ns: u64) -> Self {
        Self { accessed_ns: ns, modified_ns: ns, changed_ns: ns }
    }
}

/// What a program may ask about a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) inode: Inode,
    pub(crate) is_directory: bool,
    pub(crate) bytes: u64,
    /// One, or none after the name was removed.
    pub(crate) links: u64,
    pub(crate) times: Times,
}

/// How to open a path.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Opening {
    pub(crate) create: bool,
    pub(crate) exclusive: bool,
    pub(crate) truncate: bool,
    pub(crate) must_be_directory: bool,
    /// Whether the file is going to be written. Has no meaning for directories.
    pub(crate) write: bool,
}

/// The entries of a directory when it was opened for listing, sorted by name.
#[derive(Debug, Clone)]
pub(crate) struct Listing {
    pub(crate) directory: Inode,
    pub(crate) inodes: Vec<Inode>,
}

struct Node {
    parent: Inode,
    name: String,
    /// Whether it can be reached by its name.
    linked: bool,
    /// How many descriptors and streams hold it.
    opened: u32,
    /// Whether it, or what it holds, may change.
    writable: bool,
    times: Times,
    content: Content,
}

enum Content {
    Directory(BTreeMap<String, Inode>),
    File(Vec<u8>),
}

/// The tree. See the module.
pub(crate) struct Files {
    nodes: BTreeMap<Inode, Node>,
    next: Inode,
    out: Inode,
    bytes: u64,
    limit_bytes: u64,
    count: u32,
    limit_count: u32,
    listed: usize,
    /// Whether something could not be written because of the limits.
    pub(crate) refused: bool,
}

/// The root directory.
pub(crate) const ROOT: Inode = 1;

/// Why the inputs make no tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InputError {
    #[error("input path {0:?} is not a relative path of names with `/` between")]
    Path(String),
    #[error("input path {0:?} lies in /out or /tmp, which are the program's own")]
    Reserved(String),
    #[error("input path {0:?} is also another input, or a directory of one")]
    Twice(String),
}

impl Files {
    /// The tree at the start, at `now_ns`. The program may make `limit_count` files and directories of
    /// `limit_bytes` in all.
    pub(crate) fn new(
        inputs: Vec<Input>,
        limit_bytes: u64,
        limit_count: u32,
        now_ns: u64,
    ) -> Result<Self, InputError> {
        let mut files = Self {
            nodes: BTreeMap::new(),
            next: ROOT,
            out: ROOT,
            bytes: 0,
            limit_bytes,
            count: 0,
            limit_count,
            listed: 0,
            refused: false,
        };
        let directory = || Content::Directory(BTreeMap::new());
        files.insert(ROOT, String::new(), directory(), false, now_ns);
        files.out = files.insert(ROOT, "out".into(), directory(), true, now_ns);
        files.insert(ROOT, "tmp".into(), directory(), true, now_ns);
        // The descriptor that a module finds open.
        files.hold(ROOT);
        for input in inputs {
            files.add_input(input, now_ns)?;
        }
        Ok(files)
    }

    fn add_input(&mut self, input: Input, now_ns: u64) -> Result<(), InputError> {
        let Input { path, bytes } = input;
        let is_name = |name: &str| {
            !matches!(name, "" | "." | "..") && name.len() <= limits::NAME_BYTES && !name.contains('\0')
        };
        let names: Vec<&str> = path.split('/').collect();
        if path.len() > limits::PATH_BYTES
            || names.len() > limits::DEPTH
            || !names.iter().all(|name| is_name(name))
        {
            return Err(InputError::Path(path.chars().take(limits::NAME_BYTES).collect()));
        }
        if matches!(names[0], "out" | "tmp") {
            return Err(InputError::Reserved(path));
        }
        let (name, directories) = names.split_last().expect("splitting gives at least one part");
        let mut parent = ROOT;
        for directory in directories {
            parent = match self.child(parent, directory) {
                Ok(inode) => inode,
                Err(FileError::NotDirectory) => return Err(InputError::Twice(path)),
                Err(_) => self.insert(
                    parent,
                    (*directory).into(),
                    Content::Directory(BTreeMap::new()),
                    false,
                    now_ns,
                ),
            };
        }
        match self.child(parent, name) {
            Err(FileError::NotFound) => {
                self.insert(parent, (*name).into(), Content::File(bytes), false, now_ns);
                Ok(())
            }
            _ => Err(InputError::Twice(path)),
        }
    }

    /// Adds a node, and its name to its parent unless it is its own.
    fn insert(
        &mut self,
        parent: Inode,
        name: String,
        content: Content,
        writable: bool,
        now_ns: u64,
    ) -> Inode {
        let inode = self.next;
        self.next += 1;
        if parent != inode {
            self.entries_mut(parent).expect("a parent is a directory").insert(name.clone(), inode);
        }
        let node =
            Node { parent, name, linked: true, opened: 0, writable, times: Times::all(now_ns), content };
        self.nodes.insert(inode, node);
        inode
    }

    fn node(&self, inode: Inode) -> &Node {
        self.nodes.get(&inode).expect("a node is kept while it has a name or is open")
    }

    fn node_mut(&mut self, inode: Inode) -> &mut Node {
        self.nodes.get_mut(&inode).expect("a node is kept while it has a name or is open")
    }

    fn entries(&self, inode: Inode) -> Result<&BTreeMap<String, Inode>, FileError> {
        match &self.node(inode).content {
            Content::Directory(entries) => Ok(entries),
            Content::File(_) => Err(FileError::NotDirectory),
        }
    }

    fn entries_mut(&mut self, inode: Inode) -> Result<&mut BTreeMap<String, Inode>, FileError> {
        match &mut self.node_mut(inode).content {
            Content::Directory(entries) => Ok(entries),
            Content::File(_) => Err(FileError::NotDirectory),
        }
    }

    fn child(&self, directory: Inode, name: &str) -> Result<Inode, FileError> {
        self.entries(directory)?.get(name).copied().ok_or(FileError::NotFound)
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self, inode: Inode) -> bool {
        matches!(self.node(inode).content, Content::Directory(_))
    }

    /// What there is to know about a node.
    pub(crate) fn stat(&self, inode: Inode) -> Stat {
        let node = self.node(inode);
        let bytes = match &node.content {
            Content::Directory(_) => 0,
            Content::File(bytes) => bytes.len() as u64,
        };
        Stat {
            inode,
            is_directory: self.is_directory(inode),
            bytes,
            links: u64::from(node.linked),
            times: node.times,
        }
    }

    /// One more descriptor or stream holds the node.
    pub(crate) fn hold(&mut self, inode: Inode) {
        let node = self.node_mut(inode);
        node.opened = node.opened.checked_add(1).expect("far fewer things can be open");
    }

    /// One descriptor or stream less holds it.
    pub(crate) fn release(&mut self, inode: Inode) {
        let node = self.node_mut(inode);
        node.opened = node.opened.checked_sub(1).expect("what is released was held");
        self.drop_if_unused(inode);
    }

    /// Drops a node without name that nothing holds, and gives back what it took.
    fn drop_if_unused(&mut self, inode: Inode) {
        let node = self.node(inode);
        if node.linked || node.opened > 0 {
            return;
        }
        if let Content::File(bytes) = &node.content {
            self.bytes -= bytes.len() as u64;
        }
        self.count -= 1;
        self.nodes.remove(&inode);
    }

    /// The bytes of a file from `offset` on.
    pub(crate) fn read(&self, inode: Inode, offset: u64) -> Result<&[u8], FileError> {
        match &self.node(inode).content {
            Content::Directory(_) => Err(FileError::IsDirectory),
            Content::File(bytes) => {
                let offset = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
                Ok(&bytes[offset..])
            }
        }
    }

    /// Writes all of `written` at `offset`, and zeros before it if the file ends earlier, or nothing.
    pub(crate) fn write(
        &mut self,
        inode: Inode,
        offset: u64,
        written: &[u8],
        now_ns: u64,
    ) -> Result<(), FileError> {
        if written.is_empty() {
            return self.file_mut(inode).map(drop);
        }
        let end = offset.checked_add(written.len() as u64).ok_or(FileError::NoSpace)?;
        if end > self.stat(inode).bytes {
            self.set_size(inode, end, now_ns)?;
        }
        let node = self.file_mut(inode)?;
        (node.times.modified_ns, node.times.changed_ns) = (now_ns, now_ns);
        if let Content::File(bytes) = &mut node.content {
            let offset = usize::try_from(offset).expect("it is within the file");
            bytes[offset..offset + written.len()].copy_from_slice(written);
        }
        Ok(())
    }

    /// Cuts a file, or makes it longer by zeros.
    pub(crate) fn set_size(&mut self, inode: Inode, size: u64, now_ns: u64) -> Result<(), FileError> {
        let (used, limit) = (self.bytes, self.limit_bytes);
        let node = self.file_mut(inode)?;
        let Content::File(bytes) = &mut node.content else { unreachable!("it was checked to be a file") };
        let others = used - bytes.len() as u64;
        let fits = size <= limit.saturating_sub(others) && resize(bytes, size);
        if !fits {
            self.refused = true;
            return Err(FileError::NoSpace);
        }
        (node.times.modified_ns, node.times.changed_ns) = (now_ns, now_ns);
        self.bytes = others + size;
        Ok(())
    }

    /// Whether the files may become so much longer.
    pub(crate) fn has_room(&self, bytes: u64) -> bool {
        self.bytes.checked_add(bytes).is_some_and(|bytes| bytes <= self.limit_bytes)
    }

    /// A file that may change.
    fn file_mut(&mut self, inode: Inode) -> Result<&mut Node, FileError> {
        let node = self.node_mut(inode);
        match node.content {
            Content::Directory(_) => Err(FileError::IsDirectory),
            Content::File(_) if !node.writable => Err(FileError::ReadOnly),
            Content::File(_) => Ok(node),
        }
    }

    /// Takes down the entries of a directory. Give it back to [`Self::end_listing`].
    pub(crate) fn list(&mut self, directory: Inode) -> Result<Listing, FileError> {
        let entries = self.entries(directory)?;
        if self.listed + entries.len() > limits::LISTED_ENTRIES {
            return Err(FileError::TooManyOpen);
        }
        let inodes: Vec<Inode> = entries.values().copied().collect();
        self.listed += inodes.len();
        Ok(Listing { directory, inodes })
    }

    /// How many entries a directory has.
    pub(crate) fn len(&self, directory: Inode) -> u64 {
        self.entries(directory).map_or(0, BTreeMap::len) as u64
    }

    /// Name and kind of the entry `index` of a listing; nothing, if it was removed since.
    pub(crate) fn listed(&self, listing: &Listing, index: usize) -> Option<(&str, Stat)> {
        let inode = *listing.inodes.get(index)?;
        let node = self.nodes.get(&inode)?;
        (node.linked && node.parent == listing.directory).then(|| (node.name.as_str(), self.stat(inode)))
    }

    /// Forgets a listing.
    pub(crate) fn end_listing(&mut self, listing: Listing) {
        self.listed -= listing.inodes.len();
    }

    /// The directory that a directory is in; the root is in itself.
    pub(crate) fn parent(&self, directory: Inode) -> Inode {
        self.node(directory).parent
    }

    /// The files in `/out`, sorted by path.
    pub(crate) fn into_outputs(mut self) -> Vec<Output> {
        let mut outputs = Vec::new();
        let mut ahead = vec![(self.out, String::new())];
        while let Some((inode, path)) = ahead.pop() {
            match self.nodes.remove(&inode).map(|node| node.content) {
                Some(Content::File(bytes)) => outputs.push(Output { path, bytes }),
                Some(Content::Directory(entries)) => {
                    let below = |name: String| if path.is_empty() { name } else { format!("{path}/{name}") };
                    ahead.extend(entries.into_iter().map(|(name, inode)| (inode, below(name))));
                }
                None => {}
            }
        }
        outputs.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        outputs
    }
}

/// Whether `bytes` could be given that length. The length is within the limits; what may be lacking is the
/// machine's memory.
fn resize(bytes: &mut Vec<u8>, size: u64) -> bool {
    let Ok(size) = usize::try_from(size) else { return false };
    let more = size.saturating_sub(bytes.len());
    if bytes.try_reserve(more).is_err() {
        return false;
    }
    bytes.resize(size, 0);
    // What was cut is given back, but not each time, since that may copy what remains: so the tree takes at most
    // four times its limit.
    if size < bytes.capacity() / 4 {
        bytes.shrink_to_fit();
    }
    true
}

#[cfg(test)]
mod tests;
