//! Artefacts on disk, so that a program is compiled once.
//!
//! ```text
//! <root>/<client>/<key>.<sum>        key: hash of module and configuration; sum: hash of the artefact
//! ```
//!
//! An artefact is machine code that whoever wrote the module may have forged, by a hole in the compiler. So
//! it is run only in a jail and only for the client whose module it came from; one client never gets what was
//! compiled for another, be it of the same module.
//!
//! The sum is part of the name. What is on disk under a name either has that sum or is rotten, whatever a
//! crash or a disk did to it, so nothing here is synced: a torn artefact is compiled again. That is also why
//! it is hashed each time before it is handed out (some 15 ms for 60 MB).
//!
//! When the cache is full, the client who holds most loses what it used longest ago. So nobody's artefacts
//! are pushed out by another who stores much.
//!
//! **Invariant:** what is handed out had its sum when it was opened. Files are 0600, directories 0700.

use std::collections::{HashMap, HashSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use blake3::Hash;
use rustix::fs::StatVfsMountFlags;

use crate::engine;

/// Files that are being written are named so, until they are renamed or left behind by a crash.
const NEW: &str = "new-";

/// How often who waits for another's artefact looks whether to give up.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Whose artefacts.
pub type Client = [u8; 32];

/// Names an artefact: hash of the module and of the configuration that it is compiled under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// The key of what this build compiles `module` to.
    pub fn of(module: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 artefact key v1");
        hasher.update(&engine::configuration()).update(module);
        Self(hasher.finalize().into())
    }
}

/// A compiled program: an open file, which may be gone from the cache meanwhile.
#[derive(Debug)]
pub struct Artefact {
    file: File,
    len_bytes: u64,
}

impl Artefact {
    /// An artefact of our own program, that no cache keeps.
    pub(crate) fn new(file: File, len_bytes: u64) -> Self {
        Self { file, len_bytes }
    }

    /// Length.
    pub fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    /// The file opened once more, for reading. Whoever gets it cannot move the place at which others read.
    pub(crate) fn reopen(&self) -> io::Result<File> {
        File::open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }
}

/// What the cache has for a key.
#[derive(Debug)]
pub enum Found {
    /// The artefact.
    Artefact(Artefact),
    /// Nothing.
    Nothing,
    /// An artefact that changed on disk. It is removed; whoever owns the machine should know.
    Rotten,
}

/// Why the cache could not be opened or written.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Reading or writing failed.
    #[error("the cache of compiled programs, {path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Nothing can be run from there.
    #[error(
        "{0} is on a file system that is mounted noexec, so no compiled program can run from it; choose another place"
    )]
    NoExec(PathBuf),
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    sum: Hash,
    len_bytes: u64,
    used_at: SystemTime,
}

/// Artefacts on disk, within a budget. One process has it at a time.
pub struct Cache {
    root: PathBuf,
    max_bytes: u64,
    entries: Mutex<HashMap<(Client, Key), Entry>>,
    next_new: AtomicU64,
    turns: Mutex<HashSet<(Client, Key)>>,
    turn_ended: Condvar,
}

/// The right to make a client's artefact, which one has at a time. It ends when dropped.
pub(crate) struct Turn<'a> {
    cache: &'a Cache,
    name: (Client, Key),
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.cache.turns().remove(&self.name);
        self.cache.turn_ended.notify_all();
    }
}

/// An artefact that is being written. Dropped before it is kept, it is gone.
pub struct NewArtefact<'a> {
    cache: &'a Cache,
    client: Client,
    path: PathBuf,
    file: File,
    hasher: blake3::Hasher,
    is_kept: bool,
}

impl Cache {
    /// Opens or makes the cache at `root`, and removes what is beyond `max_bytes`.
    ///
    /// # Errors
    /// [`CacheError`] when the place cannot be used.
    pub fn open(root: &Path, max_bytes: u64) -> Result<Self, CacheError> {
        make_private(root)?;
        let mount = rustix::fs::statvfs(root).map_err(|e| disk(root)(e.into()))?;
        if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
            return Err(CacheError::NoExec(root.to_owned()));
        }
        let entries = Mutex::new(scan(root).map_err(disk(root))?);
        let cache = Self {
            root: root.to_owned(),
            max_bytes,
            entries,
            next_new: AtomicU64::new(0),
            turns: Mutex::default(),
            turn_ended: Condvar::new(),
        };
        cache.make_room(&mut cache.entries());
        Ok(cache)
    }

    /// Bytes of all artefacts.
    pub fn used_bytes(&self) -> u64 {
        self.entries().values().map(|entry| entry.len_bytes).sum()
    }

    /// What is there for a client's key, checked.
    ///
    /// # Errors
    /// [`CacheError::Disk`] when it is there and cannot be read.
    pub fn get(&self, client: &Client, key: Key) -> Result<Found, CacheError> {
        let Some(entry) = self.entries().get(&(*client, key)).copied() else { return Ok(Found::Nothing) };
        let path = self.path(client, key, entry.sum);
        let file = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.forget(client, key, entry.sum);
                return Ok(Found::Nothing);
            }
            opened => opened.map_err(disk(&path))?,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(disk(&path))?;
        if hasher.finalize() != entry.sum {
            self.forget(client, key, entry.sum);
            fs::remove_file(&path).map_err(disk(&path))?;
            return Ok(Found::Rotten);
        }
        self.touch(client, key, &file);
        Ok(Found::Artefact(Artefact { file, len_bytes: entry.len_bytes }))
    }

    /// Begins an artefact for `client`.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn begin(&self, client: &Client) -> Result<NewArtefact<'_>, CacheError> {
        let directory = self.directory(client);
        make_private(&directory)?;
        let path = directory.join(format!("{NEW}{}", self.next_new.fetch_add(1, Ordering::Relaxed)));
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(disk(&path))?;
        Ok(NewArtefact {
            cache: self,
            client: *client,
            path,
            file,
            hasher: blake3::Hasher::new(),
            is_kept: false,
        })
    }

    /// Waits until nobody else makes this artefact. `None` when `gives_up` says so first.
    pub(crate) fn turn(&self, client: &Client, key: Key, gives_up: impl Fn() -> bool) -> Option<Turn<'_>> {
        let name = (*client, key);
        let mut turns = self.turns();
        while !turns.insert(name) {
            if gives_up() {
                return None;
            }
            let waited = self.turn_ended.wait_timeout(turns, LOOK_EVERY);
            turns = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Turn { cache: self, name })
    }

    fn turns(&self) -> MutexGuard<'_, HashSet<(Client, Key)>> {
        self.turns.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<(Client, Key), Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn directory(&self, client: &Client) -> PathBuf {
        self.root.join(Hash::from_bytes(*client).to_hex().as_str())
    }

    fn path(&self, client: &Client, key: Key, sum: Hash) -> PathBuf {
        self.directory(client).join(format!("{}.{}", Hash::from_bytes(key.0).to_hex(), sum.to_hex()))
    }

    /// Remembers a use, on disk too, so that it outlives the process. A use that cannot be written there is
    /// soon forgotten, and no more.
    fn touch(&self, client: &Client, key: Key, file: &File) {
        let now = SystemTime::now();
        if let Some(entry) = self.entries().get_mut(&(*client, key)) {
            entry.used_at = now;
        }
        let _ = file.set_modified(now);
    }

    /// Drops an entry, unless it has become another one meanwhile.
    fn forget(&self, client: &Client, key: Key, sum: Hash) {
        let mut entries = self.entries();
        if entries.get(&(*client, key)).is_some_and(|entry| entry.sum == sum) {
            entries.remove(&(*client, key));
        }
    }

    /// Removes artefacts until the rest is within the budget. A file that cannot be removed is found again at
    /// the next start.
    fn make_room(&self, entries: &mut HashMap<(Client, Key), Entry>) {
        while let Some((client, key)) = victim(entries, self.max_bytes) {
            if let Some(entry) = entries.remove(&(client, key)) {
                let _ = fs::remove_file(self.path(&client, key, entry.sum));
            }
        }
    }
}

impl Write for NewArtefact<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = self.file.write(bytes)?;
        self.hasher.update(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl NewArtefact<'_> {
    /// Keeps what was written under `key`, in place of what was there, and makes room for it.
    ///
    /// # Errors
    /// [`CacheError::Disk`].
    pub fn keep(mut self, key: Key) -> Result<Artefact, CacheError> {
        let sum = self.hasher.finalize();
        let path = self.cache.path(&self.client, key, sum);
        let file = File::open(&self.path).map_err(disk(&self.path))?;
        let len_bytes = file.metadata().map_err(disk(&self.path))?.len();
        let mut entries = self.cache.entries();
        fs::rename(&self.path, &path).map_err(disk(&path))?;
        self.is_kept = true;
        let entry = Entry { sum, len_bytes, used_at: SystemTime::now() };
        if let Some(old) = entries.insert((self.client, key), entry)
            && old.sum != sum
        {
            let _ = fs::remove_file(self.cache.path(&self.client, key, old.sum));
        }
        self.cache.make_room(&mut entries);
        Ok(Artefact { file, len_bytes })
    }
}

impl Drop for NewArtefact<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_file(&self.path); // Else the next start removes it.
        }
    }
}

/// What has to go first, if all together is beyond the budget.
fn victim(entries: &HashMap<(Client, Key), Entry>, max_bytes: u64) -> Option<(Client, Key)> {
    let mut held: HashMap<&Client, u64> = HashMap::new();
    for ((client, _), entry) in entries {
        *held.entry(client).or_default() += entry.len_bytes;
    }
    if held.values().sum::<u64>() <= max_bytes {
        return None;
    }
    let (biggest, _) = held.into_iter().max_by_key(|(client, bytes)| (*bytes, **client))?;
    let theirs = entries.iter().filter(|((client, _), _)| client == biggest);
    theirs.min_by_key(|(_, entry)| entry.used_at).map(|(name, _)| *name)
}

/// Finds what an earlier process left, and removes what it did not finish.
fn scan(root: &Path) -> io::Result<HashMap<(Client, Key), Entry>> {
    let mut entries = HashMap::new();
    for directory in fs::read_dir(root)? {
        let directory = directory?;
        let Some(client) = hash_in(directory.file_name().to_str()) else { continue };
        for file in fs::read_dir(directory.path())? {
            let file = file?;
            let name = file.file_name();
            let name = name.to_str().unwrap_or_default();
            if name.starts_with(NEW) {
                fs::remove_file(file.path())?;
            } else if let Some((key, sum)) = name.split_once('.')
                && let (Some(key), Some(sum)) = (hash_in(Some(key)), hash_in(Some(sum)))
            {
                let metadata = file.metadata()?;
                let entry = Entry { sum, len_bytes: metadata.len(), used_at: metadata.modified()? };
                let replaced = entries.insert((*client.as_bytes(), Key(*key.as_bytes())), entry);
                if let Some(other) = replaced {
                    // Only a crash between keeping one and removing the other leaves two. Either would do.
                    fs::remove_file(directory.path().join(format!("{key}.{}", other.sum)))?;
                }
            }
        }
    }
    Ok(entries)
}

fn hash_in(name: Option<&str>) -> Option<Hash> {
    Hash::from_hex(name?).ok()
}

fn make_private(directory: &Path) -> Result<(), CacheError> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(disk(directory))
}

fn disk(path: &Path) -> impl FnOnce(io::Error) -> CacheError {
    let path = path.to_owned();
    |source| CacheError::Disk { path, source }
}
