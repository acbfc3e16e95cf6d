//! Jobs: the provider's side of compute. Order -> wait -> compile -> run -> receipt.
//!
//! **Participants.** A client sends what its work needs, then the order, then watches, pays as it goes, and fetches what came out. Workers
//! run it ([`work`](crate::work)).
//!
//! **Goals.** No order is lost: it is durable before it is answered, and a job that a stop or a crash cut short begins again. Nobody works unpaid beyond one
//! step: a job stands still while more is unpaid. No client's jobs keep another's from their turn. No job begins for which the machine has no memory.
//! **Non-goals.** Choosing clients, and judging what their programs are for.
//!
//! Everything here but [`Jobs::run`] and [`Jobs::watch`] blocks.

mod entry;
mod queue;
mod turn;

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::deal::DealId;
use spare_market::job::{ComputePrices, JOBS_UNPAID_MAX, JobId, JobReceipt, Material, Order, Outputs, Work};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_proofs::encode::from_bytes;
use tokio::sync::Notify;

use crate::earn::Earner;
use crate::frames::{JobPhase, JobState, Refusal, RefusalCode};
use crate::limits::{
    JOB_BEGIN_WITHIN_MAX_S, JOB_INPUT_MAX_BYTES, JOB_LOG_MAX_BYTES, JOB_WATCH_WAIT, JOBS_KEPT_MAX,
    JOBS_KEPT_S, JOBS_WAITING_MAX, JOBS_WAITING_PER_CLIENT_MAX,
};
use crate::materials::{MaterialError, Materials};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::unix_now_s;
use crate::work::{MODULE_MAX_BYTES, Workshop};

use entry::Entry;
use queue::Queue;
pub(crate) use turn::wall;

/// What the keys of a provider's jobs begin with.
pub const KEY_PREFIX: &[u8] = b"provider ";

/// What a provider runs jobs on, and for how much.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Prices, for new deals.
    pub prices: ComputePrices,
    /// Jobs that run at the same time.
    pub slots: usize,
    /// Memory that all jobs at once may use, in bytes.
    pub memory_bytes: u64,
    /// Most bytes of output of a job.
    pub output_bytes: u64,
    /// Verifiers that an order may name.
    pub verifiers: Vec<PublicKey>,
}

/// A job as it is kept, under `provider ` and its id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// The first version.
    V1 {
        /// Whose it is.
        client: PublicKey,
        /// The order, signed by the client.
        order: SignedBytes,
        /// The work.
        work: Work,
        /// Unix time in seconds at which the order was taken.
        taken_s: u64,
        /// How it ended, if it has.
        over: Option<Over>,
    },
}

/// How a job ended, and the unix time in seconds at which it did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each is one phase of the protocol's")]
pub enum Over {
    Ended { receipt: SignedBytes, at_s: u64 },
    Failed { why: String, at_s: u64 },
    Cancelled { at_s: u64 },
}

impl Over {
    fn at_s(&self) -> u64 {
        match self {
            Self::Ended { at_s, .. } | Self::Failed { at_s, .. } | Self::Cancelled { at_s } => *at_s,
        }
    }

    fn phase(&self) -> JobPhase {
        match self {
            Self::Ended { receipt, .. } => JobPhase::Ended(receipt.clone()),
            Self::Failed { why, .. } => JobPhase::Failed(why.clone()),
            Self::Cancelled { .. } => JobPhase::Cancelled,
        }
    }
}

/// Why jobs cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum JobsError {
    /// The local records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// A record does not hold any more.
    #[error("a job's record does not hold: {0}")]
    Record(#[from] spare_market::signed::SignedError),
}

/// What a provider's jobs come to since it was started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Jobs that ran to their end.
    pub ended: u64,
    /// Jobs that could not be carried out.
    pub failed: u64,
    /// Orders that were refused.
    pub refused: u64,
}

/// A job as its provider lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The job.
    pub job: JobId,
    /// Its client.
    pub client: PublicKey,
    /// Where it is.
    pub phase: JobPhase,
    /// Fuel used so far.
    pub fuel: u64,
    /// What it has cost so far.
    pub cost: Amount,
}

/// The jobs of a provider.
pub struct Jobs {
    network: NetworkId,
    node_key: SigningSecret,
    offer: Offer,
    earner: Arc<Earner>,
    meta: Arc<Meta>,
    materials: Arc<Materials>,
    workshop: Arc<Workshop>,
    entries: Mutex<BTreeMap<JobId, Arc<Entry>>>,
    queue: Mutex<Queue>,
    /// There may be something to begin.
    wake: Notify,
    counts: Mutex<Counts>,
    /// Held while an order is taken, so that the same one is not taken twice.
    taking: Mutex<()>,
    /// Whether the node stops: what runs is begun again at the next start.
    is_closing: AtomicBool,
}

fn record_key(id: &JobId) -> Vec<u8> {
    [KEY_PREFIX, &id.0].concat()
}

fn bad(why: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::BadOrder, why)
}

fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "a job's records failed");
    Refusal::new(RefusalCode::Unavailable, error.to_string())
}

/// The refusal to send when bytes cannot be kept or read.
pub fn refusal_of(error: &MaterialError) -> Refusal {
    let code = match error {
        MaterialError::NoRoom { .. } => RefusalCode::NoRoom,
        MaterialError::NotHere(_) => RefusalCode::NotHere,
        MaterialError::Other(_) => RefusalCode::BadOrder,
        MaterialError::Io(_) => RefusalCode::Unavailable,
    };
    Refusal::new(code, error.to_string())
}

impl Jobs {
    /// The jobs in `meta`. Those that have not ended wait again.
    ///
    /// # Errors
    /// When the local records cannot be read.
    pub fn open(
        network: NetworkId,
        node_key: SigningSecret,
        offer: Offer,
        earner: Arc<Earner>,
        meta: Arc<Meta>,
        materials: Arc<Materials>,
        workshop: Arc<Workshop>,
    ) -> Result<Self, JobsError> {
        let queue = Queue::new(offer.slots, offer.memory_bytes);
        let jobs = Self {
            network,
            node_key,
            offer,
            earner,
            meta,
            materials,
            workshop,
            entries: Mutex::default(),
            queue: Mutex::new(queue),
            wake: Notify::new(),
            counts: Mutex::default(),
            taking: Mutex::default(),
            is_closing: AtomicBool::new(false),
        };
        let mut waiting = Vec::new();
        for (_, Record::V1 { client, order, work, taken_s, over }) in
            jobs.meta.all::<Record>(Table::Jobs, KEY_PREFIX)?
        {
            let order = order.check::<Order>(network)?;
            let entry = Entry::new(client, order, work, taken_s, over);
            if !entry.is_over() {
                entry.pin(jobs.materials.pin(client, entry.work.materials()));
                waiting.push((taken_s, entry.clone()));
            }
            jobs.entries().insert(entry.id, entry);
        }
        // What a crash left on a tab and nowhere else.
        for (deal, job) in jobs.earner.open_jobs() {
            if jobs.entry(&job).is_none_or(|entry| entry.is_over())
                && let Err(refusal) = jobs.earner.end_job(deal, &job)
            {
                tracing::error!(%refusal, %job, "a job that is over could not be taken off its tab");
            }
        }
        waiting.sort_by_key(|(taken_s, _)| *taken_s);
        for (_, entry) in waiting {
            jobs.queue().push(entry);
        }
        Ok(jobs)
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<JobId, Arc<Entry>>> {
        self.entries.lock().expect("no holder panics")
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().expect("no holder panics")
    }

    fn entry(&self, id: &JobId) -> Option<Arc<Entry>> {
        self.entries().get(id).cloned()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        change(&mut self.counts.lock().expect("no holder panics"));
    }

    /// What it runs jobs on.
    pub fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Where bytes of jobs are.
    pub fn materials(&self) -> &Arc<Materials> {
        &self.materials
    }

    /// Places that are free, once all that wait have one.
    pub fn free_slots(&self) -> usize {
        self.queue().free_slots()
    }

    /// What came of all jobs since the start.
    pub fn counts(&self) -> Counts {
        *self.counts.lock().expect("no holder panics")
    }

    /// Jobs that are not over, those that run first.
    pub fn open_jobs(&self) -> Vec<Listed> {
        let open: Vec<Arc<Entry>> =
            self.entries().values().filter(|entry| !entry.is_over()).cloned().collect();
        let mut listed: Vec<Listed> = open.iter().map(|entry| self.listed(entry)).collect();
        listed.sort_by_key(|job| match job.phase {
            JobPhase::Waiting { ahead, .. } => 1 + u64::from(ahead),
            _ => 0,
        });
        listed
    }

    fn listed(&self, entry: &Entry) -> Listed {
        let state = self.state_of(entry, 0, 0);
        let (phase, fuel, cost) = (state.phase, state.fuel, state.cost);
        Listed { job: entry.id, client: entry.client, phase, fuel, cost }
    }

    /// Takes an order: checks it, puts it on its deal's tab, and has it wait for its turn. The same order again changes nothing.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn order(&self, owner: &PublicKey, raw: SignedBytes, work: Work) -> Result<JobState, Refusal> {
        let taken = self.take(owner, raw, work);
        // That bytes have to be sent first is no refusal.
        if let Err(refusal) = taken.as_ref().map_err(Clone::clone)
            && refusal.code != RefusalCode::MaterialsMissing
        {
            tracing::info!(client = %owner, %refusal, "an order was refused");
            self.count(|counts| counts.refused += 1);
        }
        taken
    }

    fn take(&self, owner: &PublicKey, raw: SignedBytes, work: Work) -> Result<JobState, Refusal> {
        let order = raw.check::<Order>(self.network).map_err(|e| bad(e.to_string()))?;
        let _taking = self.taking.lock().expect("no holder panics");
        if let Some(entry) = self.entry(&order.value().job_id()) {
            return self.owned(owner, &entry).map(|entry| self.state_of(entry, 0, 0));
        }
        self.check(&order, &work)?;
        if !work.materials().all(|material| self.materials.has(owner, &material)) {
            let why = "bytes that the work needs are not here; send them first";
            return Err(Refusal::new(RefusalCode::MaterialsMissing, why));
        }
        let (of_client, of_all) = self.queue().waiting_of(owner);
        if of_client >= JOBS_WAITING_PER_CLIENT_MAX || of_all >= JOBS_WAITING_MAX {
            let why = format!("{of_client} jobs of yours wait here, {of_all} in all; no more are taken");
            return Err(Refusal::new(RefusalCode::Busy, why));
        }
        self.earner.begin_job(owner, &order, &work)?;
        let entry = Entry::new(*owner, order, work, unix_now_s(), None);
        if let Err(error) =
            self.meta.commit(Batch::default().put(Table::Jobs, &record_key(&entry.id), &entry.record()))
        {
            // Without a record it is not to stay on the tab.
            let _ = self.earner.end_job(entry.order.v1().deal, &entry.id);
            return Err(internal(error));
        }
        entry.pin(self.materials.pin(*owner, entry.work.materials()));
        self.entries().insert(entry.id, entry.clone());
        self.queue().push(entry.clone());
        self.wake.notify_one();
        Ok(self.state_of(&entry, 0, 0))
    }

    /// Checks that `owner` has a deal under which jobs can be ordered.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn check_deal(&self, owner: &PublicKey, deal: DealId) -> Result<(), Refusal> {
        self.earner.check_job_deal(owner, deal)
    }

    /// Checks what does not depend on a deal.
    fn check(&self, order: &Signed<Order>, work: &Work) -> Result<(), Refusal> {
        order.value().check().map_err(|e| bad(e.to_string()))?;
        let v1 = order.value().v1();
        if v1.work != work.id() {
            return Err(bad("the order is for other work"));
        }
        work.check().map_err(|e| bad(e.to_string()))?;
        if let Some(stranger) = v1.verifiers.iter().find(|v| !self.offer.verifiers.contains(v)) {
            return Err(bad(format!("{stranger} is no verifier that is accepted here")));
        }
        if v1.begin_by_s <= unix_now_s() {
            return Err(bad("the order was to be begun before now"));
        }
        if v1.begin_by_s > unix_now_s() + JOB_BEGIN_WITHIN_MAX_S {
            return Err(bad(format!("an order lets a provider wait {JOB_BEGIN_WITHIN_MAX_S} s at most")));
        }
        let limits = &work.limits;
        let inputs = work.materials().skip(1).fold(0_u64, |sum, m| sum.saturating_add(m.bytes));
        for (what, wanted, most) in [
            ("memory", work.needed_bytes(), self.offer.memory_bytes),
            ("output", limits.output_bytes, self.offer.output_bytes),
            ("printed text", limits.log_bytes, JOB_LOG_MAX_BYTES),
            ("module", work.module.bytes, MODULE_MAX_BYTES),
            ("inputs", inputs, JOB_INPUT_MAX_BYTES),
        ] {
            if wanted > most {
                let why = format!("{wanted} bytes of {what} are wanted, {most} are the most here");
                return Err(Refusal::new(RefusalCode::TooLarge, why));
            }
        }
        Ok(())
    }

    fn owned<'a>(&self, owner: &PublicKey, entry: &'a Arc<Entry>) -> Result<&'a Arc<Entry>, Refusal> {
        if entry.client == *owner { Ok(entry) } else { Err(no_job()) }
    }

    fn find(&self, owner: &PublicKey, id: &JobId) -> Result<Arc<Entry>, Refusal> {
        let entry = self.entry(id).ok_or_else(no_job)?;
        self.owned(owner, &entry).cloned()
    }

    /// How a job is, with what was printed from where the asker wants it.
    fn state_of(&self, entry: &Entry, stdout_from: u64, stderr_from: u64) -> JobState {
        let mut state = entry.state(stdout_from, stderr_from);
        if matches!(state.phase, JobPhase::Waiting { .. }) {
            state.phase = self.queue().waiting(&entry.id);
        }
        state
    }

    /// How a job is, as soon as that is not what the asker has seen, or after a while.
    ///
    /// # Errors
    /// The refusal to send.
    pub async fn watch(
        &self,
        owner: &PublicKey,
        id: JobId,
        seen: u64,
        stdout_from: u64,
        stderr_from: u64,
    ) -> Result<JobState, Refusal> {
        let entry = self.find(owner, &id)?;
        let news = entry.news(seen, stdout_from, stderr_from);
        // However that ends, what there is now is told.
        let _ = tokio::time::timeout(JOB_WATCH_WAIT, news).await;
        Ok(self.state_of(&entry, stdout_from, stderr_from))
    }

    /// A file of bytes that came out of a job.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn bytes(&self, owner: &PublicKey, id: &JobId, material: &Material) -> Result<File, Refusal> {
        let entry = self.find(owner, id)?;
        if self.earner.unpaid_jobs(entry.order.v1().deal) > JOBS_UNPAID_MAX {
            return Err(Refusal::new(
                RefusalCode::PaymentDue,
                "jobs have cost more than is paid; send a voucher",
            ));
        }
        let ran = entry.ran(self.network).ok_or_else(no_job)?;
        let is_result = || -> Result<bool, MaterialError> {
            if [ran.stdout, ran.stderr, ran.outputs].contains(material) {
                return Ok(true);
            }
            let list = self.materials.read(owner, &ran.outputs)?;
            let listed = from_bytes::<Outputs>(&list, list.len()).unwrap_or_default();
            Ok(listed.0.iter().any(|(_, of)| of == material))
        };
        if !is_result().map_err(|error| refusal_of(&error))? {
            return Err(Refusal::new(RefusalCode::NotHere, "no such bytes came out of that job"));
        }
        self.materials.file(owner, material).map_err(|error| refusal_of(&error))
    }

    /// Stops a job.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn cancel(&self, owner: &PublicKey, id: &JobId) -> Result<JobState, Refusal> {
        let entry = self.find(owner, id)?;
        entry.stop.stop();
        if self.queue().remove(id) {
            self.finish(&entry, Over::Cancelled { at_s: unix_now_s() }, None);
        }
        Ok(self.state_of(&entry, 0, 0))
    }

    /// Notes how a job ended, and what it has cost in the end.
    fn finish(&self, entry: &Entry, over: Over, cost: Option<Amount>) {
        let deal = entry.order.v1().deal;
        let counted = match cost {
            Some(cost) => self.earner.count_job(deal, &entry.id, cost, true),
            None => self.earner.end_job(deal, &entry.id),
        };
        if let Err(refusal) = counted {
            tracing::warn!(job = %entry.id, %refusal, "what a job cost could not be counted");
            // It must not stay on the tab.
            let _ = self.earner.end_job(deal, &entry.id);
        }
        match &over {
            Over::Ended { .. } => self.count(|counts| counts.ended += 1),
            Over::Failed { why, .. } => {
                tracing::warn!(job = %entry.id, why, "a job failed");
                self.count(|counts| counts.failed += 1);
            }
            Over::Cancelled { .. } => {}
        }
        entry.finish(over, cost);
        let mut batch = Batch::default();
        let kept = self.meta.commit(batch.put(Table::Jobs, &record_key(&entry.id), &entry.record()));
        if let Err(error) = kept {
            tracing::error!(%error, job = %entry.id, "a job's end could not be noted; it runs again after a restart");
        }
        entry.tell();
    }

    /// Forgets jobs that ended long ago, and the oldest when there are many.
    fn forget_old(&self) {
        let now_s = unix_now_s();
        let mut entries = self.entries();
        let mut over: Vec<(u64, JobId)> =
            entries.values().filter_map(|entry| Some((entry.over_at_s()?, entry.id))).collect();
        for entry in entries.values() {
            entry.unpin_after(now_s);
        }
        if over.len() <= JOBS_KEPT_MAX && over.iter().all(|(at_s, _)| at_s + JOBS_KEPT_S > now_s) {
            return;
        }
        over.sort_unstable();
        let surplus = over.len().saturating_sub(JOBS_KEPT_MAX);
        let mut batch = Batch::default();
        for (i, (at_s, id)) in over.into_iter().enumerate() {
            if i < surplus || at_s + JOBS_KEPT_S <= now_s {
                entries.remove(&id);
                batch.delete(Table::Jobs, &record_key(&id));
            }
        }
        if let Err(error) = self.meta.note(&batch) {
            tracing::error!(%error, "old jobs could not be forgotten");
        }
    }

    /// Begins jobs as places come free, for as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let jobs = self.clone();
            let beginning = tokio::task::spawn_blocking(move || {
                jobs.forget_old();
                std::iter::from_fn(|| jobs.next()).collect::<Vec<_>>()
            });
            for entry in beginning.await.unwrap_or_default() {
                tokio::spawn(self.clone().turn(entry));
            }
            // Memory may have come free, or somebody's time may be over.
            let _ = tokio::time::timeout(Duration::from_secs(1), self.wake.notified()).await;
        }
    }

    /// Ends what runs, since the node stops. It begins again at the next start.
    pub fn close(&self) {
        self.is_closing.store(true, Ordering::Relaxed);
        for entry in self.queue().running() {
            entry.stop.stop();
        }
    }

    /// One job's turn, whatever happens in it.
    async fn turn(self: Arc<Self>, entry: Arc<Entry>) {
        let (jobs, carried) = (self.clone(), entry.clone());
        let ended = tokio::task::spawn_blocking(move || jobs.carry_out(&carried)).await;
        if let Ok(false) = ended {
            // All workers were busy with something else.
            self.queue().put_back(entry);
            tokio::time::sleep(Duration::from_secs(1)).await;
        } else {
            self.queue().ended(&entry);
        }
        if let Err(error) = ended {
            tracing::error!(%error, "a job's turn ended abnormally");
        }
        self.wake.notify_one();
    }

    /// The next job to begin, if there is a place for it. Those whose time is over fail.
    fn next(&self) -> Option<Arc<Entry>> {
        if self.is_closing.load(Ordering::Relaxed) {
            return None;
        }
        let expired = self.queue().expired(unix_now_s());
        for entry in expired {
            let why = "it was not begun in the time that the order gives".to_owned();
            self.finish(&entry, Over::Failed { why, at_s: unix_now_s() }, None);
        }
        self.queue().next()
    }

    /// Signs what came out.
    fn receipt(&self, entry: &Entry, ran: spare_market::job::Ran, at_s: u64) -> SignedBytes {
        let receipt = JobReceipt::V1 { job: entry.id, ran, ended_s: at_s };
        Signed::new(receipt, self.network, &self.node_key).raw().clone()
    }
}

fn no_job() -> Refusal {
    Refusal::new(RefusalCode::NotHere, "there is no such job of yours here, or not any more")
}
