//! A shard on its way to the disk: room is promised to it, its bytes are hashed as they are written, and it is put on record once it is durable.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use spare_market::keys::PublicKey;
use spare_proofs::tree::{GROUP_BYTES, Root, TreeHasher};

use super::{
    DISK_BLOCK_BYTES, Fresh, ShardError, ShardRecord, USED_KEY, Volume, disk_bytes, file_name, shard_key,
};
use crate::direct_io::DirectWriter;
use crate::limits::DISK_MARGIN_BYTES;
use crate::meta::{Batch, Table};

impl Volume {
    /// Reserves room for a shard and opens a file for it.
    ///
    /// # Errors
    /// [`ShardError::NoRoom`], or the disk failed.
    pub fn begin(self: &Arc<Self>, shard_bytes: u64) -> Result<Incoming, ShardError> {
        let hashes_bytes = shard_bytes.div_ceil(GROUP_BYTES as u64) * 32;
        let needed_bytes = (shard_bytes + hashes_bytes).next_multiple_of(DISK_BLOCK_BYTES);
        self.reserved_bytes.fetch_add(needed_bytes, Ordering::Relaxed);
        let reservation = Reservation { volume: self.clone(), bytes: needed_bytes };
        if self.is_overdrawn() {
            drop(reservation);
            return Err(ShardError::NoRoom { needed_bytes, free_bytes: self.room().free_bytes });
        }
        let number = self.next_incoming.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join("incoming").join(number.to_string());
        let file = DirectWriter::create_new(&path, &self.buffers)?;
        Ok(Incoming {
            file,
            path: TemporaryPath(path),
            hasher: TreeHasher::new(),
            shard_bytes,
            written_bytes: 0,
            reservation,
        })
    }

    /// Whether reservations exceed the offer or the disk.
    fn is_overdrawn(&self) -> bool {
        let room = self.room();
        let reserved = self.reserved_bytes.load(Ordering::Relaxed);
        room.used_bytes + reserved > self.offered_bytes || reserved + DISK_MARGIN_BYTES > room.disk_bytes
    }
}

/// Room promised to a shard under way, given back when dropped.
struct Reservation {
    volume: Arc<Volume>,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.volume.reserved_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A file that goes away when dropped, unless it was renamed.
struct TemporaryPath(PathBuf);

impl Drop for TemporaryPath {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove, and at the next start the folder is emptied anyway.
        let _ = fs::remove_file(&self.0);
    }
}

/// A full disk is lack of room, whatever else happens is a failure.
fn full_or(error: io::Error, needed_bytes: u64) -> ShardError {
    match error.kind() {
        io::ErrorKind::StorageFull => ShardError::NoRoom { needed_bytes, free_bytes: 0 },
        _ => ShardError::Io(error),
    }
}

/// A shard under way. Dropping it undoes everything.
pub struct Incoming {
    file: DirectWriter,
    path: TemporaryPath,
    hasher: TreeHasher,
    shard_bytes: u64,
    written_bytes: u64,
    reservation: Reservation,
}

impl Incoming {
    /// Where the shard's next bytes go; empty when it is whole.
    pub fn space(&mut self) -> &mut [u8] {
        let left = usize::try_from(self.shard_bytes - self.written_bytes).unwrap_or(usize::MAX);
        let space = self.file.space();
        let len = space.len().min(left);
        &mut space[..len]
    }

    /// Takes the first `len` bytes of [`Self::space`]. Blocks.
    ///
    /// # Errors
    /// When the disk fails; a full disk is [`ShardError::NoRoom`].
    pub fn advance(&mut self, len: usize) -> Result<(), ShardError> {
        self.hasher.update(&self.file.space()[..len]);
        self.written_bytes += len as u64;
        let written = self.file.advance(len);
        written.map_err(|e| full_or(e, self.reservation.bytes))
    }

    /// Makes the shard's file durable, puts it on record as fresh, and returns its root, and whether it was not here before. One that had rotted
    /// is healed. Blocks.
    ///
    /// # Errors
    /// When the disk or the metadata store fails. Nothing is on record then; a file that was renamed already is removed at the next start.
    ///
    /// # Panics
    /// When not all announced bytes were written.
    pub fn commit(mut self, owner: &PublicKey, now_s: u64) -> Result<(Root, bool), ShardError> {
        assert_eq!(self.written_bytes, self.shard_bytes, "a shard is written whole");
        let tree = std::mem::take(&mut self.hasher).finalize();
        let hashes: Vec<u8> = tree.groups().iter().flatten().copied().collect();
        let full_or = |e| full_or(e, self.reservation.bytes);
        self.file.write(&hashes).map_err(full_or)?;
        let file_disk_bytes = disk_bytes(&self.file.finish().map_err(full_or)?.metadata()?);
        let root = tree.root();
        let volume = self.reservation.volume.clone();
        let _one_at_a_time = volume.change(&root);
        let key = shard_key(owner, &root);
        let fresh = Fresh::V1 { since_s: now_s, shard_bytes: self.shard_bytes };
        if let Some(old) = volume.meta.get::<ShardRecord>(Table::Shards, &key)? {
            let mut batch = Batch::default();
            // One that is about to be deleted stays.
            if volume.meta.has(Table::Fresh, &key)? {
                batch.put(Table::Fresh, &key, &fresh);
            }
            // What is lost may not be known yet.
            if volume.heal(&key, &mut batch)? || volume.is_bad(owner, &root, &old) {
                self.replace(&volume, &root, owner, &old, file_disk_bytes, now_s, &mut batch)?;
            }
            if !batch.is_empty() {
                volume.meta.note(&batch)?;
            }
            return Ok((root, false));
        }
        let name = file_name(owner, &root);
        volume.meta.note(Batch::default().put(Table::Pending, name.as_bytes(), &key))?;
        let path = volume.path(owner, &root);
        fs::rename(&self.path.0, &path)?;
        let folder = File::open(path.parent().expect("a shard lies in a folder"))?;
        folder.sync_all()?;
        let record =
            ShardRecord::V1 { shard_bytes: self.shard_bytes, disk_bytes: file_disk_bytes, stored_s: now_s };
        let mut batch = Batch::default();
        batch.put(Table::Shards, &key, &record).put(Table::Fresh, &key, &fresh);
        batch.delete(Table::Pending, name.as_bytes());
        volume.meta.note(batch.add(Table::State, USED_KEY, file_disk_bytes as i64))?;
        volume.used_bytes.fetch_add(file_disk_bytes, Ordering::Relaxed);
        volume.folder_bytes[usize::from(root.as_bytes()[0])]
            .store(disk_bytes(&folder.metadata()?), Ordering::Relaxed);
        Ok((root, true))
    }

    /// Puts the file in the place of one that rotted. Should a power cut take the write that goes with it, the next check finds the shard whole.
    #[expect(clippy::too_many_arguments, reason = "one step of a commit, with what it has at hand")]
    fn replace(
        &self,
        volume: &Volume,
        root: &Root,
        owner: &PublicKey,
        old: &ShardRecord,
        disk_bytes: u64,
        stored_s: u64,
        batch: &mut Batch,
    ) -> Result<(), ShardError> {
        let path = volume.path(owner, root);
        fs::rename(&self.path.0, &path)?;
        File::open(path.parent().expect("a shard lies in a folder"))?.sync_all()?;
        let ShardRecord::V1 { disk_bytes: old_bytes, .. } = old;
        let record = ShardRecord::V1 { shard_bytes: self.shard_bytes, disk_bytes, stored_s };
        batch.put(Table::Shards, &shard_key(owner, root), &record);
        batch.add(Table::State, USED_KEY, disk_bytes as i64 - *old_bytes as i64);
        volume.used_bytes.fetch_add(disk_bytes, Ordering::Relaxed);
        volume.used_bytes.fetch_sub(*old_bytes, Ordering::Relaxed);
        Ok(())
    }
}
