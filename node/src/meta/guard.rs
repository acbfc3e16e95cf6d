//! Guards against a metadata store whose files were damaged while it was closed.
//!
//! RocksDB checks every block that it reads from its tables, but not everything else:
//!
//! - A damaged record of the write-ahead log looks like one that a crash cut short. What comes after it is dropped without a word, and with it signatures that
//!   were given: a head's number could be signed twice. So each synced write is followed by a *seal*, a small record that is not synced and says up to which
//!   sequence number the log was. Damage with a seal behind it that covers it is damage, and the store is not opened. Damage without one is the torn end
//!   that a power cut leaves, and what it held was acknowledged to nobody.
//! - The last record of the manifest, the list of tables, has nothing behind it. So a store that is closed in good order leaves a *sum* beside its folder: the
//!   hashes of the files that list and log. The next start compares them and removes the sum.
//!
//! **Non-goals.** Damage made with intent: whoever can write here can write anything.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Key of the seal; long enough to be looked for in a log.
pub(super) const SEAL_KEY: &[u8] = b"synced up to this sequence number";
/// A log is made of blocks of this length (RocksDB, `log_format.h`).
const BLOCK_BYTES: usize = 32 << 10;
/// A record begins with its masked CRC-32C, its length and its type.
const HEADER_BYTES: usize = 7;
/// Added to a rotated CRC, so that a record's CRC is not that of its content.
const MASK_DELTA: u32 = 0xa282_ead8;
/// A batch begins with the sequence number of its first entry and their count.
const BATCH_HEADER_BYTES: usize = 12;
/// Most bytes from the start of a seal's record to its key: record header, batch header, tag, column family, length of the key.
const SEAL_OFFSET_MAX: usize = HEADER_BYTES + BATCH_HEADER_BYTES + 8;
const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

/// What is wrong with a store's files.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// A file is not what it was.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> GuardError {
    let path = path.to_owned();
    move |error| GuardError::Io { path, error }
}

/// Whether the record at `at` is whole, and its type and content.
fn record(log: &[u8], at: usize) -> Option<(u8, &[u8])> {
    let header = log.get(at..at + HEADER_BYTES)?;
    let crc = u32::from_le_bytes(header[..4].try_into().ok()?);
    let len = usize::from(u16::from_le_bytes(header[4..6].try_into().ok()?));
    let block_left = BLOCK_BYTES - at % BLOCK_BYTES;
    if HEADER_BYTES + len > block_left {
        return None;
    }
    let covered = log.get(at + 6..at + HEADER_BYTES + len)?;
    let masked = crc32c::crc32c(covered).rotate_right(15).wrapping_add(MASK_DELTA);
    (masked == crc).then(|| (covered[0], &covered[1..]))
}

/// A place in a log from which on it is not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Damage {
    offset: usize,
    /// At least the sequence number of the batch that is damaged there.
    sequence: u64,
}

/// The first damage in a log, if there is any.
fn first_damage(log: &[u8]) -> Option<Damage> {
    let (mut at, mut sequence) = (0, 0);
    // The head of a batch whose record spans blocks, and where that record began.
    let mut begun: Option<(usize, Vec<u8>)> = None;
    while at < log.len() {
        let block_left = BLOCK_BYTES - at % BLOCK_BYTES;
        if block_left < HEADER_BYTES {
            at += block_left;
            continue;
        }
        let start = begun.as_ref().map_or(at, |(start, _)| *start);
        let Some((kind, content)) = record(log, at) else {
            // A file is made longer before it is written: zeros up to the end are no damage.
            let is_unwritten = begun.is_none() && log[at..].iter().all(|byte| *byte == 0);
            return (!is_unwritten).then_some(Damage { offset: start, sequence });
        };
        let mut batch = None;
        match (kind, &mut begun) {
            (FULL, None) => batch = Some(content.to_vec()),
            (FIRST, None) => begun = Some((at, content.to_vec())),
            (MIDDLE, Some((_, head))) => head.extend_from_slice(content),
            (LAST, Some((_, head))) => {
                head.extend_from_slice(content);
                batch = begun.take().map(|(_, head)| head);
            }
            (FULL | FIRST | MIDDLE | LAST, _) => return Some(Damage { offset: start, sequence }),
            // Records about the log itself.
            _ => {}
        }
        if let Some((first, rest)) = batch.as_ref().and_then(|batch| batch.split_first_chunk::<8>())
            && let Some(count) = rest.first_chunk::<4>()
        {
            sequence = u64::from_le_bytes(*first).saturating_add(u32::from_le_bytes(*count).into());
        }
        at += HEADER_BYTES + content.len();
    }
    begun.map(|(offset, _)| Damage { offset, sequence })
}

/// The highest sequence number that a seal in `log`, from `from` on, says was synced.
fn highest_seal(log: &[u8], from: usize) -> Option<u64> {
    let mut highest = None;
    for at in from..log.len().saturating_sub(SEAL_KEY.len()) {
        if !log[at..].starts_with(SEAL_KEY) {
            continue;
        }
        let starts = (at.saturating_sub(SEAL_OFFSET_MAX)..at).rev();
        let is_whole = starts.filter(|start| *start >= from).any(|start| {
            record(log, start)
                .is_some_and(|(kind, content)| kind == FULL && start + HEADER_BYTES + content.len() > at)
        });
        // The value's length, one byte, stands before it.
        let value = log.get(at + SEAL_KEY.len() + 1..).and_then(|rest| rest.first_chunk::<8>());
        if let Some(value) = value.filter(|_| is_whole) {
            highest = highest.max(Some(u64::from_le_bytes(*value)));
        }
    }
    highest
}

/// Checks that the logs in `dir` hold everything that was synced.
///
/// # Errors
/// [`GuardError`].
pub(super) fn check_logs(dir: &Path) -> Result<(), GuardError> {
    let mut damaged: Option<(PathBuf, Damage)> = None;
    for path in files(dir, |name| name.ends_with(".log"))? {
        let log = fs::read(&path).map_err(at(&path))?;
        let from = match &damaged {
            Some(_) => 0,
            None => match first_damage(&log) {
                None => continue,
                Some(damage) => {
                    damaged = Some((path.clone(), damage));
                    damage.offset
                }
            },
        };
        if let Some((path, damage)) = &damaged
            && highest_seal(&log, from).is_some_and(|seal| seal >= damage.sequence)
        {
            let why = format!("what was written durably at byte {} is not there any more", damage.offset);
            return Err(GuardError::Damaged { path: path.clone(), why });
        }
    }
    if let Some((path, Damage { offset, .. })) = damaged {
        tracing::warn!(path = %path.display(), offset, "the log's end was torn, as a crash leaves it; what it held was promised to nobody");
    }
    Ok(())
}

/// Checks that a store that was made is not taken for none: RocksDB makes an empty one where the file is missing that names the list of tables.
///
/// # Errors
/// [`GuardError`].
pub(super) fn check_is_there(dir: &Path) -> Result<(), GuardError> {
    let current = dir.join("CURRENT");
    if !current.exists()
        && !files(dir, |name| name.ends_with(".sst") || name.starts_with("MANIFEST"))?.is_empty()
    {
        return Err(GuardError::Damaged { path: current, why: "it is missing".to_owned() });
    }
    Ok(())
}

/// Files of a folder by name, in order.
fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> Result<Vec<PathBuf>, GuardError> {
    let mut found = Vec::new();
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
        entries => entries.map_err(at(dir))?,
    };
    for entry in entries {
        let path = entry.map_err(at(dir))?.path();
        if path.file_name().and_then(|name| name.to_str()).is_some_and(&wanted) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sum_file(dir: &Path) -> PathBuf {
    dir.with_extension("sum")
}

fn sums(dir: &Path) -> Result<Vec<(String, blake3::Hash)>, GuardError> {
    let listed =
        files(dir, |name| name == "CURRENT" || name.starts_with("MANIFEST") || name.ends_with(".log"))?;
    let sum = |path: PathBuf| {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        Ok((name.unwrap_or_default(), blake3::hash(&fs::read(&path).map_err(at(&path))?)))
    };
    listed.into_iter().map(sum).collect()
}

/// Leaves the sum of a store to which nothing is written any more.
///
/// # Errors
/// [`GuardError`]; there is no sum then.
pub(super) fn leave_sum(dir: &Path) -> Result<(), GuardError> {
    let mut text = String::new();
    for (name, hash) in sums(dir)? {
        text.push_str(&format!("{hash} {name}\n"));
    }
    let check = blake3::hash(text.as_bytes());
    let path = sum_file(dir);
    let temporary = path.with_extension("sum.new");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(format!("{text}{check}\n").as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, &path)?;
        sync_folder(&path)
    };
    write().map_err(at(&path))
}

fn sync_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

/// Compares a store with the sum that was left beside it, if one was, and removes the sum.
///
/// # Errors
/// [`GuardError`]; the sum stays then.
pub(super) fn check_sum(dir: &Path) -> Result<(), GuardError> {
    let path = sum_file(dir);
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => String::from_utf8_lossy(&text.map_err(at(&path))?).into_owned(),
    };
    let split = text.trim_end().rfind('\n').map_or(0, |newline| newline + 1);
    let (list, check) = text.split_at(split);
    if check.trim_end() != blake3::hash(list.as_bytes()).to_hex().as_str() {
        // The sum itself is damaged. Without it the store is checked as after a crash.
        tracing::warn!(path = %path.display(), "it is damaged, and passed over");
    } else {
        let now = sums(dir)?;
        for line in list.lines() {
            let Some((hash, name)) = line.split_once(' ') else { continue };
            let why = match now.iter().find(|(there, _)| there == name) {
                Some((_, there)) if there.to_hex().as_str() == hash => continue,
                Some(_) => "its content is not what it was when the node stopped",
                None => "it is missing",
            };
            return Err(GuardError::Damaged { path: dir.join(name), why: why.to_owned() });
        }
    }
    // Durably: a sum that came back after a power cut would call good files damaged.
    fs::remove_file(&path).and_then(|()| sync_folder(&path)).map_err(at(&path))
}

#[cfg(test)]
mod tests {
    use super::super::{Batch, Meta, MetaError, Table};
    use super::*;

    /// The only log of a store that was not closed in good order.
    fn log_of(dir: &Path) -> PathBuf {
        let logs = files(dir, |name| name.ends_with(".log")).unwrap();
        logs.into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
    }

    /// A store with synced and other writes, one of them longer than a block.
    fn written(dir: &Path) -> Meta {
        let meta = Meta::open(dir).unwrap();
        for i in 0..20u64 {
            let mut batch = Batch::default();
            batch.put(Table::Blobs, &i.to_be_bytes(), &vec![i as u8; 50]);
            batch.put(Table::Deals, &i.to_be_bytes(), &i);
            if i == 7 {
                batch.put(Table::Puts, b"long", &vec![7u8; 100_000]);
            }
            if i % 3 == 0 { meta.note(&batch).unwrap() } else { meta.commit(&batch).unwrap() }
        }
        meta
    }

    #[test]
    fn a_whole_log_is_whole_and_its_last_seal_covers_the_last_synced_write() {
        let dir = tempfile::tempdir().unwrap();
        let meta = written(&dir.path().join("meta"));
        let log = fs::read(log_of(&dir.path().join("meta"))).unwrap();
        assert_eq!(first_damage(&log), None);
        // The last write was synced; its seal is the entry after it.
        assert_eq!(highest_seal(&log, 0), Some(meta.db.latest_sequence_number() - 1));
    }

    #[test]
    fn every_flipped_bit_before_the_last_seal_is_caught_and_every_torn_end_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("meta");
        drop(written(&store));
        let path = log_of(&store);
        let good = fs::read(&path).unwrap();
        check_logs(&store).unwrap();
        let last_seal = good.windows(SEAL_KEY.len()).rposition(|w| w == SEAL_KEY).unwrap();
        let last_sealed = last_seal - 40;
        for at in (0..last_sealed).step_by(97).chain([0, 4, 5, 6, last_sealed]) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            fs::write(&path, &bad).unwrap();
            // The bytes between blocks are nobody's.
            if first_damage(&bad).is_some() {
                assert!(check_logs(&store).is_err(), "bit at {at} of {}", good.len());
            } else {
                assert!(BLOCK_BYTES - at % BLOCK_BYTES < HEADER_BYTES, "bit at {at}");
            }
        }
        for len in (0..good.len()).step_by(331).chain([good.len() - 1]) {
            fs::write(&path, &good[..len]).unwrap();
            check_logs(&store).unwrap();
            let mut zeros = good[..len].to_vec();
            zeros.resize(good.len(), 0);
            fs::write(&path, &zeros).unwrap();
            check_logs(&store).unwrap();
        }
        // A store with a torn end opens, and holds what was synced before it.
        fs::write(&path, &good[..last_sealed]).unwrap();
        let meta = Meta::open(&store).unwrap();
        assert_eq!(meta.get::<u64>(Table::Deals, &17u64.to_be_bytes()).unwrap(), Some(17));
    }

    #[test]
    fn a_closed_store_takes_no_more_and_its_sum_tells_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("meta");
        let meta = written(&store);
        meta.close().unwrap();
        assert!(matches!(
            meta.note(Batch::default().put(Table::Blobs, b"late", &1u64)),
            Err(MetaError::Closed)
        ));
        drop(meta);
        let guarded =
            files(&store, |name| name == "CURRENT" || name.starts_with("MANIFEST") || name.ends_with(".log"));
        for path in guarded.unwrap() {
            let good = fs::read(&path).unwrap();
            if good.is_empty() {
                continue;
            }
            for at in [0, good.len() / 2, good.len() - 1] {
                let mut bad = good.clone();
                bad[at] ^= 8;
                fs::write(&path, &bad).unwrap();
                let error = Meta::open(&store).err().unwrap().to_string();
                assert!(error.contains(path.to_str().unwrap()), "{error}");
            }
            fs::write(&path, &good).unwrap();
        }
        let sum = sum_file(&store);
        let mut bad = fs::read(&sum).unwrap();
        bad[3] ^= 1;
        fs::write(&sum, bad).unwrap();
        drop(Meta::open(&store).unwrap());
        assert!(!sum.exists(), "a sum holds once");
        fs::remove_file(store.join("CURRENT")).unwrap();
        assert!(Meta::open(&store).is_err(), "it is not taken for a new store");
    }
}
