//! Following one order: send what it needs, order, watch and pay, to the receipt.

use std::sync::Arc;
use std::time::{Duration, Instant};

use spare_market::amount::Amount;
use spare_market::job::{JobReceipt, Material, Ran};
use spare_market::signed::SignedBytes;
use spare_sandbox::engine::configuration;
use tokio::time::sleep;

use super::record::Attempt;
use super::{BEGIN_WITHIN_S, Job, Orders, Stage};
use crate::deals::{Cell, DealError, Pay};
use crate::frames::{JobPhase, JobState, RefusalCode};
use crate::jobs::wall;
use crate::materials::MaterialError;
use crate::peers::PeerError;
use crate::unix_now_s;

/// How long a provider may not answer before its order is given up. A provider that is started again goes on with its jobs.
const PATIENCE: Duration = Duration::from_secs(30);
/// The same before it has taken the order: another one is ordered from soon.
const PATIENCE_BEFORE: Duration = Duration::from_secs(5);
/// How long a provider may refuse for being busy.
const BUSY_FOR: Duration = Duration::from_secs(300);
/// How far a provider's clock may be from this node's, in seconds.
const CLOCK_SKEW_S: u64 = 600;
/// How long the ledger's newest block may take to get to a provider.
const BLOCK_WITHIN: Duration = Duration::from_secs(20);
const LOOK_EVERY: Duration = Duration::from_millis(10);
const TRY_EVERY: Duration = Duration::from_millis(500);
/// Times that materials are sent: they may be dropped between sending and ordering.
const SENDS_MAX: usize = 3;

/// Why an order failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FollowError {
    /// The provider did not answer, or refused.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// It could not be paid.
    #[error(transparent)]
    Deal(#[from] DealError),
    /// The provider says that it could not carry it out.
    #[error("it says: {0}")]
    Failed(String),
    /// The provider stopped it, and nobody asked for that.
    #[error("it stopped the job")]
    Stopped,
    /// It took longer than any machine should.
    #[error("it does not come to an end")]
    Late,
    /// What it signed does not hold.
    #[error("its receipt does not hold: {0}")]
    Receipt(&'static str),
    /// What the work needs is not here any more.
    #[error("what the work needs cannot be sent: {0}")]
    Material(#[from] MaterialError),
    /// There is no such deal any more.
    #[error("the deal that pays is over")]
    NoDeal,
}

impl Orders {
    /// Follows one order to its receipt, and pays for it.
    pub(super) async fn follow(&self, job: &Arc<Job>, at: usize) -> Result<(), FollowError> {
        let attempt = job.attempt(at);
        let followed = self.follow_to_receipt(job, at, &attempt).await;
        match followed {
            Ok((receipt, ran)) => {
                job.attempt_ended(at, receipt, ran);
                // Without its record it is followed again, to the same receipt.
                if let Err(error) = self.keep(job) {
                    tracing::error!(%error, "a receipt could not be noted");
                }
                Ok(())
            }
            Err(error) => {
                let paid = job.attempt(at).cost;
                self.stop(job, at).await;
                let is_its_own =
                    matches!(error, FollowError::Failed(_) | FollowError::Stopped | FollowError::Late);
                if is_its_own && paid > Amount::ZERO {
                    self.client.peers.standings.abandoned(
                        &attempt.node,
                        job.spec().work.id(),
                        &error.to_string(),
                    );
                }
                Err(error)
            }
        }
    }

    async fn follow_to_receipt(
        &self,
        job: &Arc<Job>,
        at: usize,
        attempt: &Attempt,
    ) -> Result<(SignedBytes, Ran), FollowError> {
        let cell = self.client.deals.cell(attempt.deal).ok_or(FollowError::NoDeal)?;
        let mut state = self.place(job, attempt).await?;
        let mut lost_at: Option<Instant> = None;
        let give_up_at =
            Instant::now() + Duration::from_secs(BEGIN_WITHIN_S) + wall(&job.spec().work) + PATIENCE;
        loop {
            if Instant::now() > give_up_at {
                return Err(FollowError::Late);
            }
            self.take_state(job, at, attempt, &cell, &state).await?;
            match &state.phase {
                JobPhase::Ended(receipt) => {
                    return self.settle(job, at, attempt, &cell, receipt.clone()).await;
                }
                JobPhase::Failed(why) => return Err(FollowError::Failed(why.clone())),
                JobPhase::Cancelled => return Err(FollowError::Stopped),
                _ => {}
            }
            let is_first = at == 0;
            let (stdout_from, stderr_from) = if is_first { job.log_ends() } else { (u64::MAX, u64::MAX) };
            let watching = self.client.peers.with_session(&attempt.node, async |session| {
                session.watch_job(attempt.id, state.version, stdout_from, stderr_from).await
            });
            match watching.await {
                Ok(next) => {
                    if !next.phase.is_over() {
                        // However much it has to say.
                        sleep(LOOK_EVERY).await;
                    }
                    (state, lost_at) = (next, None);
                }
                Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::Busy => {
                    sleep(TRY_EVERY).await
                }
                Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::NotHere => {
                    // It lost its records, or never got the order.
                    state = self.place(job, attempt).await?;
                }
                Err(PeerError::Refused(refusal)) => {
                    return Err(PeerError::Refused(refusal).into());
                }
                Err(error) => {
                    let since = *lost_at.get_or_insert_with(Instant::now);
                    job.set_stage(Stage::Lost);
                    if since.elapsed() > PATIENCE {
                        return Err(error.into());
                    }
                    sleep(TRY_EVERY).await;
                }
            }
        }
    }

    /// Sends what the work needs and the provider lacks, and orders. The same order again changes nothing.
    async fn place(&self, job: &Arc<Job>, attempt: &Attempt) -> Result<JobState, FollowError> {
        let work = &job.spec().work;
        let began = Instant::now();
        let mut sends = 0;
        loop {
            let ordering = self
                .client
                .peers
                .with_session(&attempt.node, async |session| session.order(&attempt.order, work).await);
            let (error, patience) = match ordering.await {
                Ok(state) => return Ok(state),
                Err(PeerError::Refused(refusal))
                    if refusal.code == RefusalCode::MaterialsMissing && sends < SENDS_MAX =>
                {
                    sends += 1;
                    self.send_missing(job, attempt).await?;
                    continue;
                }
                Err(PeerError::Refused(refusal))
                    if refusal.code == RefusalCode::PaymentDue && sends < SENDS_MAX =>
                {
                    sends += 1;
                    let cell = self.client.deals.cell(attempt.deal).ok_or(FollowError::NoDeal)?;
                    self.client.deals.pay(&cell, Pay::Demanded).await?;
                    continue;
                }
                Err(PeerError::Refused(refusal)) => match refusal.code {
                    RefusalCode::Busy => (PeerError::Refused(refusal), BUSY_FOR),
                    // The deal's block may be on its way.
                    RefusalCode::NoDeal | RefusalCode::Unfunded => {
                        (PeerError::Refused(refusal), BLOCK_WITHIN)
                    }
                    _ => return Err(PeerError::Refused(refusal).into()),
                },
                Err(error) if attempt.is_new => (error, PATIENCE_BEFORE),
                Err(error) => (error, PATIENCE),
            };
            if began.elapsed() > patience {
                return Err(error.into());
            }
            job.set_stage(Stage::Ordering(error.to_string()));
            sleep(TRY_EVERY).await;
        }
    }

    async fn send_missing(&self, job: &Arc<Job>, attempt: &Attempt) -> Result<(), FollowError> {
        let mut all: Vec<Material> = job.spec().work.materials().collect();
        all.sort_unstable_by_key(|material| *material.root.as_bytes());
        all.dedup();
        let held = self
            .client
            .peers
            .with_session(&attempt.node, async |session| session.has_materials(&all).await)
            .await?;
        let missing: Vec<Material> =
            all.into_iter().zip(held).filter(|(_, held)| !held).map(|(m, _)| m).collect();
        let total_bytes = missing.iter().map(|material| material.bytes).sum();
        let sent = std::sync::atomic::AtomicU64::new(0);
        for material in missing {
            let (materials, account) = (self.materials.clone(), self.account);
            let read = move || materials.read(&account, &material);
            let bytes = tokio::task::spawn_blocking(read).await.expect("reading does not panic")?;
            let count = |bytes: usize| {
                let before = sent.fetch_add(bytes as u64, std::sync::atomic::Ordering::Relaxed);
                job.set_stage(Stage::Sending { sent_bytes: before + bytes as u64, total_bytes });
            };
            let sending = self.client.peers.with_session(&attempt.node, async |session| {
                session.store_material(attempt.deal, material, bytes.into(), count).await
            });
            sending.await?;
        }
        Ok(())
    }

    /// Shows how a job is, counts what it has cost, and pays.
    async fn take_state(
        &self,
        job: &Arc<Job>,
        at: usize,
        attempt: &Attempt,
        cell: &Arc<Cell>,
        state: &JobState,
    ) -> Result<(), FollowError> {
        let stage = match &state.phase {
            JobPhase::Waiting { ahead, wait_s, why } => {
                Stage::Waiting { ahead: *ahead, wait_s: *wait_s, why: why.clone() }
            }
            JobPhase::Compiling => Stage::Compiling,
            JobPhase::Due => Stage::Paying,
            _ => Stage::Running,
        };
        if at == 0 {
            job.stepped(state.fuel, &state.stdout, &state.stderr);
        }
        job.set_stage(stage);
        if matches!(state.phase, JobPhase::Ended(_)) {
            return Ok(());
        }
        let most = job.payable(at, state.fuel);
        self.count(job, at, attempt, cell, state.cost.min(most), false).await?;
        if state.phase == JobPhase::Due {
            // What it waits for may be what it alone has counted.
            if let Err(error) = self.client.deals.pay(cell, Pay::Demanded).await {
                tracing::info!(node = %attempt.node, %error, "a provider that waits for payment could not be paid");
            }
        }
        Ok(())
    }

    async fn count(
        &self,
        job: &Arc<Job>,
        at: usize,
        attempt: &Attempt,
        cell: &Arc<Cell>,
        cost: Amount,
        is_end: bool,
    ) -> Result<(), FollowError> {
        // After a start of its own a provider may say less than it had counted.
        let cost = cost.max(job.attempt(at).cost);
        job.count(at, cost);
        match self.client.deals.count_job(cell, &attempt.id, cost, is_end).await {
            // The money is promised with the next voucher; the provider waits for it, and says so.
            Err(error @ (DealError::Peer(_) | DealError::State(_))) => {
                tracing::info!(node = %attempt.node, %error, "a voucher for a job was not taken");
                Ok(())
            }
            counted => Ok(counted?),
        }
    }

    /// Checks a receipt, and pays for the job.
    async fn settle(
        &self,
        job: &Arc<Job>,
        at: usize,
        attempt: &Attempt,
        cell: &Arc<Cell>,
        raw: SignedBytes,
    ) -> Result<(SignedBytes, Ran), FollowError> {
        let signed = raw
            .check::<JobReceipt>(self.network)
            .map_err(|_| FollowError::Receipt("no signature that holds"))?;
        let JobReceipt::V1 { job: id, ran, ended_s } = signed.value();
        let work = &job.spec().work;
        if signed.signer() != attempt.node {
            return Err(FollowError::Receipt("somebody else signed it"));
        }
        if *id != attempt.id {
            return Err(FollowError::Receipt("it is for another order"));
        }
        let (ended_s, now_s) = (*ended_s, unix_now_s());
        // The time within which it can be disputed goes by this.
        if ended_s > now_s + CLOCK_SKEW_S || ended_s + CLOCK_SKEW_S < job.created_ms() / 1000 {
            return Err(FollowError::Receipt("it says that it ended at a time at which it cannot have"));
        }
        let is_compared = job.spec().is_compared();
        if is_compared && ran.configuration != configuration() {
            return Err(FollowError::Receipt("another engine ran it than the provider said it has"));
        }
        if !ran.is_within(work) {
            return Err(FollowError::Receipt("what it says came out is beyond the work's limits"));
        }
        let cost = ran.cost(&attempt.prices, &work.limits);
        self.count(job, at, attempt, cell, cost, true).await?;
        Ok((signed.raw().clone(), ran.clone()))
    }
}
