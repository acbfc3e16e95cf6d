//! Copies of index logs: this client's own, and those that a provider keeps for its clients.
//!
//! Both are the same thing under an account's key. A copy runs gaplessly from its base; what an entry with a new base replaces
//! is deleted in the write that adds it.

use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use spare_market::index::{IndexEntry, IndexError, LogEnd};
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, Signed, SignedBytes};

use crate::limits::{INDEX_ENTRIES_MAX, INDEX_MAX_BYTES, INDEX_ROOM_MIN_BYTES, INDEX_ROOM_PERCENT};
use crate::meta::{Batch, Meta, MetaError, Table};

/// The end of a copy and what it takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct CopyEnd {
    end: LogEnd,
    bytes: u64,
}

/// Why an entry was not appended.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// It does not extend the log.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The log would exceed its bounds; a compacted entry is due.
    #[error("the index log of this account is full; it must be compacted")]
    Full,
    /// The logs of all accounts together would exceed their room.
    #[error("this provider has no room for more index logs")]
    NoRoom,
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// Index logs by account.
pub struct IndexLogs {
    meta: Arc<Meta>,
    /// The account of this node, whose log is not counted.
    own: PublicKey,
    /// Most bytes of all other logs together.
    room_bytes: u64,
    /// Serialises appending, so that an end is read and written as one step.
    appending: Mutex<()>,
}

/// Counts the bytes of all logs but this node's own.
const TOTAL_KEY: &[u8] = b"index log bytes";

fn end_key(account: &PublicKey) -> Vec<u8> {
    [b"index end ", &account.to_bytes()[..]].concat()
}

fn entry_key(account: &PublicKey, seq: u64) -> Vec<u8> {
    [&account.to_bytes()[..], &seq.to_be_bytes()].concat()
}

impl IndexLogs {
    /// The logs in `meta`, at a node of account `own` that offers `offered_bytes` of storage.
    pub fn new(meta: Arc<Meta>, own: PublicKey, offered_bytes: u64) -> Self {
        let room_bytes = (offered_bytes / 100 * INDEX_ROOM_PERCENT).max(INDEX_ROOM_MIN_BYTES);
        Self { meta, own, room_bytes, appending: Mutex::new(()) }
    }

    fn copy_end(&self, account: &PublicKey) -> Result<CopyEnd, MetaError> {
        Ok(self.meta.get(Table::State, &end_key(account))?.unwrap_or_default())
    }

    /// Where the log of `account` ends.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn end(&self, account: &PublicKey) -> Result<LogEnd, MetaError> {
        Ok(self.copy_end(account)?.end)
    }

    /// Appends a checked entry in one synced write, together with `also`.
    ///
    /// # Errors
    /// [`AppendError`].
    pub fn append(
        &self,
        account: &PublicKey,
        entry: &Signed<IndexEntry>,
        mut also: Batch,
    ) -> Result<LogEnd, AppendError> {
        let _one_at_a_time = self.appending.lock().expect("no holder panics");
        let old = self.copy_end(account)?;
        let IndexEntry::V1(v1) = entry.value();
        let end = old.end.extend(v1, &entry.raw().bytes)?;
        if end == old.end {
            return Ok(end);
        }
        let mut bytes = old.bytes + entry.raw().bytes.len() as u64;
        if end.base != old.end.base && old.end.base > 0 {
            bytes = entry.raw().bytes.len() as u64;
            for replaced in old.end.base..=old.end.seq {
                also.delete(Table::Index, &entry_key(account, replaced));
            }
        }
        if end.seq - end.base >= INDEX_ENTRIES_MAX || bytes > INDEX_MAX_BYTES {
            return Err(AppendError::Full);
        }
        if *account != self.own {
            let total = self.meta.counter(Table::State, TOTAL_KEY)?.max(0) as u64;
            if bytes > old.bytes && total + (bytes - old.bytes) > self.room_bytes {
                return Err(AppendError::NoRoom);
            }
            also.add(Table::State, TOTAL_KEY, bytes as i64 - old.bytes as i64);
        }
        also.put(Table::Index, &entry_key(account, end.seq), entry.raw());
        self.meta.commit(also.put(Table::State, &end_key(account), &CopyEnd { end, bytes }))?;
        Ok(end)
    }

    /// Replaces the log of this node's own `account` by `entries`, which end in `end`, in one synced write, together with `also`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn replace(
        &self,
        account: &PublicKey,
        entries: &[Signed<IndexEntry>],
        end: LogEnd,
        mut also: Batch,
    ) -> Result<(), MetaError> {
        let _one_at_a_time = self.appending.lock().expect("no holder panics");
        let old = self.copy_end(account)?.end;
        for seq in old.base..=old.seq {
            also.delete(Table::Index, &entry_key(account, seq));
        }
        for entry in entries {
            let IndexEntry::V1(v1) = entry.value();
            also.put(Table::Index, &entry_key(account, v1.seq), entry.raw());
        }
        let bytes = entries.iter().map(|entry| entry.raw().bytes.len() as u64).sum();
        self.meta.commit(also.put(Table::State, &end_key(account), &CopyEnd { end, bytes }))
    }

    /// Entry `seq` of the log of `account`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn read(&self, account: &PublicKey, seq: u64) -> Result<Option<SignedBytes>, MetaError> {
        self.meta.get(Table::Index, &entry_key(account, seq))
    }

    /// Entry `seq` of the log of `account`, checked.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn read_checked(
        &self,
        account: &PublicKey,
        seq: u64,
        network: NetworkId,
    ) -> Result<Option<Signed<IndexEntry>>, MetaError> {
        Ok(self.read(account, seq)?.and_then(|raw| raw.check(network).ok()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_market::index::IndexEntryV1;
    use spare_market::keys::Seed;

    const HOME: NetworkId = NetworkId([1; 32]);

    fn entry(seq: u64, base: u64, previous: [u8; 32]) -> Signed<IndexEntry> {
        let entry = IndexEntryV1 { seq, base, previous, body: vec![0; 10] };
        Signed::new(IndexEntry::V1(entry), HOME, &Seed::from_entropy([1; 32]).account_key())
    }

    #[test]
    fn a_new_base_replaces_what_came_before() {
        let dir = tempfile::tempdir().unwrap();
        let account = Seed::from_entropy([1; 32]).account_key().public();
        let logs = IndexLogs::new(Arc::new(Meta::open(dir.path()).unwrap()), account, 0);
        let mut end = LogEnd::default();
        for seq in 1..=3 {
            end = logs.append(&account, &entry(seq, 1, end.hash), Batch::default()).unwrap();
        }
        assert!(logs.read(&account, 1).unwrap().is_some());
        assert!(matches!(
            logs.append(&account, &entry(2, 1, [0; 32]), Batch::default()),
            Err(AppendError::Index(_))
        ));
        end = logs.append(&account, &entry(4, 4, end.hash), Batch::default()).unwrap();
        assert_eq!((end.seq, end.base), (4, 4));
        assert!(logs.read(&account, 3).unwrap().is_none(), "replaced entries give their room back");
        assert!(logs.read_checked(&account, 4, HOME).unwrap().is_some());
        assert_eq!(logs.end(&account).unwrap(), end);
    }

    #[test]
    fn all_accounts_together_get_a_bounded_room() {
        let dir = tempfile::tempdir().unwrap();
        let own = Seed::from_entropy([0; 32]).account_key().public();
        let logs = IndexLogs::new(Arc::new(Meta::open(dir.path()).unwrap()), own, 0);
        let long = |seq| {
            let entry = IndexEntryV1 { seq, base: seq, previous: [0; 32], body: vec![0; 8 << 20] };
            Signed::new(IndexEntry::V1(entry), HOME, &Seed::from_entropy([1; 32]).account_key())
        };
        let account = |tag: u8| PublicKey::Ed25519([tag; 32]);
        let fit = (INDEX_ROOM_MIN_BYTES / (8 << 20)) as u8 - 1;
        for tag in 1..=fit {
            logs.append(&account(tag), &long(1), Batch::default()).unwrap();
        }
        assert!(matches!(logs.append(&account(99), &long(1), Batch::default()), Err(AppendError::NoRoom)));
        logs.append(&account(1), &long(5), Batch::default()).unwrap();
        logs.append(&own, &long(1), Batch::default()).unwrap();
    }
}
