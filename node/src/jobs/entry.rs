//! One job: what was ordered, and how it is.

use std::sync::{Arc, Mutex, MutexGuard};

use spare_market::amount::Amount;
use spare_market::job::{JobId, JobReceipt, Order, Ran, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_sandbox::host::Stop;
use tokio::sync::watch;

use super::{Over, Record};
use crate::frames::{JobPhase, JobState};
use crate::limits::{JOB_LOG_PIECE_BYTES, JOB_RESULT_PINNED_S};
use crate::materials::Pins;

/// A job.
pub(super) struct Entry {
    pub(super) id: JobId,
    pub(super) client: PublicKey,
    pub(super) order: Order,
    pub(super) work: Work,
    pub(super) taken_s: u64,
    pub(super) stop: Stop,
    raw: SignedBytes,
    progress: Mutex<Progress>,
    /// The version of the progress.
    changed: watch::Sender<u64>,
    pins: Mutex<Vec<Pins>>,
}

/// How far a job is.
struct Progress {
    phase: JobPhase,
    over: Option<Over>,
    fuel: u64,
    cost: Amount,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn waiting() -> JobPhase {
    JobPhase::Waiting { ahead: 0, wait_s: None, why: String::new() }
}

impl Entry {
    pub(super) fn new(
        client: PublicKey,
        order: Signed<Order>,
        work: Work,
        taken_s: u64,
        over: Option<Over>,
    ) -> Arc<Self> {
        let phase = over.as_ref().map_or_else(waiting, Over::phase);
        let progress =
            Progress { phase, over, fuel: 0, cost: Amount::ZERO, stdout: Vec::new(), stderr: Vec::new() };
        Arc::new(Self {
            id: order.value().job_id(),
            client,
            raw: order.raw().clone(),
            order: order.value().clone(),
            work,
            taken_s,
            stop: Stop::new(),
            progress: Mutex::new(progress),
            changed: watch::Sender::new(1),
            pins: Mutex::default(),
        })
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().expect("no holder panics")
    }

    pub(super) fn record(&self) -> Record {
        let over = self.progress().over.clone();
        let (order, work) = (self.raw.clone(), self.work.clone());
        Record::V1 { client: self.client, order, work, taken_s: self.taken_s, over }
    }

    pub(super) fn is_over(&self) -> bool {
        self.progress().over.is_some()
    }

    /// What came out, once it has.
    pub(super) fn ran(&self, network: NetworkId) -> Option<Ran> {
        let Some(Over::Ended { receipt, .. }) = self.progress().over.clone() else { return None };
        let JobReceipt::V1 { ran, .. } = receipt.check::<JobReceipt>(network).ok()?.value().clone();
        Some(ran)
    }

    /// Waits again, from the beginning.
    pub(super) fn wait_again(&self) {
        self.progress().phase = waiting();
        self.tell();
    }

    /// Fuel used so far.
    pub(super) fn fuel(&self) -> u64 {
        self.progress().fuel
    }

    pub(super) fn over_at_s(&self) -> Option<u64> {
        self.progress().over.as_ref().map(Over::at_s)
    }

    /// Keeps bytes for as long as they are needed.
    pub(super) fn pin(&self, pins: Pins) {
        self.pins.lock().expect("no holder panics").push(pins);
    }

    /// Lets go of what came out, some time after it did.
    pub(super) fn unpin_after(&self, now_s: u64) {
        if self.over_at_s().is_some_and(|at_s| at_s + JOB_RESULT_PINNED_S <= now_s) {
            self.pins.lock().expect("no holder panics").clear();
        }
    }

    /// Has those who watch look.
    pub(super) fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Begins anew: what was printed by a run that was cut short is printed again.
    pub(super) fn compiling(&self, cost: Amount) {
        let mut progress = self.progress();
        progress.phase = JobPhase::Compiling;
        (progress.fuel, progress.cost) = (0, cost);
        drop(progress);
        self.tell();
    }

    pub(super) fn stepped(&self, fuel: u64, stdout: &[u8], stderr: &[u8]) {
        let mut progress = self.progress();
        progress.phase = JobPhase::Running;
        progress.fuel = fuel;
        progress.stdout.extend_from_slice(stdout);
        progress.stderr.extend_from_slice(stderr);
        drop(progress);
        self.tell();
    }

    pub(super) fn counted(&self, cost: Amount) {
        self.progress().cost = cost;
        self.tell();
    }

    pub(super) fn is_due(&self, is_due: bool) {
        self.progress().phase = if is_due { JobPhase::Due } else { JobPhase::Running };
        self.tell();
    }

    /// Notes the end. What was printed is among what came out, from then on.
    pub(super) fn finish(&self, over: Over, cost: Option<Amount>) {
        let mut progress = self.progress();
        progress.phase = over.phase();
        progress.over = Some(over);
        progress.cost = cost.unwrap_or(progress.cost);
        (progress.stdout, progress.stderr) = (Vec::new(), Vec::new());
    }

    /// How it is, with what was printed from the offsets on, as much as fits.
    pub(super) fn state(&self, stdout_from: u64, stderr_from: u64) -> JobState {
        let version = *self.changed.borrow();
        let progress = self.progress();
        let piece = |log: &[u8], from: u64| {
            let from = usize::try_from(from).map_or(log.len(), |from| from.min(log.len()));
            log[from..log.len().min(from + JOB_LOG_PIECE_BYTES)].to_vec()
        };
        JobState {
            version,
            phase: progress.phase.clone(),
            fuel: progress.fuel,
            cost: progress.cost,
            stdout: piece(&progress.stdout, stdout_from),
            stderr: piece(&progress.stderr, stderr_from),
        }
    }

    /// Waits until there is something that the asker has not seen.
    pub(super) async fn news(&self, seen: u64, stdout_from: u64, stderr_from: u64) {
        let has_log = {
            let progress = self.progress();
            (progress.stdout.len() as u64) > stdout_from || (progress.stderr.len() as u64) > stderr_from
        };
        if has_log {
            return;
        }
        let mut changed = self.changed.subscribe();
        // The entry outlives the wait, so there is a sender.
        let _ = changed.wait_for(|version| *version != seen).await;
    }
}
