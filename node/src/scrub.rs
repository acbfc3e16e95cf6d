//! Scrub: a slow pass over all shards on disk that finds rot before a client does.
//!
//! Every group is read again and checked against its shard's tree, the way a read does. What has rotted is noted ([`crate::shards::rot`]), refused
//! from then on and shown in `spare status`.
//!
//! **Goals.** A bounded rate, and an eighth of it while peers are served. A pass begins where the last process left it, and when it is done nothing
//! is read until the next one is due. Files are found by their records, never by walking folders.
//! **Non-goals.** Repair: a provider has nothing to repair from. The shard's client stores it again, and that heals it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_proofs::tree::Root;
use tokio::time::sleep;

use crate::meta::{Batch, Meta, MetaError, Table};
use crate::shards::{READ_MAX_BYTES, ShardError, ShardRecord, Volume};
use crate::transport::Traffic;
use crate::{sets, unix_now_s};

const PROGRESS_KEY: &[u8] = b"scrub";
/// What a look at a file counts for at least: what a disk could have read instead of moving its head there.
const SEEK_BYTES: u64 = 64 << 10;
/// Traffic from which on peers count as being served, in bytes per second.
const BUSY_BYTES_PER_S: u64 = 64 << 10;
/// By how much the scrub is slower while peers are served.
const BUSY_FACTOR: u32 = 8;
/// How often progress is written down.
const NOTE_EVERY: Duration = Duration::from_secs(10);
/// How long the scrub rests at least: between passes, and after an error.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Times that the scrub tries to read a shard which the disk fails to give, with a [`REST`] between them.
const READ_TRIES: usize = 4;
/// Rotten shards that are checked again in one go.
const RECHECK_PAGE: usize = 64;

/// How far the scrub is, as it is written down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ProgressV1 {
    /// Key of the shard that was checked last in the pass under way, empty before the first.
    cursor: Vec<u8>,
    /// Shards checked in the pass under way.
    checked_shards: u64,
    /// Their bytes.
    checked_bytes: u64,
    /// When the pass under way, or the last one, began; 0 if none did.
    began_s: u64,
    /// When the last full pass ended.
    ended_s: Option<u64>,
}

#[derive(Serialize, Deserialize)]
enum Progress {
    V1(ProgressV1),
}

/// How the scrub stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Shards checked in the pass under way, or the last one.
    pub checked_shards: u64,
    /// Their bytes.
    pub checked_bytes: u64,
    /// Unix time in seconds when the last full pass ended.
    pub last_pass_s: Option<u64>,
    /// Whether a pass is under way.
    pub is_passing: bool,
}

/// Checks the shards of a volume, again and again.
pub struct Scrub {
    volume: Arc<Volume>,
    meta: Arc<Meta>,
    traffic: Arc<Traffic>,
    /// Bytes per second; 0 for none.
    rate: u64,
    /// Seconds from the start of a pass to that of the next.
    every_s: u64,
    progress: Mutex<ProgressV1>,
}

/// Time to wait after `bytes` were read, at a rate of `rate` bytes per second, when peers moved `served_bytes` in `elapsed`.
fn pause(bytes: u64, rate: u64, served_bytes: u64, elapsed: Duration) -> Duration {
    let full = Duration::from_secs_f64(bytes.max(SEEK_BYTES) as f64 / rate.max(1) as f64);
    let is_busy = served_bytes as f64 > BUSY_BYTES_PER_S as f64 * elapsed.as_secs_f64();
    if is_busy { full * BUSY_FACTOR } else { full }
}

/// Seconds until a pass is due, when the last one began at `began_s`.
fn due_in_s(progress: &ProgressV1, every_s: u64, now_s: u64) -> u64 {
    let is_done = progress.ended_s.is_some_and(|ended| ended >= progress.began_s);
    if is_done { (progress.began_s + every_s).saturating_sub(now_s) } else { 0 }
}

impl Scrub {
    /// A scrub of `volume` at `rate` bytes per second, begun anew every `every_days` days.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn new(
        volume: Arc<Volume>,
        meta: Arc<Meta>,
        traffic: Arc<Traffic>,
        rate: u64,
        every_days: u16,
    ) -> Result<Self, MetaError> {
        let progress = match meta.get(Table::State, PROGRESS_KEY)? {
            Some(Progress::V1(progress)) => progress,
            None => ProgressV1::default(),
        };
        let every_s = u64::from(every_days) * 24 * 3600;
        Ok(Self { volume, meta, traffic, rate, every_s, progress: Mutex::new(progress) })
    }

    /// How the scrub stands.
    pub fn standing(&self) -> Standing {
        let progress = self.progress.lock().expect("no holder panics");
        Standing {
            checked_shards: progress.checked_shards,
            checked_bytes: progress.checked_bytes,
            last_pass_s: progress.ended_s,
            is_passing: self.rate > 0 && progress.ended_s.is_none_or(|ended| ended < progress.began_s),
        }
    }

    /// Bytes per second at which it reads; 0 when it is turned off.
    pub fn rate(&self) -> u64 {
        self.rate
    }

    /// Scrubs for as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        if self.rate == 0 {
            return;
        }
        if let Err(error) = self.recheck().await {
            tracing::error!(%error, "shards that had rotted could not be checked again");
        }
        loop {
            let due_s = due_in_s(&self.progress(), self.every_s, unix_now_s());
            if due_s > 0 {
                // In steps, since the clock may be set.
                sleep(Duration::from_secs(due_s).min(REST.1)).await;
                continue;
            }
            match self.pass().await {
                Ok(()) => sleep(REST.0).await,
                Err(error) => {
                    tracing::error!(%error, "the scrub of stored shards could not go on");
                    sleep(REST.1).await;
                }
            }
        }
    }

    fn progress(&self) -> ProgressV1 {
        self.progress.lock().expect("no holder panics").clone()
    }

    fn note(&self) -> Result<(), MetaError> {
        self.meta.note(Batch::default().put(Table::State, PROGRESS_KEY, &Progress::V1(self.progress())))
    }

    /// Looks again at what had rotted, before anything else: its disk may have been mended.
    async fn recheck(&self) -> Result<(), ShardError> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = self.volume.rotten(after.as_deref(), RECHECK_PAGE)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(crate::shards::shard_key(&last.owner, &last.root));
            for rotten in page {
                self.check(&rotten.owner, &rotten.root).await?;
            }
        }
    }

    /// Goes on with the pass under way, or begins one, to its end.
    async fn pass(&self) -> Result<(), ShardError> {
        {
            let mut progress = self.progress.lock().expect("no holder panics");
            if progress.cursor.is_empty() {
                let ended_s = progress.ended_s;
                *progress = ProgressV1 { began_s: unix_now_s(), ended_s, ..ProgressV1::default() };
            }
        }
        let mut noted_at = Instant::now();
        loop {
            let cursor = self.progress().cursor;
            let Some((key, ShardRecord::V1 { shard_bytes, .. })) = self.volume.next_shard(&cursor)? else {
                break;
            };
            if let Some((owner, root)) = sets::split_shard_key(&key) {
                self.check(&owner, &root).await?;
            }
            {
                let mut progress = self.progress.lock().expect("no holder panics");
                progress.cursor = key;
                progress.checked_shards += 1;
                progress.checked_bytes += shard_bytes;
            }
            if noted_at.elapsed() >= NOTE_EVERY {
                self.note()?;
                noted_at = Instant::now();
            }
        }
        let rotten = self.volume.rotten_shards()?;
        {
            let mut progress = self.progress.lock().expect("no holder panics");
            progress.cursor.clear();
            // Never before it began, also if the clock was set.
            progress.ended_s = Some(unix_now_s().max(progress.began_s));
            tracing::info!(
                shards = progress.checked_shards,
                bytes = progress.checked_bytes,
                rotten,
                "all stored shards were read again and checked"
            );
        }
        Ok(self.note()?)
    }

    /// Reads a whole shard and notes what it finds. Errors of the shard itself are findings. All others are returned, so that the pass goes on here later.
    async fn check(&self, owner: &PublicKey, root: &Root) -> Result<(), ShardError> {
        let (volume, owner, root) = (self.volume.clone(), *owner, *root);
        let mut tries = 0;
        loop {
            match self.read_whole(&owner, &root).await {
                Ok(()) => return blocking(move || Ok(volume.note_whole(&owner, &root)?)).await,
                Err(ShardError::Damaged(_) | ShardError::NotHere) => return Ok(()),
                // A disk that fails now may be there again in a moment.
                Err(ShardError::Io(error)) => {
                    tracing::error!(%owner, %root, %error, "a stored shard could not be read");
                    tries += 1;
                    if tries < READ_TRIES {
                        sleep(REST.0).await;
                        continue;
                    }
                    let noting = move || {
                        let is_its_own = volume.note_unreadable(&owner, &root, &error)?;
                        if is_its_own { Ok(()) } else { Err(ShardError::Io(error)) }
                    };
                    return blocking(noting).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn read_whole(&self, owner: &PublicKey, root: &Root) -> Result<(), ShardError> {
        let (volume, owner, root) = (self.volume.clone(), *owner, *root);
        let shard = Arc::new(blocking(move || volume.open_to_check(&owner, &root)).await?);
        let shard_bytes = shard.tree().shard_bytes();
        for start in (0..shard_bytes).step_by(READ_MAX_BYTES) {
            let range = start..shard_bytes.min(start + READ_MAX_BYTES as u64);
            let (since, served) = (Instant::now(), self.served_bytes());
            let (shard, len) = (shard.clone(), range.end - range.start);
            blocking(move || shard.read_groups(range).map(drop)).await?;
            // A moment's look at what peers do, before the pause that goes by it.
            sleep(pause(len, self.rate, 0, Duration::ZERO)).await;
            let served = self.served_bytes() - served;
            let whole = pause(len, self.rate, served, since.elapsed());
            sleep(whole.saturating_sub(pause(len, self.rate, 0, Duration::ZERO))).await;
        }
        Ok(())
    }

    fn served_bytes(&self) -> u64 {
        self.traffic.received_bytes.load(Ordering::Relaxed) + self.traffic.sent_bytes.load(Ordering::Relaxed)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ShardError> + Send + 'static,
) -> Result<T, ShardError> {
    // It is cancelled when the node stops.
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: PublicKey = PublicKey::Ed25519([1; 32]);

    #[test]
    fn the_pace_keeps_to_its_rate_and_yields_to_traffic() {
        let second = Duration::from_secs(1);
        assert_eq!(pause(8_000_000, 8_000_000, 0, second), second);
        assert_eq!(pause(8_000_000, 8_000_000, BUSY_BYTES_PER_S, second), second, "next to nothing");
        assert_eq!(pause(8_000_000, 8_000_000, BUSY_BYTES_PER_S + 1, second), 8 * second);
        assert_eq!(pause(32, 64 << 10, 0, second), second, "a tiny shard costs a seek");
    }

    #[test]
    fn a_pass_is_due_some_days_after_the_last_one_began_and_goes_on_if_it_was_cut_short() {
        let mut progress = ProgressV1::default();
        assert_eq!(due_in_s(&progress, 100, 5), 0, "there was none");
        progress.began_s = 1000;
        assert_eq!(due_in_s(&progress, 100, 1001), 0, "it was cut short");
        progress.ended_s = Some(1010);
        assert_eq!(due_in_s(&progress, 100, 1020), 80);
        assert_eq!(due_in_s(&progress, 100, 5000), 0);
    }

    struct Fixture {
        dir: tempfile::TempDir,
        volume: Arc<Volume>,
        meta: Arc<Meta>,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let meta = Arc::new(Meta::open(&dir.path().join("meta")).unwrap());
        let volume = Arc::new(Volume::open(&dir.path().join("volume"), meta.clone(), 1 << 30).unwrap());
        Fixture { dir, volume, meta }
    }

    impl Fixture {
        fn store(&self, bytes: &[u8]) -> Root {
            let mut incoming = self.volume.begin(bytes.len() as u64).unwrap();
            let mut left = bytes;
            while !left.is_empty() {
                let space = incoming.space();
                let take = space.len().min(left.len());
                space[..take].copy_from_slice(&left[..take]);
                incoming.advance(take).unwrap();
                left = &left[take..];
            }
            incoming.commit(&OWNER, 7).unwrap().0
        }

        fn path(&self, root: &Root) -> std::path::PathBuf {
            let name = format!("{:02x}/{root}.{}", root.as_bytes()[0], &OWNER.to_string()[..16]);
            self.dir.path().join("volume/shards").join(name)
        }

        fn flip(&self, root: &Root) {
            let path = self.path(root);
            let mut bytes = std::fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 4;
            std::fs::write(path, bytes).unwrap();
        }

        fn scrub(&self, rate: u64) -> Arc<Scrub> {
            let traffic = Arc::new(Traffic::default());
            Arc::new(Scrub::new(self.volume.clone(), self.meta.clone(), traffic, rate, 14).unwrap())
        }
    }

    #[tokio::test]
    async fn a_pass_finds_rot_and_a_later_one_what_is_whole_again() {
        let fixture = fixture();
        let roots: Vec<Root> = (0..5u8).map(|i| fixture.store(&vec![i; 700_000])).collect();
        fixture.flip(&roots[2]);
        let scrub = fixture.scrub(u64::MAX);
        scrub.pass().await.unwrap();
        assert_eq!(fixture.volume.rotten_shards().unwrap(), 1);
        assert!(matches!(fixture.volume.open_shard(&OWNER, &roots[2]), Err(ShardError::Rotten(_))));
        let standing = scrub.standing();
        assert_eq!((standing.checked_shards, standing.checked_bytes), (5, 3_500_000));
        assert!(standing.last_pass_s.is_some() && !standing.is_passing);
        fixture.flip(&roots[2]);
        fixture.scrub(u64::MAX).recheck().await.unwrap();
        assert_eq!(fixture.volume.rotten_shards().unwrap(), 0, "whole again");
    }

    #[tokio::test]
    async fn what_the_disk_fails_to_give_time_and_again_is_refused_until_it_can_be_read() {
        let fixture = fixture();
        let root = fixture.store(&[1; 700_000]);
        // As a damaged file system may have it, and read as a bad sector is: with an error that stays.
        let (path, aside) = (fixture.path(&root), fixture.dir.path().join("aside"));
        std::fs::rename(&path, &aside).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(
            matches!(fixture.volume.open_shard(&OWNER, &root), Err(ShardError::Io(_))),
            "not rot at once"
        );
        fixture.scrub(u64::MAX).pass().await.unwrap();
        let Err(ShardError::Rotten(why)) = fixture.volume.open_shard(&OWNER, &root) else {
            panic!("it is refused")
        };
        assert!(why.contains("cannot be read: Is a directory"), "{why}");
        assert!(fixture.volume.record(&OWNER, &root).unwrap().is_none(), "it does not count as held");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(&aside, &path).unwrap();
        fixture.scrub(u64::MAX).recheck().await.unwrap();
        assert!(fixture.volume.open_shard(&OWNER, &root).is_ok());
    }

    #[tokio::test]
    async fn a_pass_goes_on_where_the_last_process_left_it() {
        let fixture = fixture();
        let mut keys: Vec<Vec<u8>> =
            (0..3u8).map(|i| crate::shards::shard_key(&OWNER, &fixture.store(&vec![i; 1000]))).collect();
        keys.sort();
        let first = fixture.scrub(1);
        *first.progress.lock().unwrap() =
            ProgressV1 { cursor: keys[0].clone(), checked_shards: 1, began_s: 5, ..ProgressV1::default() };
        first.note().unwrap();
        let second = fixture.scrub(u64::MAX);
        assert!(second.standing().is_passing);
        second.pass().await.unwrap();
        assert_eq!(second.standing().checked_shards, 3, "the first was not read again");
        assert!(second.standing().last_pass_s.is_some());
    }
}
