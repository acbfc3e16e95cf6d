//! Materials: bytes that jobs need and bytes that come out of them, on disk, by owner and hash.
//!
//! ```text
//! DIR/<owner>/<hash>     the bytes
//! DIR/<owner>/.<number>  bytes under way; removed at start
//! ```
//!
//! **Goals.** Bounded room: what nobody needs at the moment goes first when there is none left, longest unused first. What one owner keeps no other owner
//! can read, or learn that it is there. What is read is what was named: a bit that flipped on disk makes it missing.
//! **Non-goals.** Surviving a power cut. All of it can be sent, or run, again.
//!
//! Everything here blocks.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use spare_market::job::{Material, Work};
use spare_market::keys::PublicKey;
use spare_proofs::tree::Root;

/// Why bytes cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    /// Everything that is there is needed, or its owner has its share.
    #[error(
        "{bytes} bytes for jobs do not fit into the {max_bytes} bytes there are for them, of which nobody gets more than half"
    )]
    NoRoom {
        /// What was to be kept.
        bytes: u64,
        /// The room in all.
        max_bytes: u64,
    },
    /// They are not here, or not any more.
    #[error("the bytes named {0} are not here")]
    NotHere(Root),
    /// They are not what they were named.
    #[error("the bytes are not those named {0}")]
    Other(Root),
    /// The disk failed.
    #[error("files of jobs cannot be used: {0}")]
    Io(#[from] io::Error),
}

/// Unit in which room is counted, so that many small files count, too.
const BLOCK_BYTES: u64 = 4096;

type Name = (PublicKey, Root);

struct Held {
    bytes: u64,
    /// When it was last used, by a count of uses.
    used: u64,
    /// Whoever needs it just now.
    pins: u32,
}

#[derive(Default)]
struct Inner {
    held: HashMap<Name, Held>,
    /// Room of files held, and of those under way, by owner.
    used_bytes: HashMap<PublicKey, u64>,
    uses: u64,
}

impl Inner {
    fn in_all(&self) -> u64 {
        self.used_bytes.values().sum()
    }

    fn of(&self, owner: &PublicKey) -> u64 {
        self.used_bytes.get(owner).copied().unwrap_or(0)
    }

    fn add(&mut self, owner: PublicKey, room_bytes: u64) {
        *self.used_bytes.entry(owner).or_default() += room_bytes;
    }

    fn give_back(&mut self, owner: &PublicKey, room_bytes: u64) {
        if let Some(used) = self.used_bytes.get_mut(owner) {
            *used = used.saturating_sub(room_bytes);
            if *used == 0 {
                self.used_bytes.remove(owner);
            }
        }
    }

    /// Files that nobody needs just now, longest unused first.
    fn idle(&self, is_meant: impl Fn(&PublicKey) -> bool) -> Vec<Name> {
        let idle = self.held.iter().filter(|(name, held)| held.pins == 0 && is_meant(&name.0));
        let mut idle: Vec<(u64, Name)> = idle.map(|(name, held)| (held.used, *name)).collect();
        idle.sort_unstable_by_key(|(used, _)| *used);
        idle.into_iter().map(|(_, name)| name).collect()
    }
}

/// Room that a file of `bytes` bytes takes: whole blocks of the disk, and at least one.
fn room_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES).max(1).saturating_mul(BLOCK_BYTES)
}

/// Bytes of jobs.
pub struct Materials {
    dir: PathBuf,
    max_bytes: u64,
    inner: Mutex<Inner>,
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn unhex(text: &std::ffi::OsStr) -> Option<[u8; 32]> {
    data_encoding::HEXLOWER.decode(text.as_encoded_bytes()).ok()?.try_into().ok()
}

impl Materials {
    /// What is in `dir`, which may hold `max_bytes`. What was under way is removed.
    ///
    /// # Errors
    /// When the folder cannot be used.
    pub fn open(dir: &Path, max_bytes: u64) -> Result<Self, MaterialError> {
        fs::create_dir_all(dir)?;
        let mut found: Vec<(std::time::SystemTime, Name, u64)> = Vec::new();
        for folder in fs::read_dir(dir)? {
            let folder = folder?;
            let Some(owner) = unhex(&folder.file_name()).map(PublicKey::Ed25519) else { continue };
            for file in fs::read_dir(folder.path())? {
                let file = file?;
                let metadata = file.metadata()?;
                match unhex(&file.file_name()) {
                    Some(root) => {
                        let name = (owner, Root::from_bytes(root));
                        found.push((metadata.modified()?, name, metadata.len()));
                    }
                    None => fs::remove_file(file.path())?,
                }
            }
        }
        found.sort_unstable_by_key(|(modified, ..)| *modified);
        let mut inner = Inner::default();
        for (_, name, bytes) in found {
            inner.uses += 1;
            inner.add(name.0, room_of(bytes));
            let used = inner.uses;
            inner.held.insert(name, Held { bytes, used, pins: 0 });
        }
        Ok(Self { dir: dir.to_owned(), max_bytes, inner: Mutex::new(inner) })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    fn folder(&self, owner: &PublicKey) -> PathBuf {
        self.dir.join(hex(owner.key_bytes()))
    }

    fn path(&self, owner: &PublicKey, root: &Root) -> PathBuf {
        self.folder(owner).join(hex(root.as_bytes()))
    }

    /// Room of what is kept and under way.
    #[cfg(test)]
    fn used_bytes(&self) -> u64 {
        self.inner().in_all()
    }

    /// Whether `owner` keeps these bytes here.
    pub fn has(&self, owner: &PublicKey, material: &Material) -> bool {
        let mut inner = self.inner();
        inner.uses += 1;
        let uses = inner.uses;
        let held = inner.held.get_mut(&(*owner, material.root));
        held.is_some_and(|held| {
            held.used = uses;
            held.bytes == material.bytes
        })
    }

    /// Makes room for a file of `owner`, and counts it as used: of the owner's own files first, if it has its share.
    fn reserve(&self, owner: PublicKey, bytes: u64) -> Result<(), MaterialError> {
        let (room_bytes, share_bytes) = (room_of(bytes), self.max_bytes / 2);
        let mut inner = self.inner();
        let none = || MaterialError::NoRoom { bytes, max_bytes: self.max_bytes };
        if room_bytes > share_bytes {
            return Err(none());
        }
        let over_share = |inner: &Inner| inner.of(&owner) + room_bytes > share_bytes;
        let over_all = |inner: &Inner| inner.in_all() + room_bytes > self.max_bytes;
        if over_share(&inner) {
            for name in inner.idle(|of| *of == owner) {
                if !over_share(&inner) {
                    break;
                }
                self.forget(&mut inner, &name);
            }
        }
        if over_all(&inner) {
            for name in inner.idle(|_| true) {
                if !over_all(&inner) {
                    break;
                }
                self.forget(&mut inner, &name);
            }
        }
        if over_share(&inner) || over_all(&inner) {
            return Err(none());
        }
        inner.add(owner, room_bytes);
        Ok(())
    }

    fn forget(&self, inner: &mut Inner, name: &Name) {
        if let Some(held) = inner.held.remove(name) {
            inner.give_back(&name.0, room_of(held.bytes));
            match fs::remove_file(self.path(&name.0, &name.1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(%error, "a file of a job could not be removed");
                }
                _ => {}
            }
        }
    }

    /// Begins to take bytes for `owner`.
    ///
    /// # Errors
    /// [`MaterialError::NoRoom`], or the disk failed.
    pub fn begin(self: &Arc<Self>, owner: PublicKey, material: Material) -> Result<Incoming, MaterialError> {
        self.reserve(owner, material.bytes)?;
        let number: u64 = rand::random();
        let path = self.folder(&owner).join(format!(".{number:016x}"));
        // From here on the room is given back when it is dropped.
        let mut incoming = Incoming {
            materials: self.clone(),
            owner,
            material,
            path,
            file: None,
            hasher: blake3::Hasher::new(),
            is_kept: false,
        };
        fs::create_dir_all(self.folder(&owner))?;
        incoming.file = Some(File::create(&incoming.path)?);
        Ok(incoming)
    }

    /// Keeps bytes for `owner`.
    ///
    /// # Errors
    /// [`MaterialError::NoRoom`], or the disk failed.
    pub fn put(self: &Arc<Self>, owner: PublicKey, bytes: &[u8]) -> Result<Material, MaterialError> {
        let material = Material::of(bytes);
        if !self.has(&owner, &material) {
            let mut incoming = self.begin(owner, material)?;
            incoming.write(bytes)?;
            incoming.keep()?;
        }
        Ok(material)
    }

    /// The bytes named by `material`.
    ///
    /// # Errors
    /// [`MaterialError`]; what is wrong on disk is forgotten.
    pub fn read(&self, owner: &PublicKey, material: &Material) -> Result<Vec<u8>, MaterialError> {
        if !self.has(owner, material) {
            return Err(MaterialError::NotHere(material.root));
        }
        let mut bytes = Vec::new();
        self.file(owner, material)?.read_to_end(&mut bytes)?;
        if Material::of(&bytes) != *material {
            tracing::error!(root = %material.root, "a file of a job changed on disk");
            self.forget(&mut self.inner(), &(*owner, material.root));
            return Err(MaterialError::NotHere(material.root));
        }
        Ok(bytes)
    }

    /// The file of the bytes named by `material`, unchecked: whoever gets them compares.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn file(&self, owner: &PublicKey, material: &Material) -> Result<File, MaterialError> {
        if !self.has(owner, material) {
            return Err(MaterialError::NotHere(material.root));
        }
        match File::open(self.path(owner, &material.root)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.forget(&mut self.inner(), &(*owner, material.root));
                Err(MaterialError::NotHere(material.root))
            }
            opened => Ok(opened?),
        }
    }

    /// All bytes that `work` needs.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn gather(&self, owner: &PublicKey, work: &Work) -> Result<crate::work::Materials, MaterialError> {
        let read = |material| self.read(owner, material);
        Ok(crate::work::Materials {
            module: read(&work.module)?,
            stdin: work.stdin.as_ref().map(read).transpose()?.unwrap_or_default(),
            inputs: work.inputs.iter().map(|(_, material)| read(material)).collect::<Result<_, _>>()?,
        })
    }

    /// Keeps bytes from being dropped for as long as what is returned lives. Those that are not here are passed over.
    pub fn pin(self: &Arc<Self>, owner: PublicKey, materials: impl IntoIterator<Item = Material>) -> Pins {
        let mut inner = self.inner();
        let mut names = Vec::new();
        for material in materials {
            if let Some(held) = inner.held.get_mut(&(owner, material.root)) {
                held.pins += 1;
                names.push((owner, material.root));
            }
        }
        drop(inner);
        Pins { materials: self.clone(), names }
    }
}

/// Bytes under way.
pub struct Incoming {
    materials: Arc<Materials>,
    owner: PublicKey,
    material: Material,
    path: PathBuf,
    file: Option<File>,
    hasher: blake3::Hasher,
    is_kept: bool,
}

impl Incoming {
    /// Takes the next bytes.
    ///
    /// # Errors
    /// When the disk fails, or they are more than was announced.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), MaterialError> {
        self.hasher.update(bytes);
        if self.hasher.count() > self.material.bytes {
            return Err(MaterialError::Other(self.material.root));
        }
        Ok(self.file.as_mut().expect("open until it is kept").write_all(bytes)?)
    }

    /// Keeps what was written, if it is what was named.
    ///
    /// # Errors
    /// [`MaterialError::Other`] if it is not, or the disk failed.
    pub fn keep(mut self) -> Result<(), MaterialError> {
        let Material { root, bytes } = self.material;
        if self.hasher.count() != bytes || *self.hasher.finalize().as_bytes() != *root.as_bytes() {
            return Err(MaterialError::Other(root));
        }
        drop(self.file.take());
        let mut inner = self.materials.inner();
        fs::rename(&self.path, self.materials.path(&self.owner, &root))?;
        self.is_kept = true;
        inner.uses += 1;
        let used = inner.uses;
        // Two may have brought it at once, or what was there was cut short.
        let before = inner.held.remove(&(self.owner, root));
        if let Some(before) = &before {
            inner.give_back(&self.owner, room_of(before.bytes));
        }
        let pins = before.map_or(0, |before| before.pins);
        inner.held.insert((self.owner, root), Held { bytes, used, pins });
        Ok(())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if !self.is_kept {
            self.materials.inner().give_back(&self.owner, room_of(self.material.bytes));
            // It may not even have been made.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Keeps bytes from being dropped.
pub struct Pins {
    materials: Arc<Materials>,
    names: Vec<Name>,
}

impl Drop for Pins {
    fn drop(&mut self) {
        let mut inner = self.materials.inner();
        for name in &self.names {
            if let Some(held) = inner.held.get_mut(name) {
                // What had rotted was forgotten, and is another one since.
                held.pins = held.pins.saturating_sub(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANN: PublicKey = PublicKey::Ed25519([1; 32]);
    const BOB: PublicKey = PublicKey::Ed25519([2; 32]);

    fn open(dir: &Path) -> Arc<Materials> {
        Arc::new(Materials::open(dir, 8 * BLOCK_BYTES).unwrap())
    }

    #[test]
    fn bytes_are_their_owners_and_what_they_were_named() {
        let dir = tempfile::tempdir().unwrap();
        let materials = open(dir.path());
        let material = materials.put(ANN, b"bytes").unwrap();
        assert_eq!(materials.read(&ANN, &material).unwrap(), b"bytes");
        assert!(!materials.has(&BOB, &material));
        assert!(matches!(materials.read(&BOB, &material), Err(MaterialError::NotHere(_))));
        let mut wrong = materials.begin(BOB, material).unwrap();
        wrong.write(b"other").unwrap();
        assert!(matches!(wrong.keep(), Err(MaterialError::Other(_))));
        let mut long = materials.begin(BOB, material).unwrap();
        assert!(matches!(long.write(b"too long"), Err(MaterialError::Other(_))));
        drop(long);
        assert_eq!(materials.used_bytes(), BLOCK_BYTES);
        assert_eq!(fs::read_dir(materials.folder(&BOB)).unwrap().count(), 0, "what failed is gone");
        let pins = materials.pin(ANN, [material]);
        fs::write(materials.path(&ANN, &material.root), b"rotte").unwrap();
        assert!(matches!(materials.read(&ANN, &material), Err(MaterialError::NotHere(_))));
        assert_eq!((materials.has(&ANN, &material), materials.used_bytes()), (false, 0));
        materials.put(ANN, b"bytes").unwrap();
        drop(pins);
        // Cut short by a power cut, it can be brought again.
        fs::write(materials.path(&ANN, &material.root), b"by").unwrap();
        drop(materials);
        let materials = open(dir.path());
        assert!(!materials.has(&ANN, &material));
        materials.put(ANN, b"bytes").unwrap();
        assert_eq!(materials.read(&ANN, &material).unwrap(), b"bytes");
        fs::remove_file(materials.path(&ANN, &material.root)).unwrap();
        assert!(matches!(materials.read(&ANN, &material), Err(MaterialError::NotHere(_))));
        assert_eq!(materials.used_bytes(), 0);
    }

    #[test]
    fn what_is_needed_stays_and_the_rest_goes_longest_unused_first() {
        let dir = tempfile::tempdir().unwrap();
        let materials = open(dir.path());
        let [a, b, c, d] = [1, 2, 3, 4].map(|tag| materials.put(ANN, &[tag; 30]).unwrap());
        let pins = materials.pin(ANN, [a]);
        assert!(materials.has(&ANN, &b), "used just now");
        // Nobody gets more than half: its own go first.
        let e = materials.put(ANN, &[5; 30]).unwrap();
        assert_eq!([a, b, c, d, e].map(|m| materials.has(&ANN, &m)), [true, true, false, true, true]);
        let of_bob = materials.put(BOB, &vec![6; 4 * BLOCK_BYTES as usize]).unwrap();
        assert_eq!(materials.used_bytes(), 8 * BLOCK_BYTES);
        let carl = PublicKey::Ed25519([3; 32]);
        materials.put(carl, &[7; 1]).unwrap();
        assert!(!materials.has(&ANN, &b) && materials.has(&BOB, &of_bob), "the longest unused of all");
        let all = [
            materials.pin(ANN, [a, d, e]),
            materials.pin(BOB, [of_bob]),
            materials.pin(carl, [Material::of(&[7])]),
        ];
        assert!(matches!(materials.put(carl, &[8; 1]), Err(MaterialError::NoRoom { .. })));
        assert!(matches!(materials.put(BOB, &[8; 1]), Err(MaterialError::NoRoom { .. })));
        let too_much = vec![9; 4 * BLOCK_BYTES as usize + 1];
        assert!(matches!(materials.put(carl, &too_much), Err(MaterialError::NoRoom { .. })));
        drop((pins, all));
        materials.put(carl, &[8; 1]).unwrap();
        drop(materials);
        fs::write(dir.path().join(hex(ANN.key_bytes())).join(".0"), b"under way").unwrap();
        let materials = open(dir.path());
        assert_eq!(
            fs::read_dir(materials.folder(&ANN))
                .unwrap()
                .filter(|f| f.as_ref().unwrap().file_name() == ".0")
                .count(),
            0
        );
        assert!(materials.has(&carl, &Material::of(&[8])));
    }
}
