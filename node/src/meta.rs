//! The node's one RocksDB: metadata only, shards are files.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `shards` | owner, root | [`ShardRecord`](crate::shards::ShardRecord) of a durable shard |
//! | `pending` | file name | a shard file that may exist without a record, after a crash |
//! | `index` | account, seq | a client's signed index entry, kept for its recovery |
//! | `blobs` | name | this client's blobs |
//! | `puts` | name, or name and segment | this client's unfinished uploads |
//! | `fresh` | owner, root | a stored shard that no head covers |
//! | `rot` | owner, root | that a shard was found to have rotted |
//! | `deals` | side, deal | a deal, as this node keeps it as its client or its provider |
//! | `sets` | deal, root | the shards under a deal's newest head, with their lengths |
//! | `anchored` | deal, root, head's number | the shards under heads that the ledger has, with their lengths |
//! | `standings` | node | what this client holds against a provider |
//! | `evidence` | name | evidence against providers |
//! | `notices` | deal | what a client says of its audits, at its provider |
//! | `jobs` | side, job | a job, as this node keeps it as its client or its provider |
//! | `ledger` | key | an entry of the ledger's state |
//! | `blocks` | height | a block of the ledger |
//! | `state` | name | counters, the network, known asks, this client's own log |
//!
//! Writes that are acknowledged to somebody are synced ([`Meta::commit`]); progress notes are not ([`Meta::note`]): they
//! survive a killed process, and losing one in a power cut costs repeated work only.
//!
//! Damage is caught before anything is read from it: RocksDB checks what it reads, and [`guard`] what RocksDB would pass over.

pub mod guard;

use std::path::{Path, PathBuf};
use std::sync::RwLock;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBRecoveryMode, Direction, IteratorMode, Options,
    WriteBatch, WriteOptions,
};
use serde::{Serialize, de::DeserializeOwned};
use spare_proofs::encode::{from_bytes, to_bytes};

/// A column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Table {
    Shards,
    Pending,
    Index,
    Blobs,
    Puts,
    Fresh,
    Rot,
    Deals,
    Sets,
    Anchored,
    Standings,
    Evidence,
    Notices,
    Jobs,
    Ledger,
    Blocks,
    State,
}

impl Table {
    const ALL: [Self; 17] = [
        Self::Shards,
        Self::Pending,
        Self::Index,
        Self::Blobs,
        Self::Puts,
        Self::Fresh,
        Self::Rot,
        Self::Deals,
        Self::Sets,
        Self::Anchored,
        Self::Standings,
        Self::Evidence,
        Self::Notices,
        Self::Jobs,
        Self::Ledger,
        Self::Blocks,
        Self::State,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Shards => "shards",
            Self::Pending => "pending",
            Self::Index => "index",
            Self::Blobs => "blobs",
            Self::Puts => "puts",
            Self::Fresh => "fresh",
            Self::Rot => "rot",
            Self::Deals => "deals",
            Self::Sets => "sets",
            Self::Anchored => "anchored",
            Self::Standings => "standings",
            Self::Evidence => "evidence",
            Self::Notices => "notices",
            Self::Jobs => "jobs",
            Self::Ledger => "ledger",
            Self::Blocks => "blocks",
            Self::State => "state",
        }
    }
}

/// Longest stored record that is decoded.
const RECORD_MAX_BYTES: usize = 128 << 20;

/// What to do about a damaged store.
const ADVICE: &str = "Nothing was changed. Check the disk, and put the folder back from a copy that was made while this node did not run. Without one, set up a node anew in another folder with --seed-file: a client gets everything back by `spare recover`, a provider begins anew";

/// The metadata store failed or holds something that does not decode.
#[derive(Debug, thiserror::Error)]
pub enum MetaError {
    /// The store cannot be opened.
    #[error("the metadata store in {path} cannot be opened: {error}. {ADVICE}")]
    Open {
        /// Its folder.
        path: PathBuf,
        /// Why.
        error: rocksdb::Error,
    },
    /// A file of the store is damaged.
    #[error("the metadata store cannot be used: {0}. {ADVICE}")]
    Guard(#[from] guard::GuardError),
    /// The store is closed, since the node stops.
    #[error("the node stops")]
    Closed,
    /// RocksDB failed.
    #[error("the metadata store failed: {0}{more}", more = if is_damage(.0) { DAMAGED } else { "" })]
    Store(#[from] rocksdb::Error),
    /// A record does not decode: the files were damaged, or written by a newer version.
    #[error("a record in table {table} does not decode; was it written by a newer version? ({error})")]
    Record {
        /// Which table.
        table: &'static str,
        /// Why.
        error: spare_proofs::encode::DecodeError,
    },
}

/// What is added to an error that RocksDB words, when it is about damage.
const DAMAGED: &str = ". A file of the store is damaged. Check the disk, and put the store's folder back from a copy that was made while this node did not run";

fn is_damage(error: &rocksdb::Error) -> bool {
    error.kind() == rocksdb::ErrorKind::Corruption
}

/// The open metadata store.
pub struct Meta {
    db: DB,
    dir: PathBuf,
    /// Whether nothing may be written any more. Read by whoever writes, for as long as that takes.
    closed: RwLock<bool>,
}

/// Writes that take effect together.
#[derive(Default)]
pub struct Batch(Vec<Change>);

enum Change {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
    Add(Table, Vec<u8>, i64),
}

impl Batch {
    /// Whether nothing is to be written.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Sets a record.
    pub fn put<T: Serialize>(&mut self, table: Table, key: &[u8], value: &T) -> &mut Self {
        self.0.push(Change::Put(table, key.to_vec(), to_bytes(value)));
        self
    }

    /// Removes a record.
    pub fn delete(&mut self, table: Table, key: &[u8]) -> &mut Self {
        self.0.push(Change::Delete(table, key.to_vec()));
        self
    }

    /// Adds to a counter, which is 8 bytes little endian.
    pub fn add(&mut self, table: Table, key: &[u8], delta: i64) -> &mut Self {
        self.0.push(Change::Add(table, key.to_vec(), delta));
        self
    }
}

fn counter(bytes: &[u8]) -> i64 {
    bytes.try_into().map_or(0, i64::from_le_bytes)
}

impl Meta {
    /// Opens the store in `dir`, which is made if it is missing.
    ///
    /// # Errors
    /// [`MetaError`], also when another process has it open.
    pub fn open(dir: &Path) -> Result<Self, MetaError> {
        guard::check_is_there(dir)?;
        guard::check_sum(dir)?;
        guard::check_logs(dir)?;
        let cache = Cache::new_lru_cache(4 << 20);
        let mut blocks = BlockBasedOptions::default();
        blocks.set_block_cache(&cache);
        blocks.set_bloom_filter(10.0, false);
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_max_open_files(64);
        options.set_keep_log_file_num(2);
        options.set_max_log_file_size(1 << 20);
        options.set_max_total_wal_size(16 << 20);
        options.set_max_background_jobs(2);
        options.set_paranoid_checks(true);
        // A log that was torn by a crash is taken up to there, and nothing after it. What else a damaged log can be, `guard` looks at.
        options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
        options.set_track_and_verify_wals_in_manifest(true);
        options.set_stats_dump_period_sec(0);
        let tables = Table::ALL.map(|table| {
            let mut options = Options::default();
            options.set_write_buffer_size(2 << 20);
            options.set_block_based_table_factory(&blocks);
            options.set_merge_operator_associative("add", |_, old, deltas| {
                let sum = deltas.iter().fold(old.map_or(0, counter), |sum, d| sum.wrapping_add(counter(d)));
                Some(sum.to_le_bytes().to_vec())
            });
            ColumnFamilyDescriptor::new(table.name(), options)
        });
        let opened = DB::open_cf_descriptors(&options, dir, tables);
        let db = opened.map_err(|error| MetaError::Open { path: dir.to_owned(), error })?;
        Ok(Self { db, dir: dir.to_owned(), closed: RwLock::new(false) })
    }

    /// Closes the store in good order: nothing can be written any more, and damage to its files will be noticed. Blocks.
    ///
    /// # Errors
    /// [`MetaError`]; the store is closed all the same.
    pub fn close(&self) -> Result<(), MetaError> {
        let mut closed = self.closed.write().expect("no holder panics");
        if std::mem::replace(&mut *closed, true) {
            return Ok(());
        }
        self.db.cancel_all_background_work(true);
        self.db.flush_wal(true)?;
        Ok(guard::leave_sum(&self.dir)?)
    }

    fn table(&self, table: Table) -> &rocksdb::ColumnFamily {
        self.db.cf_handle(table.name()).expect("all tables are made on opening")
    }

    fn write(&self, batch: &Batch, sync: bool) -> Result<(), MetaError> {
        let closed = self.closed.read().expect("no holder panics");
        if *closed {
            return Err(MetaError::Closed);
        }
        // What others write meanwhile comes before or after all of this batch.
        let synced_up_to = self.db.latest_sequence_number() + batch.0.len() as u64;
        let mut writes = WriteBatch::default();
        for change in &batch.0 {
            match change {
                Change::Put(table, key, value) => writes.put_cf(self.table(*table), key, value),
                Change::Delete(table, key) => writes.delete_cf(self.table(*table), key),
                Change::Add(table, key, delta) => {
                    writes.merge_cf(self.table(*table), key, delta.to_le_bytes())
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        self.db.write_opt(writes, &options)?;
        if sync {
            let state = self.table(Table::State);
            self.db.put_cf(state, guard::SEAL_KEY, synced_up_to.to_le_bytes())?;
        }
        Ok(())
    }

    /// Writes a batch and returns once it is durable.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    pub fn commit(&self, batch: &Batch) -> Result<(), MetaError> {
        self.write(batch, true)
    }

    /// Writes a batch that survives this process, but perhaps not a power cut.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    pub fn note(&self, batch: &Batch) -> Result<(), MetaError> {
        self.write(batch, false)
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn get<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<T>, MetaError> {
        self.db.get_cf(self.table(table), key)?.map(|bytes| decode(table, &bytes)).transpose()
    }

    /// Whether there is a record.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    pub fn has(&self, table: Table, key: &[u8]) -> Result<bool, MetaError> {
        Ok(self.db.get_pinned_cf(self.table(table), key)?.is_some())
    }

    /// Reads a counter; one that was never added to is 0.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    pub fn counter(&self, table: Table, key: &[u8]) -> Result<i64, MetaError> {
        Ok(self.db.get_cf(self.table(table), key)?.map_or(0, |bytes| counter(&bytes)))
    }

    /// Calls `visit` with the rest of the key and the record for each key that starts with `prefix`, in order, until it says stop.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn scan<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        visit: impl FnMut(&[u8], T) -> std::ops::ControlFlow<()>,
    ) -> Result<(), MetaError> {
        self.scan_from(table, prefix, None, visit)
    }

    /// As [`Self::scan`], but only from key `start` on.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn scan_from<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
        start: Option<&[u8]>,
        mut visit: impl FnMut(&[u8], T) -> std::ops::ControlFlow<()>,
    ) -> Result<(), MetaError> {
        let start = IteratorMode::From(start.unwrap_or(prefix), Direction::Forward);
        for item in self.db.iterator_cf(self.table(table), start) {
            let (key, value) = item?;
            let Some(rest) = key.strip_prefix(prefix) else { break };
            if visit(rest, decode(table, &value)?).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// The store as it is now, whatever is written later.
    pub fn freeze(&self) -> Frozen<'_> {
        Frozen { meta: self, snapshot: self.db.snapshot() }
    }

    /// Calls `visit` with each key of a table, in order.
    ///
    /// # Errors
    /// [`MetaError::Store`].
    pub fn keys(&self, table: Table, mut visit: impl FnMut(&[u8])) -> Result<(), MetaError> {
        for item in self.db.iterator_cf(self.table(table), IteratorMode::Start) {
            visit(&item?.0);
        }
        Ok(())
    }

    /// All records whose key starts with `prefix`, with the rest of their keys.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn all<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        prefix: &[u8],
    ) -> Result<Vec<(Vec<u8>, T)>, MetaError> {
        let mut records = Vec::new();
        self.scan(table, prefix, |key, value| {
            records.push((key.to_vec(), value));
            std::ops::ControlFlow::Continue(())
        })?;
        Ok(records)
    }
}

/// The store as it was at one moment. Old records are kept for as long as it lives.
pub struct Frozen<'a> {
    meta: &'a Meta,
    snapshot: rocksdb::Snapshot<'a>,
}

impl Frozen<'_> {
    /// Reads a record.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn get<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        key: &[u8],
    ) -> Result<Option<T>, MetaError> {
        self.snapshot.get_cf(self.meta.table(table), key)?.map(|bytes| decode(table, &bytes)).transpose()
    }

    /// Calls `visit` with each key and record of a table, in order, until it says stop.
    ///
    /// # Errors
    /// [`MetaError`].
    pub fn scan<T: Serialize + DeserializeOwned>(
        &self,
        table: Table,
        mut visit: impl FnMut(&[u8], T) -> std::ops::ControlFlow<()>,
    ) -> Result<(), MetaError> {
        for item in self.snapshot.iterator_cf(self.meta.table(table), IteratorMode::Start) {
            let (key, value) = item?;
            if visit(&key, decode(table, &value)?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn decode<T: Serialize + DeserializeOwned>(table: Table, bytes: &[u8]) -> Result<T, MetaError> {
    from_bytes(bytes, RECORD_MAX_BYTES).map_err(|error| MetaError::Record { table: table.name(), error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_counters_and_scans_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        {
            let meta = Meta::open(dir.path()).unwrap();
            let mut batch = Batch::default();
            batch.put(Table::Blobs, b"a/1", &1u64).put(Table::Blobs, b"a/2", &2u64).put(
                Table::Blobs,
                b"b",
                &3u64,
            );
            batch.add(Table::State, b"used", 10).add(Table::State, b"used", -3);
            meta.commit(&batch).unwrap();
            assert!(Meta::open(dir.path()).is_err(), "one process at a time");
        }
        let meta = Meta::open(dir.path()).unwrap();
        assert_eq!(meta.get::<u64>(Table::Blobs, b"b").unwrap(), Some(3));
        assert_eq!(meta.counter(Table::State, b"used").unwrap(), 7);
        assert_eq!(meta.counter(Table::State, b"none").unwrap(), 0);
        assert_eq!(meta.all::<u64>(Table::Blobs, b"a/").unwrap(), [(b"1".to_vec(), 1), (b"2".to_vec(), 2)]);
        assert!(matches!(meta.get::<String>(Table::Blobs, b"b"), Err(MetaError::Record { .. })));
    }
}
