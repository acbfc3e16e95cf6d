//! Shards on disk: one file each, durable before they are promised.
//!
//! ```text
//! VOLUME/id                      names the volume; the metadata store knows it, too
//! VOLUME/incoming/<number>       a shard under way; emptied at start
//! VOLUME/shards/ab/<root>.<owner>   stored bytes, then the tree's group hashes (32 bytes per 16 KiB)
//! ```
//!
//! Storing: reserve room -> write and hash -> fsync the file -> note the name as pending -> rename -> fsync the folder
//! -> one metadata write that adds the record and the used room and clears the note. A crash leaves either a complete
//! record, or a file that the next start removes by its note; files are never walked. That write is not synced: a shard counts as placed only
//! once a head covers it, and the head's write, which is, comes after it in the same log. Until then it is *fresh*, and can go away again.
//!
//! **Rot** is noted by whoever reads it, and refused from then on: [`rot`].
//!
//! **Used room** is what `du` counts for the volume: allocated blocks of files and folders, not lengths.

mod incoming;
pub mod rot;

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_proofs::tree::{GROUP_BYTES, Root, Tree};

use crate::direct_io::{BUFFER_BYTES, BufferPool, DirectReader, Filled};
use crate::limits::DISK_MARGIN_BYTES;
use crate::meta::{Batch, Meta, MetaError, Table};

pub use incoming::Incoming;
pub use rot::{Rot, Rotten};

/// Unit of `st_blocks`, whatever the file system's own block size (POSIX leaves it open, Linux fixes it).
const STAT_BLOCK_BYTES: u64 = 512;
/// Unit in which a reservation is rounded up.
const DISK_BLOCK_BYTES: u64 = 4096;
const USED_KEY: &[u8] = b"shard file bytes";
const VOLUME_ID_KEY: &[u8] = b"volume id";

/// What is kept about a durable shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ShardRecord {
    /// The first version.
    V1 {
        /// Length of the stored bytes.
        shard_bytes: u64,
        /// Disk that its file takes.
        disk_bytes: u64,
        /// Unix time in seconds of the receipt.
        stored_s: u64,
    },
}

/// A stored shard that no head covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fresh {
    /// The first version.
    V1 {
        /// Unix time in seconds since when; 0 for one that a head removed.
        since_s: u64,
        /// Its length.
        shard_bytes: u64,
    },
}

/// Why a shard could not be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// The offer or the disk is full.
    #[error("no room for {needed_bytes} bytes: {free_bytes} are free")]
    NoRoom {
        /// Bytes needed.
        needed_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
    },
    /// No such shard of this owner.
    #[error("the shard is not here")]
    NotHere,
    /// The file is shorter than its record says, or its bytes are not the shard's.
    #[error("the shard's file is damaged: {0}")]
    Damaged(String),
    /// The shard was found to have rotted before.
    #[error("the shard is lost or damaged on the disk: {0}")]
    Rotten(String),
    /// The folder is not the one that the records are about.
    #[error(
        "it is not the folder that this node kept its shards in: {0}. Is its disk mounted, and is provide.dir right? To start over with an empty folder, set up a new node"
    )]
    OtherVolume(&'static str),
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Io(#[from] io::Error),
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// A folder of shards with a bound on the room it may take.
pub struct Volume {
    dir: PathBuf,
    meta: Arc<Meta>,
    offered_bytes: u64,
    /// Disk taken by shard files.
    used_bytes: AtomicU64,
    /// Disk promised to shards under way.
    reserved_bytes: AtomicU64,
    /// Disk taken by each of the 256 folders, by `stat`.
    folder_bytes: Vec<AtomicU64>,
    /// Disk taken by the folders above them.
    top_bytes: u64,
    next_incoming: AtomicU64,
    /// One for each of the 256 folders: shards of a folder are committed and deleted one at a time.
    changing: Vec<Mutex<()>>,
    buffers: Arc<BufferPool>,
}

/// How full a volume is. Bytes of disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes on offer.
    pub offered_bytes: u64,
    /// Bytes taken, as `du` counts.
    pub used_bytes: u64,
    /// Bytes that can still be promised.
    pub free_bytes: u64,
    /// Bytes that the disk has left.
    pub disk_bytes: u64,
}

fn disk_bytes(metadata: &fs::Metadata) -> u64 {
    metadata.blocks() * STAT_BLOCK_BYTES
}

fn stat_bytes(path: &Path) -> io::Result<u64> {
    Ok(disk_bytes(&fs::metadata(path)?))
}

const VOLUME_ID_FILE: &str = "id";

/// Checks that the folder and the metadata store belong together, so that a disk that is not mounted is not taken for an empty one. A
/// folder and a store that are both new are tied.
fn check_volume_id(dir: &Path, meta: &Meta) -> Result<(), ShardError> {
    let file = dir.join(VOLUME_ID_FILE);
    // What is not text is no id that any node made.
    let there = match fs::read(&file) {
        Ok(text) => Some(String::from_utf8_lossy(&text).trim().to_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    let known: Option<String> = meta.get(Table::State, VOLUME_ID_KEY)?;
    match (there, known) {
        (Some(there), Some(known)) if there == known => Ok(()),
        (Some(_), Some(_)) => {
            Err(ShardError::OtherVolume("another node's shards are in it, or its file named id is damaged"))
        }
        (None, Some(_)) => Err(ShardError::OtherVolume("it has no file named id")),
        // Cut short between the two.
        (Some(there), None) if !dir.join("shards").exists() => {
            Ok(meta.commit(Batch::default().put(Table::State, VOLUME_ID_KEY, &there))?)
        }
        (Some(_), None) => Err(ShardError::OtherVolume("it belongs to a node, and this one is new")),
        (None, None) => {
            fs::create_dir_all(dir)?;
            let id = blake3::Hash::from_bytes(rand::random()).to_hex().to_string();
            fs::write(&file, format!("{id}\n"))?;
            File::open(&file)?.sync_all()?;
            Ok(meta.commit(Batch::default().put(Table::State, VOLUME_ID_KEY, &id))?)
        }
    }
}

/// Removes a file so that it stays away, also after a power cut.
fn remove_durably(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    File::open(path.parent().expect("a file lies in a folder"))?.sync_all()
}

/// The key of a shard in the tables `shards` and `fresh`.
pub fn shard_key(owner: &PublicKey, root: &Root) -> Vec<u8> {
    [&owner.to_bytes()[..], root.as_bytes()].concat()
}

fn file_name(owner: &PublicKey, root: &Root) -> String {
    format!("{:02x}/{root}.{}", root.as_bytes()[0], &owner.to_string()[..16])
}

impl Volume {
    /// Opens the volume in `dir`, making it if it is missing, and finishes what a crash left.
    ///
    /// # Errors
    /// [`ShardError`] when the disk or the metadata store fails.
    pub fn open(dir: &Path, meta: Arc<Meta>, offered_bytes: u64) -> Result<Self, ShardError> {
        let incoming = dir.join("incoming");
        check_volume_id(dir, &meta)?;
        fs::create_dir_all(&incoming)?;
        for left_over in fs::read_dir(&incoming)? {
            fs::remove_file(left_over?.path())?;
        }
        let shards = dir.join("shards");
        let mut folder_bytes = Vec::with_capacity(256);
        for byte in 0..=255u8 {
            let folder = shards.join(format!("{byte:02x}"));
            fs::create_dir_all(&folder)?;
            folder_bytes.push(AtomicU64::new(stat_bytes(&folder)?));
        }
        for folder in [&shards, dir] {
            File::open(folder)?.sync_all()?;
        }
        let top_bytes = stat_bytes(dir)?
            + stat_bytes(&incoming)?
            + stat_bytes(&shards)?
            + stat_bytes(&dir.join(VOLUME_ID_FILE))?;
        for (name, shard_key) in meta.all::<Vec<u8>>(Table::Pending, b"")? {
            if meta.get::<ShardRecord>(Table::Shards, &shard_key)?.is_none() {
                let path = shards.join(String::from_utf8_lossy(&name).as_ref());
                match remove_durably(&path) {
                    Ok(()) => {
                        tracing::info!(path = %path.display(), "removed a shard file that a crash left without a record")
                    }
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
            meta.note(Batch::default().delete(Table::Pending, &name))?;
        }
        let used_bytes = AtomicU64::new(meta.counter(Table::State, USED_KEY)?.max(0) as u64);
        let volume = Self {
            dir: dir.to_owned(),
            meta,
            offered_bytes,
            used_bytes,
            reserved_bytes: AtomicU64::new(0),
            folder_bytes,
            top_bytes,
            next_incoming: AtomicU64::new(0),
            changing: (0..256).map(|_| Mutex::default()).collect(),
            buffers: Arc::default(),
        };
        Ok(volume)
    }

    /// Whether there is a volume that belongs to this metadata store.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn is_known_to(meta: &Meta) -> Result<bool, MetaError> {
        Ok(meta.get::<String>(Table::State, VOLUME_ID_KEY)?.is_some())
    }

    /// Held while a shard with this root is committed or deleted, so that what is on record, on disk and counted stays one.
    fn change(&self, root: &Root) -> MutexGuard<'_, ()> {
        self.changing[usize::from(root.as_bytes()[0])].lock().expect("no holder panics")
    }

    /// How full the volume is. Free room is bounded by the offer and by the disk, whichever is less.
    pub fn room(&self) -> Room {
        let folders: u64 = self.folder_bytes.iter().map(|b| b.load(Ordering::Relaxed)).sum();
        let used_bytes = self.used_bytes.load(Ordering::Relaxed) + folders + self.top_bytes;
        let reserved = self.reserved_bytes.load(Ordering::Relaxed);
        let on_offer = self.offered_bytes.saturating_sub(used_bytes).saturating_sub(reserved);
        let disk_bytes = rustix::fs::statvfs(&self.dir).map_or(0, |s| s.f_bavail * s.f_frsize);
        let on_disk = disk_bytes.saturating_sub(DISK_MARGIN_BYTES).saturating_sub(reserved);
        Room { offered_bytes: self.offered_bytes, used_bytes, free_bytes: on_offer.min(on_disk), disk_bytes }
    }

    /// The shard `root` of `owner`, opened, or [`ShardError::NotHere`].
    ///
    /// # Errors
    /// [`ShardError`]; `Damaged` when the file does not fit its record, `Rotten` when that is known from before.
    pub fn open_shard(self: &Arc<Self>, owner: &PublicKey, root: &Root) -> Result<OpenShard, ShardError> {
        match self.rot(owner, root)? {
            Some(Rot::V1 { why, .. }) => Err(ShardError::Rotten(why)),
            None => self.open_to_check(owner, root),
        }
    }

    /// The record of the shard `root` of `owner`, if it is here and not known to have rotted.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn record(&self, owner: &PublicKey, root: &Root) -> Result<Option<ShardRecord>, MetaError> {
        let key = shard_key(owner, root);
        if self.meta.has(Table::Rot, &key)? { Ok(None) } else { self.meta.get(Table::Shards, &key) }
    }

    /// The shard on record after the one with this key, in order of keys.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn next_shard(&self, after: &[u8]) -> Result<Option<(Vec<u8>, ShardRecord)>, MetaError> {
        let mut next = None;
        let start = (!after.is_empty()).then(|| [after, &[0]].concat());
        self.meta.scan_from::<ShardRecord>(Table::Shards, b"", start.as_deref(), |key, record| {
            next = Some((key.to_vec(), record));
            std::ops::ControlFlow::Break(())
        })?;
        Ok(next)
    }

    /// Deletes a shard that no head covers, if that is so since unix time `until_s` or longer. Returns the disk given back, 0 when there is
    /// no such shard.
    ///
    /// # Errors
    /// When the disk or the metadata store fails.
    pub fn delete(&self, owner: &PublicKey, root: &Root, until_s: u64) -> Result<u64, ShardError> {
        let _one_at_a_time = self.change(root);
        let key = shard_key(owner, root);
        match self.meta.get::<Fresh>(Table::Fresh, &key)? {
            Some(Fresh::V1 { since_s, .. }) if since_s <= until_s => {}
            _ => return Ok(0),
        }
        let Some(ShardRecord::V1 { disk_bytes, .. }) = self.meta.get(Table::Shards, &key)? else {
            self.meta.note(Batch::default().delete(Table::Fresh, &key))?;
            return Ok(0);
        };
        let name = file_name(owner, root);
        let mut batch = Batch::default();
        batch.delete(Table::Shards, &key).delete(Table::Fresh, &key);
        self.heal(&key, &mut batch)?;
        batch.put(Table::Pending, name.as_bytes(), &key);
        self.meta.commit(batch.add(Table::State, USED_KEY, -(disk_bytes as i64)))?;
        match remove_durably(&self.path(owner, root)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        self.used_bytes.fetch_sub(disk_bytes, Ordering::Relaxed);
        self.meta.note(Batch::default().delete(Table::Pending, name.as_bytes()))?;
        Ok(disk_bytes)
    }

    fn path(&self, owner: &PublicKey, root: &Root) -> PathBuf {
        self.dir.join("shards").join(file_name(owner, root))
    }
}

fn read_tree(file: &DirectReader, shard_bytes: u64, root: Root) -> Result<Tree, ShardError> {
    let damaged = |e: &dyn std::fmt::Display| ShardError::Damaged(e.to_string());
    if shard_bytes <= GROUP_BYTES as u64 {
        return Tree::single(shard_bytes, root).map_err(|e| damaged(&e));
    }
    let len = shard_bytes.div_ceil(GROUP_BYTES as u64) as usize * 32;
    let hashes = file.read(shard_bytes, len).map_err(rot::damaged)?;
    let groups = hashes.as_ref().as_chunks::<32>().0.to_vec();
    let tree = Tree::from_groups(shard_bytes, groups).map_err(|e| damaged(&e))?;
    if tree.root() == root {
        Ok(tree)
    } else {
        Err(ShardError::Damaged("the stored hashes have rotted".into()))
    }
}

/// Most bytes of a shard that are read at once.
pub const READ_MAX_BYTES: usize = BUFFER_BYTES;

/// A shard open for reading.
pub struct OpenShard {
    file: DirectReader,
    tree: Tree,
    volume: Arc<Volume>,
    owner: PublicKey,
    record: ShardRecord,
}

impl OpenShard {
    /// The shard's tree, whose hashes were checked against its root.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Reads the groups in `range`, whose start is a group's, and checks them, so that rot is never served. Returns their bytes and each
    /// one's hash. Blocks.
    ///
    /// # Errors
    /// [`ShardError::Damaged`] when the file's bytes are not the shard's. That is noted.
    ///
    /// # Panics
    /// When the range is longer than [`READ_MAX_BYTES`].
    pub fn read_groups(&self, range: Range<u64>) -> Result<(Filled, Vec<[u8; 32]>), ShardError> {
        self.read_checked(range).inspect_err(|error| {
            self.volume.note_if_rot(&self.owner, &self.tree.root(), &self.record, error);
        })
    }

    fn read_checked(&self, range: Range<u64>) -> Result<(Filled, Vec<[u8; 32]>), ShardError> {
        let len = (range.end - range.start) as usize;
        assert!(len <= READ_MAX_BYTES, "a read fits a buffer");
        let bytes = self.file.read(range.start, len).map_err(rot::damaged)?;
        let offsets = range.step_by(GROUP_BYTES);
        let verify = |(offset, group): (u64, &[u8])| {
            self.tree.verify_group(offset, group).map_err(|e| ShardError::Damaged(e.to_string()))
        };
        let hashes = offsets.zip(bytes.as_ref().chunks(GROUP_BYTES)).map(verify).collect::<Result<_, _>>()?;
        Ok((bytes, hashes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: PublicKey = PublicKey::Ed25519([1; 32]);

    struct Fixture {
        dir: tempfile::TempDir,
        volume: Arc<Volume>,
    }

    fn open(dir: &Path, offered_bytes: u64) -> Arc<Volume> {
        let meta = Arc::new(Meta::open(&dir.join("meta")).unwrap());
        Arc::new(Volume::open(&dir.join("volume"), meta, offered_bytes).unwrap())
    }

    fn fixture(offered_bytes: u64) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let volume = open(dir.path(), offered_bytes);
        Fixture { dir, volume }
    }

    fn store(volume: &Arc<Volume>, bytes: &[u8]) -> Result<Root, ShardError> {
        let mut incoming = volume.begin(bytes.len() as u64)?;
        let mut left = bytes;
        while !left.is_empty() {
            let space = incoming.space();
            let len = space.len();
            space.copy_from_slice(&left[..len]);
            left = &left[len..];
            incoming.advance(len)?;
        }
        incoming.commit(&OWNER, 7).map(|(root, _)| root)
    }

    fn du(dir: &Path) -> u64 {
        let out = std::process::Command::new("du").args(["-s", "-B1"]).arg(dir).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    #[test]
    fn shards_survive_reopening_and_used_room_is_what_du_says() {
        let Fixture { dir, volume } = fixture(1 << 30);
        let shards: Vec<Vec<u8>> =
            [1, 100, 16384, 16385, 300_000].iter().map(|n| vec![*n as u8; *n]).collect();
        let roots: Vec<Root> = shards.iter().map(|s| store(&volume, s).unwrap()).collect();
        assert_eq!(roots[4], Root::of(&shards[4]));
        assert_eq!(volume.room().used_bytes, du(&dir.path().join("volume")));
        volume.delete(&OWNER, &roots[3], u64::MAX).unwrap();
        assert!(matches!(volume.open_shard(&OWNER, &roots[3]), Err(ShardError::NotHere)));
        drop(volume);
        let volume = open(dir.path(), 1 << 30);
        assert_eq!(volume.room().used_bytes, du(&dir.path().join("volume")), "after a delete and a restart");
        let shard = volume.open_shard(&OWNER, &roots[4]).unwrap();
        let start = GROUP_BYTES as u64;
        let (bytes, hashes) = shard.read_groups(start..300_000).unwrap();
        assert!(bytes.as_ref() == &shards[4][GROUP_BYTES..]);
        assert_eq!(hashes.len(), 300_000usize.div_ceil(GROUP_BYTES) - 1);
        let last = shard.read_groups(18 * start..300_000).unwrap().0;
        assert!(last.as_ref() == &shards[4][18 * GROUP_BYTES..]);
        assert!(matches!(
            volume.open_shard(&PublicKey::Ed25519([2; 32]), &roots[4]),
            Err(ShardError::NotHere)
        ));
    }

    #[test]
    fn the_offer_is_never_exceeded_and_an_abandoned_shard_gives_its_room_back() {
        let Fixture { dir: _dir, volume } = fixture(4 << 20);
        let first = volume.begin(2 << 20).unwrap();
        assert!(matches!(volume.begin(2 << 20), Err(ShardError::NoRoom { .. })), "reserved room counts");
        drop(first);
        store(&volume, &vec![1; 2 << 20]).unwrap();
        assert!(matches!(store(&volume, &vec![2; 2 << 20]), Err(ShardError::NoRoom { .. })));
        assert_eq!(fs::read_dir(volume.dir.join("incoming")).unwrap().count(), 0);
    }

    #[test]
    fn many_at_once_leave_what_du_says() {
        let Fixture { dir, volume } = fixture(1 << 30);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for i in 0..40u32 {
                        let bytes = (i % 3).to_le_bytes();
                        let root = store(&volume, &bytes).unwrap();
                        // Whoever stored it last may find it deleted by another thread, but never half of it.
                        match volume.open_shard(&OWNER, &root) {
                            Ok(_) | Err(ShardError::NotHere) => {}
                            Err(error) => panic!("{error}"),
                        }
                        volume.delete(&OWNER, &root, u64::MAX).unwrap();
                    }
                });
            }
        });
        assert_eq!(volume.used_bytes.load(Ordering::Relaxed), 0);
        drop(volume);
        assert_eq!(open(dir.path(), 1 << 30).used_bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_volume_that_is_not_there_is_noticed() {
        let Fixture { dir, volume } = fixture(1 << 30);
        store(&volume, b"shard").unwrap();
        drop(volume);
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).unwrap());
        let elsewhere = Volume::open(&dir.path().join("mount-point"), meta.clone(), 1 << 30);
        assert!(matches!(elsewhere, Err(ShardError::OtherVolume(_))));
        let other = Arc::new(Meta::open(&dir.path().join("other")).unwrap());
        let stolen = Volume::open(&dir.path().join("volume"), other, 1 << 30);
        assert!(matches!(stolen, Err(ShardError::OtherVolume(_))));
        Volume::open(&dir.path().join("volume"), meta, 1 << 30).unwrap();
    }

    #[test]
    fn storing_twice_keeps_one() {
        let Fixture { dir: _dir, volume } = fixture(1 << 30);
        let root = store(&volume, b"same").unwrap();
        let used = volume.room().used_bytes;
        assert_eq!(store(&volume, b"same").unwrap(), root);
        assert_eq!(volume.room().used_bytes, used);
    }

    #[test]
    fn a_crash_before_the_record_leaves_nothing() {
        let Fixture { dir, volume } = fixture(1 << 30);
        let root = Root::of(b"orphan");
        let name = file_name(&OWNER, &root);
        volume
            .meta
            .note(Batch::default().put(Table::Pending, name.as_bytes(), &shard_key(&OWNER, &root)))
            .unwrap();
        let path = volume.path(&OWNER, &root);
        fs::write(&path, b"orphan").unwrap();
        fs::write(volume.dir.join("incoming/9"), b"half").unwrap();
        drop(volume);
        let volume = open(dir.path(), 1 << 30);
        assert!(!path.exists());
        assert_eq!(volume.room().used_bytes, du(&dir.path().join("volume")));
    }

    #[test]
    fn every_flipped_bit_is_caught_before_it_is_served() {
        let Fixture { dir: _dir, volume } = fixture(1 << 30);
        let bytes = vec![3; 40_000];
        let root = store(&volume, &bytes).unwrap();
        let path = volume.path(&OWNER, &root);
        let good = fs::read(&path).unwrap();
        for position in [0, 20_000, 39_999, 40_000, good.len() - 1] {
            let mut bad = good.clone();
            bad[position] ^= 1;
            fs::write(&path, &bad).unwrap();
            let served =
                volume.open_to_check(&OWNER, &root).and_then(|shard| shard.read_groups(0..40_000).map(drop));
            assert!(matches!(served, Err(ShardError::Damaged(_))), "bit at {position}");
        }
        fs::write(&path, &good[..100]).unwrap();
        assert!(matches!(volume.open_to_check(&OWNER, &root), Err(ShardError::Damaged(_))), "cut short");
    }

    #[test]
    fn rot_is_remembered_refused_and_healed_by_storing_again() {
        let Fixture { dir, volume } = fixture(1 << 30);
        let bytes = vec![3; 40_000];
        let root = store(&volume, &bytes).unwrap();
        store(&volume, b"another").unwrap();
        let used = volume.room().used_bytes;
        let path = volume.path(&OWNER, &root);
        let good = fs::read(&path).unwrap();
        let flip = |at: usize| {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
        };
        flip(20_000);
        let shard = volume.open_shard(&OWNER, &root).unwrap();
        shard.read_groups(0..GROUP_BYTES as u64).unwrap();
        assert_eq!(volume.rotten_shards().unwrap(), 0, "the groups that were read are good");
        assert!(matches!(shard.read_groups(0..40_000), Err(ShardError::Damaged(_))));
        drop(shard);
        // Also after a restart, and whatever is asked for.
        drop(volume);
        let volume = open(dir.path(), 1 << 30);
        assert!(matches!(volume.open_shard(&OWNER, &root), Err(ShardError::Rotten(_))));
        assert!(volume.record(&OWNER, &root).unwrap().is_none(), "it does not count as held");
        let rotten = volume.rotten(None, 10).unwrap();
        assert_eq!((rotten.len(), rotten[0].root, volume.rotten_shards().unwrap()), (1, root, 1));
        assert!(volume.rotten(Some(&shard_key(&OWNER, &root)), 10).unwrap().is_empty());
        // Storing again replaces the file.
        assert_eq!(store(&volume, &bytes).unwrap(), root);
        let whole = volume.open_shard(&OWNER, &root).unwrap().read_groups(0..40_000).unwrap();
        assert!(whole.0.as_ref() == bytes);
        assert_eq!((volume.rotten_shards().unwrap(), volume.room().used_bytes), (0, used));
        // One that is whole after all, for instance once a cable is fixed, is forgotten by whoever checks it.
        flip(39_999);
        assert!(volume.open_shard(&OWNER, &root).unwrap().read_groups(0..40_000).is_err());
        fs::write(&path, &good).unwrap();
        volume.open_to_check(&OWNER, &root).unwrap().read_groups(0..40_000).unwrap();
        volume.note_whole(&OWNER, &root).unwrap();
        volume.open_shard(&OWNER, &root).unwrap();
        // Storing again puts back what nobody has missed yet, too.
        fs::remove_file(&path).unwrap();
        assert_eq!(store(&volume, &bytes).unwrap(), root);
        volume.open_shard(&OWNER, &root).unwrap().read_groups(0..40_000).unwrap();
        assert_eq!(volume.room().used_bytes, used);
        // A deleted shard's rot goes with it.
        flip(0);
        assert!(volume.open_shard(&OWNER, &root).unwrap().read_groups(0..40_000).is_err());
        assert!(volume.delete(&OWNER, &root, u64::MAX).unwrap() > 0);
        assert_eq!(volume.rotten_shards().unwrap(), 0);
        // A disk that is gone is not rot.
        let root = store(&volume, b"third").unwrap();
        fs::rename(volume.dir.join("id"), volume.dir.join("elsewhere")).unwrap();
        fs::remove_file(volume.path(&OWNER, &root)).unwrap();
        assert!(matches!(volume.open_shard(&OWNER, &root), Err(ShardError::Damaged(_))));
        assert_eq!(volume.rotten_shards().unwrap(), 0);
    }
}
