//! A job's turn: read what it needs, compile, run and count, keep what came out, sign.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use spare_market::amount::Amount;
use spare_market::job::{ComputePrices, JOBS_UNPAID_MAX, Outputs, Work};
use spare_market::signed::SignedBytes;
use spare_proofs::encode::to_bytes;
use spare_sandbox::run::{Go, Step};

use super::{Entry, Jobs, Over};
use crate::limits::JOB_PAY_WAIT;
use crate::materials::MaterialError;
use crate::unix_now_s;
use crate::work::{Done, WorkFailure};

/// What is counted at once while a job runs. Counting writes to the disk, so that it is not done for each step.
const COUNT_AT: Amount = Amount(JOBS_UNPAID_MAX.0 / 8);
/// How often somebody who waits for payment looks up.
const LOOK_UP_EVERY: Duration = Duration::from_millis(100);
/// Fuel for which a job has at least a second.
const SLOWEST_FUEL_PER_S: u64 = 20_000_000;
const WALL_MIN: Duration = Duration::from_secs(60);
const WALL_MAX: Duration = Duration::from_secs(48 * 3600);

/// How long a job may take: long enough for a slow machine, so that it ends what fuel does not.
pub(crate) fn wall(work: &Work) -> Duration {
    (WALL_MIN + Duration::from_secs(work.limits.fuel / SLOWEST_FUEL_PER_S)).min(WALL_MAX)
}

/// Why a job did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error("the deal that pays is over")]
    NoDeal,
    #[error("all workers are busy")]
    NoWorker,
    #[error("{0}")]
    Unpaid(String),
    #[error(transparent)]
    Material(#[from] MaterialError),
    #[error(transparent)]
    Work(#[from] WorkFailure),
}

impl Jobs {
    /// Carries a job out. Returns whether it is over, and need not wait again.
    pub(super) fn carry_out(&self, entry: &Entry) -> bool {
        let deal = entry.order.v1().deal;
        entry.compiling(self.earner.job(deal, &entry.id).unwrap_or_default());
        let result = self.run_job(entry);
        if result.is_err() && self.is_closing.load(Ordering::Relaxed) {
            return true;
        }
        let at_s = unix_now_s();
        let (over, cost) = match result {
            Ok((receipt, cost)) => (Over::Ended { receipt, at_s }, Some(cost)),
            Err(Unfinished::NoWorker) if !entry.stop.is_asked() => {
                entry.wait_again();
                return false;
            }
            // What the client's own doing ended is owed as far as it went.
            Err(_) if entry.stop.is_asked() => (Over::Cancelled { at_s }, self.cost_so_far(entry)),
            Err(Unfinished::Unpaid(why)) => (Over::Failed { why, at_s }, self.cost_so_far(entry)),
            Err(why) => (Over::Failed { why: why.to_string(), at_s }, None),
        };
        self.finish(entry, over, cost);
        true
    }

    /// What a job has cost by the fuel that it used.
    fn cost_so_far(&self, entry: &Entry) -> Option<Amount> {
        let prices = self.earner.job_prices(entry.order.v1().deal)?;
        Some(prices.cost(entry.work.limits.memory_bytes, entry.fuel(), 0))
    }

    fn run_job(&self, entry: &Entry) -> Result<(SignedBytes, Amount), Unfinished> {
        let prices = self.earner.job_prices(entry.order.v1().deal).ok_or(Unfinished::NoDeal)?;
        let materials = self.materials.gather(&entry.client, &entry.work)?;
        let mut unpaid = None;
        let done = {
            let mut step = |step: Step<'_>| {
                entry.stepped(step.fuel, step.stdout, step.stderr);
                match self.count_step(entry, &prices, step.fuel) {
                    Ok(()) => Go::On,
                    Err(why) => {
                        unpaid = Some(why);
                        Go::Stop
                    }
                }
            };
            let client = entry.client.key_bytes();
            self.workshop.carry_out(client, &entry.work, materials, wall(&entry.work), &entry.stop, &mut step)
        };
        let done = match (done, unpaid) {
            (Err(WorkFailure::Stopped), Some(why)) => return Err(Unfinished::Unpaid(why)),
            (Err(failure), _) if failure.is_for_want_of_workers() => return Err(Unfinished::NoWorker),
            (done, _) => done?,
        };
        let cost = done.ran.cost(&prices, &entry.work.limits);
        self.keep_results(entry, &done)?;
        Ok((self.receipt(entry, done.ran, unix_now_s()), cost))
    }

    /// Counts what a run has cost so far, and has it stand still while too much is unpaid.
    fn count_step(&self, entry: &Entry, prices: &ComputePrices, fuel: u64) -> Result<(), String> {
        let deal = entry.order.v1().deal;
        // Of a run that is done again after a crash, nothing is counted before it is further than the first one was.
        let Some(counted) = self.earner.job(deal, &entry.id) else { return Ok(()) };
        let cost = prices.cost(entry.work.limits.memory_bytes, fuel, 0);
        if cost.saturating_sub(counted) < COUNT_AT {
            return Ok(());
        }
        self.earner.count_job(deal, &entry.id, cost, false).map_err(|refusal| refusal.detail)?;
        entry.counted(cost);
        let is_due = || self.earner.unpaid_jobs(deal) > JOBS_UNPAID_MAX;
        if !is_due() {
            return Ok(());
        }
        entry.is_due(true);
        let give_up_at = Instant::now() + JOB_PAY_WAIT;
        while is_due() {
            if entry.stop.is_asked() {
                return Err("it was stopped".to_owned());
            }
            if Instant::now() >= give_up_at {
                return Err(format!(
                    "{} credits were not paid in {JOB_PAY_WAIT:?}",
                    self.earner.unpaid_jobs(deal)
                ));
            }
            std::thread::sleep(LOOK_UP_EVERY);
        }
        entry.is_due(false);
        Ok(())
    }

    /// Keeps what came out, for the client to fetch.
    fn keep_results(&self, entry: &Entry, done: &Done) -> Result<(), MaterialError> {
        let put = |bytes: &[u8]| -> Result<_, MaterialError> {
            let material = self.materials.put(entry.client, bytes)?;
            entry.pin(self.materials.pin(entry.client, [material]));
            Ok(material)
        };
        let mut listed = Vec::new();
        for (path, bytes) in &done.outputs {
            listed.push((path.clone(), put(bytes)?));
        }
        for bytes in [&to_bytes(&Outputs(listed)), &done.stdout, &done.stderr] {
            if !bytes.is_empty() {
                put(bytes)?;
            }
        }
        Ok(())
    }
}
