//! Job: the client's side of compute. match -> fund -> send materials -> order -> watch and pay -> receipt -> check -> fetch.
//!
//! **Participants.** The user names work and what it may cost. Providers run it. For a part of all jobs this node, or a further provider, runs the
//! same again; copies at several providers are compared.
//!
//! **Goals.** A job goes through: what a provider fails at goes to another, and a stop of this node cuts nothing short for good. Nothing is paid before it
//! is counted, or beyond what the user allows. A wrong result is noticed, kept with its signatures, and held against its provider.
//! **Non-goals.** Hiding work from those who run it: they see module, inputs and outputs.

mod check;
mod dispute;
mod follow;
mod record;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use spare_market::amount::Amount;
use spare_market::dispute::DISPUTE_WINDOW_S;
use spare_market::hire::{Candidate, Passed, Wish, choose, why_passed};
use spare_market::job::{JobId, Order, OrderV1, WorkError};
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{NetworkId, Signed};
use tokio::sync::Semaphore;

use crate::chain::Chain;
use crate::client::Client;
use crate::deals::{DealError, Hire, OpenOrder};
use crate::home::Identity;
use crate::limits::{ORDERS_AT_ONCE_MAX, ORDERS_KEPT_MAX};
use crate::market::Wallet;
use crate::materials::{MaterialError, Materials};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::unix_now_s;
use crate::work::Workshop;

use check::FetchError;
pub(crate) use check::rerun;
pub use check::{Bundle, BundleError, Verdict};
use record::{Attempt, Record};
pub use record::{Checked, CheckedBy, Job, JobKey, OrderView, Outcome, Spec, Stage, View};

const KEY_PREFIX: &[u8] = b"client ";

/// How long a provider may let a job wait before it is to begin.
const BEGIN_WITHIN_S: u64 = 3600;
/// Orders that fail before a job does.
const FAILED_ORDERS_MAX: usize = 6;
/// Longest label of a job, in bytes.
const LABEL_MAX_BYTES: usize = 256;
/// Most providers that run one job.
const COPIES_MAX: u8 = 16;
/// How long a provider may take to stop a job.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How long providers are looked for when none is known.
const LOOK_FOR: Duration = Duration::from_secs(10);

/// Why a job cannot be taken on.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// No program can be given that.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// What is to be checked cannot be.
    #[error("{0}")]
    Checks(&'static str),
    /// Bytes are missing.
    #[error("{0} of the files that the work needs are not here; send them first")]
    Missing(usize),
    /// Too many jobs.
    #[error("{ORDERS_KEPT_MAX} jobs are under way; wait for some to end")]
    Many,
    /// There is no such job.
    #[error("there is no such job; `spare job ls` lists them")]
    NoJob,
    /// The job is not over.
    #[error("the job is not over; stop it with `spare job cancel`, or wait")]
    NotOver,
    /// Bytes cannot be kept or read.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The local records failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// What jobs of a client are made of.
pub struct Setup {
    /// Who the client is.
    pub identity: Arc<Identity>,
    /// Who is asked when results differ.
    pub verifiers: Vec<PublicKey>,
    /// Peers and deals.
    pub client: Arc<Client>,
    /// The ledger.
    pub chain: Arc<Chain>,
    /// Signs transactions.
    pub wallet: Arc<Wallet>,
    /// Where jobs are noted.
    pub meta: Arc<Meta>,
    /// Where their bytes are.
    pub materials: Arc<Materials>,
    /// Where they are run again.
    pub workshop: Arc<OpenWorkshop>,
}

/// The jobs of this client.
pub struct Orders {
    network: NetworkId,
    account: PublicKey,
    node_key: SigningSecret,
    /// Who is asked when results differ.
    verifiers: Vec<PublicKey>,
    client: Arc<Client>,
    chain: Arc<Chain>,
    wallet: Arc<Wallet>,
    meta: Arc<Meta>,
    materials: Arc<Materials>,
    workshop: Arc<OpenWorkshop>,
    jobs: Mutex<BTreeMap<JobKey, Arc<Job>>>,
    places: Semaphore,
}

/// A workshop that is opened when it is first needed: most clients run nothing themselves.
pub struct OpenWorkshop {
    open: Box<dyn Fn() -> Result<Workshop, crate::work::WorkFailure> + Send + Sync>,
    opened: Mutex<Option<Arc<Workshop>>>,
}

impl OpenWorkshop {
    /// One that `open` opens.
    pub fn new(
        open: impl Fn() -> Result<Workshop, crate::work::WorkFailure> + Send + Sync + 'static,
    ) -> Self {
        Self { open: Box::new(open), opened: Mutex::default() }
    }

    /// The workshop, opened now or before. Blocks.
    ///
    /// # Errors
    /// What opening it gives.
    pub fn get(&self) -> Result<Arc<Workshop>, crate::work::WorkFailure> {
        let mut opened = self.opened.lock().expect("no holder panics");
        if let Some(workshop) = &*opened {
            return Ok(workshop.clone());
        }
        let workshop = Arc::new((self.open)()?);
        *opened = Some(workshop.clone());
        Ok(workshop)
    }
}

fn record_key(key: JobKey) -> Vec<u8> {
    [KEY_PREFIX, &key.0].concat()
}

impl Orders {
    /// The jobs in `meta`.
    ///
    /// # Errors
    /// When the local records cannot be read.
    pub fn open(setup: Setup) -> Result<Self, JobError> {
        let Setup { identity, verifiers, client, chain, wallet, meta, materials, workshop } = setup;
        let account = identity.account;
        let mut jobs = BTreeMap::new();
        for (rest, record) in meta.all::<Record>(Table::Jobs, KEY_PREFIX)? {
            if let Ok(key) = rest.as_slice().try_into().map(JobKey) {
                jobs.insert(key, Job::new(key, record));
            }
        }
        let orders = Self {
            network: identity.network,
            account,
            node_key: identity.node_key(),
            verifiers,
            client,
            chain,
            wallet,
            meta,
            materials,
            workshop,
            jobs: Mutex::new(jobs),
            places: Semaphore::new(ORDERS_AT_ONCE_MAX),
        };
        let mut known = HashMap::new();
        for job in orders.all() {
            job.pin(orders.materials.pin(account, job.materials()));
            known.extend(job.known_orders());
        }
        // What a crash left on a tab and nowhere else.
        let of = |id: &JobId| known.get(id).copied().unwrap_or(OpenOrder::Unknown);
        if let Err(error) = orders.client.deals.end_jobs(of) {
            tracing::error!(%error, "jobs that are over could not be taken off their tabs");
        }
        Ok(orders)
    }

    /// Goes on with the jobs that are not over.
    pub fn resume(self: &Arc<Self>) {
        for job in self.all() {
            // What was found out before this node was stopped may not have gone to the ledger.
            for (at, finding) in job.open_disputes() {
                self.dispute(&job, at, finding);
            }
            if job.outcome().is_none() {
                self.start(job);
            }
        }
    }

    /// Bytes of this client's jobs.
    pub fn materials(&self) -> &Arc<Materials> {
        &self.materials
    }

    /// The account that they belong to.
    pub fn account(&self) -> PublicKey {
        self.account
    }

    /// All jobs, oldest first.
    pub fn all(&self) -> Vec<Arc<Job>> {
        let mut all: Vec<Arc<Job>> = self.jobs.lock().expect("no holder panics").values().cloned().collect();
        all.sort_by_key(|job| (job.created_ms(), job.key));
        all
    }

    /// The job `key`.
    ///
    /// # Errors
    /// [`JobError::NoJob`].
    pub fn get(&self, key: JobKey) -> Result<Arc<Job>, JobError> {
        self.jobs.lock().expect("no holder panics").get(&key).cloned().ok_or(JobError::NoJob)
    }

    /// Takes a job on. Durable when it returns.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn submit(self: &Arc<Self>, spec: Spec) -> Result<Arc<Job>, JobError> {
        spec.work.check()?;
        spec.check()?;
        let missing = spec.work.materials().filter(|m| !self.materials.has(&self.account, m)).count();
        if missing > 0 {
            return Err(JobError::Missing(missing));
        }
        self.forget_old()?;
        let job = Job::new(JobKey(rand::random()), Record::new(spec));
        job.pin(self.materials.pin(self.account, job.materials()));
        self.keep(&job)?;
        self.jobs.lock().expect("no holder panics").insert(job.key, job.clone());
        self.start(job.clone());
        Ok(job)
    }

    /// Makes room for one more job: the oldest that are over go.
    fn forget_old(&self) -> Result<(), JobError> {
        let all = self.all();
        if all.len() < ORDERS_KEPT_MAX {
            return Ok(());
        }
        let oldest = all.iter().find(|job| job.outcome().is_some()).ok_or(JobError::Many)?;
        self.remove(oldest.key)
    }

    /// Forgets a job that is over, with what came out of it.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn remove(&self, key: JobKey) -> Result<(), JobError> {
        if self.get(key)?.outcome().is_none() {
            return Err(JobError::NotOver);
        }
        self.meta.commit(Batch::default().delete(Table::Jobs, &record_key(key)))?;
        self.jobs.lock().expect("no holder panics").remove(&key);
        Ok(())
    }

    fn keep(&self, job: &Job) -> Result<(), MetaError> {
        self.meta.commit(Batch::default().put(Table::Jobs, &record_key(job.key), &job.record()))
    }

    fn start(self: &Arc<Self>, job: Arc<Job>) {
        let orders = self.clone();
        tokio::spawn(async move {
            let (carrying, carried) = (orders.clone(), job.clone());
            // A task of its own, so that whatever goes wrong in it, the job is over.
            let carrying = tokio::spawn(async move {
                let carrying_through = async {
                    let _place = carrying.places.acquire().await.expect("the semaphore is never closed");
                    carrying.carry_through(&carried).await
                };
                tokio::select! {
                    outcome = carrying_through => outcome,
                    () = carried.is_cancelled() => Outcome::Cancelled,
                }
            });
            let outcome = carrying.await.unwrap_or_else(|error| {
                tracing::error!(%error, job = %job.key, "a job ended abnormally");
                Outcome::Failed("it ended abnormally; the log says more".to_owned())
            });
            orders.stop_all(&job).await;
            orders.unlock(&job);
            job.finish(outcome);
            if let Err(error) = orders.keep(&job) {
                tracing::error!(%error, "a job's end could not be noted; it is looked into again after a restart");
            }
            job.tell();
        });
    }

    /// Everything that happens to a job, one step after the other. Who does not hand over what it was paid for is replaced.
    async fn carry_through(self: &Arc<Self>, job: &Arc<Job>) -> Outcome {
        loop {
            if let Err(why) = self.order_and_follow(job).await {
                return Outcome::Failed(why);
            }
            job.set_stage(Stage::Checking);
            let result = match self.check(job).await {
                Ok(result) => result,
                Err(why) => return Outcome::Failed(why),
            };
            job.set_stage(Stage::Fetching);
            match self.fetch(job, result).await {
                Ok(done) => return done,
                Err(FetchError::Here(why)) => return Outcome::Failed(why),
                Err(FetchError::Withheld(withheld)) => {
                    for (at, why) in withheld {
                        let node = job.attempt(at).node;
                        self.client.peers.standings.abandoned(&node, job.spec().work.id(), &why);
                        job.attempt_failed(at, why);
                    }
                }
            }
        }
    }

    /// Lets go of collateral that was locked for orders whose results nobody disputes.
    fn unlock(&self, job: &Job) {
        let disputed: Vec<usize> = job.open_disputes().into_iter().map(|(at, _)| at).collect();
        for at in (0..job.attempt_count()).filter(|at| !disputed.contains(at)) {
            let attempt = job.attempt(at);
            if let Some(cell) = self.client.deals.cell(attempt.deal)
                && let Err(error) = self.client.deals.unlock(&cell, &attempt.id)
            {
                tracing::error!(%error, "a deal could not be noted");
            }
        }
    }

    /// Has as many providers run the work as are wanted, each to its receipt.
    async fn order_and_follow(&self, job: &Arc<Job>) -> Result<(), String> {
        let mut failures: BTreeMap<PublicKey, String> = job.failures();
        loop {
            let wanted = usize::from(job.spec().copies);
            let (receipts, open) = (job.receipts().len(), job.open_attempts());
            let lacking = wanted.saturating_sub(receipts + open.len());
            if lacking > 0 {
                job.set_stage(Stage::Matching);
                self.order_more(job, lacking, &mut failures).await?;
            }
            let open = job.open_attempts();
            if open.is_empty() && job.receipts().len() >= wanted {
                return Ok(());
            }
            let following = open.into_iter().map(|at| async move { (at, self.follow(job, at).await) });
            for (at, followed) in futures::future::join_all(following).await {
                if let Err(error) = followed {
                    let node = job.attempt(at).node;
                    tracing::info!(job = %job.key, %node, %error, "an order failed");
                    failures.insert(node, error.to_string());
                    job.attempt_failed(at, error.to_string());
                    self.keep(job).map_err(|e| e.to_string())?;
                }
            }
            if failures.len() >= FAILED_ORDERS_MAX {
                return Err(format!("{} providers failed: {}", failures.len(), list(&failures)));
            }
        }
    }

    /// Orders the work from `count` further providers.
    async fn order_more(
        &self,
        job: &Arc<Job>,
        count: usize,
        failures: &mut BTreeMap<PublicKey, String>,
    ) -> Result<(), String> {
        let spec = job.spec();
        let mut left = count;
        while left > 0 {
            let taken = job.nodes_in_use();
            let chosen = self.choose(spec, left, &taken, failures).await?;
            for candidate in chosen {
                match self.order(job, &candidate).await {
                    Ok(()) => left -= 1,
                    Err(error) if error.concerns_all() => return Err(error.to_string()),
                    Err(error) => drop(failures.insert(candidate.node, error.to_string())),
                }
            }
            if failures.len() >= FAILED_ORDERS_MAX {
                return Err(format!("{} providers failed: {}", failures.len(), list(failures)));
            }
        }
        Ok(())
    }

    /// Chooses providers, or says why there are none.
    async fn choose(
        &self,
        spec: &Spec,
        count: usize,
        taken: &[PublicKey],
        failures: &BTreeMap<PublicKey, String>,
    ) -> Result<Vec<Candidate>, String> {
        let wish = spec.wish(count);
        let may = |c: &Candidate| spec.node.is_none_or(|node| node == c.node);
        let can = |c: &Candidate| may(c) && wish.obstacle(c).is_none() && !failures.contains_key(&c.node);
        let enough = |client: &Client| {
            let hands = client.peers.hands();
            let found = hands.iter().filter(|c| can(c)).count();
            // Where none of those that run jobs can, none will be able to in a moment.
            found >= count + taken.len() || (found == 0 && hands.iter().any(|c| c.compute.is_some()))
        };
        let _ = tokio::time::timeout(LOOK_FOR, self.client.find_providers(enough)).await;
        let candidates = self.hands();
        let taken: Vec<Candidate> =
            self.client.peers.hands().into_iter().filter(|c| taken.contains(&c.node)).collect();
        let open = candidates.iter().filter(|c| !taken.iter().any(|t| t.node == c.node)).cloned();
        let open: Vec<Candidate> = open.filter(|c| may(c) && !failures.contains_key(&c.node)).collect();
        choose(&open, &taken, &wish, &rand::random()).map_err(|error| {
            // As many as there can be, to show who is in whose way.
            let fewer = Wish { providers: error.found, ..wish };
            let chosen = choose(&open, &taken, &fewer, &rand::random()).unwrap_or_default();
            let chosen = [taken, chosen].concat();
            let reasons = candidates.iter().map(|c| {
                let why = match why_passed(c, &chosen, &wish) {
                    _ if failures.contains_key(&c.node) => format!("failed: {}", failures[&c.node]),
                    _ if !may(c) => "not the one asked for".to_owned(),
                    Some(passed) => words(&passed),
                    None => "can run it".to_owned(),
                };
                (why, format!("{} ({})", short(&c.node), c.operator))
            });
            let mut by_reason: BTreeMap<String, Vec<String>> = BTreeMap::new();
            reasons.for_each(|(why, who)| by_reason.entry(why).or_default().push(who));
            let reasons: Vec<String> =
                by_reason.iter().map(|(why, who)| format!("{}: {why}", who.join(", "))).collect();
            let reasons = if reasons.is_empty() { "none is known".to_owned() } else { reasons.join("; ") };
            format!("{error}: {reasons}")
        })
    }

    /// Providers that answer, and what they have free beside what is ordered from here: asks come seldom. Those that do not answer just now count only where there are
    /// no others.
    fn hands(&self) -> Vec<Candidate> {
        let mut ordered: HashMap<PublicKey, u16> = HashMap::new();
        for job in self.all().iter().filter(|job| job.outcome().is_none()) {
            for at in job.open_attempts() {
                *ordered.entry(job.attempt(at).node).or_default() += 1;
            }
        }
        let mut hands = self.client.peers.hands();
        for hand in &mut hands {
            let ordered = ordered.get(&hand.node).copied().unwrap_or(0);
            if let Some(compute) = &mut hand.compute {
                compute.free_slots = compute.free_slots.min(compute.slots.saturating_sub(ordered));
            }
        }
        if hands.iter().any(|hand| !self.client.peers.is_cooling(&hand.node)) {
            hands.retain(|hand| !self.client.peers.is_cooling(&hand.node));
        }
        hands
    }

    /// Orders the work from one provider: makes sure of the money, and signs.
    async fn order(&self, job: &Arc<Job>, candidate: &Candidate) -> Result<(), DealError> {
        let spec = job.spec();
        let now_s = unix_now_s();
        job.set_stage(Stage::Funding);
        let begin_by_s = now_s + BEGIN_WITHIN_S;
        let prices = candidate.compute.as_ref().map(|c| c.prices).unwrap_or_default();
        // Copies are compared each time.
        let percent = if spec.copies > 1 { 100 } else { spec.check_percent };
        let cost = prices.cost_max(&spec.work).0;
        let penalty = Amount(cost.saturating_mul(100).checked_div(u128::from(percent)).unwrap_or(0));
        let mut verifiers: Vec<PublicKey> =
            self.verifiers.iter().filter(|node| **node != candidate.node).copied().collect();
        if verifiers.len().is_multiple_of(2) {
            // An even number could be of two minds.
            verifiers.pop();
        }
        if !spec.work.is_deterministic {
            verifiers.clear();
        }
        let can_dispute = !verifiers.is_empty();
        if spec.is_secured && !can_dispute {
            return Err(DealError::NoVerifiers);
        }
        let penalty = if can_dispute { penalty } else { Amount::ZERO };
        let hire = Hire {
            node: candidate.node,
            work: &spec.work,
            cost_max: spec.cost_max,
            penalty,
            is_secured: spec.is_secured,
            disputable_until_s: begin_by_s + DISPUTE_WINDOW_S,
        };
        let sign = |deal, penalty| {
            let order = OrderV1 {
                deal,
                work: spec.work.id(),
                verifiers: verifiers.clone(),
                penalty,
                begin_by_s,
                salt: rand::random(),
            };
            Signed::new(Order::V1(order), self.network, &self.node_key)
        };
        let (cell, order, prices) = self.client.deals.hire(&hire, sign).await?;
        job.add_attempt(Attempt {
            node: candidate.node,
            deal: cell.id,
            order: order.raw().clone(),
            id: order.value().job_id(),
            prices,
            cost: Amount::ZERO,
            end: None,
            began: None,
            is_new: true,
        });
        self.keep(job)?;
        Ok(())
    }

    /// Which providers a job like this could go to, and why not to others.
    pub fn offers(&self, spec: &Spec) -> Vec<(Candidate, Option<Passed>)> {
        let wish = spec.wish(usize::from(spec.copies));
        let mut candidates = self.hands();
        candidates.retain(|c| spec.node.is_none_or(|node| node == c.node));
        let chosen = choose(&candidates, &[], &wish, &rand::random()).unwrap_or_default();
        let judged = candidates.into_iter().map(|c| {
            let why = why_passed(&c, &chosen, &wish);
            (c, why)
        });
        judged.collect()
    }

    /// Stops whatever of a job is under way, and pays for what was counted.
    async fn stop_all(&self, job: &Arc<Job>) {
        for at in job.open_attempts() {
            self.stop(job, at).await;
            job.attempt_failed(at, "it was stopped".to_owned());
        }
    }

    /// Stops an order at its provider, and pays for what was counted.
    async fn stop(&self, job: &Arc<Job>, at: usize) {
        let attempt = job.attempt(at);
        let cancelling = self
            .client
            .peers
            .with_session(&attempt.node, async |session| session.cancel_job(attempt.id).await);
        match tokio::time::timeout(STOP_WITHIN, cancelling).await {
            Ok(Ok(state)) => {
                let cost = state.cost.min(job.payable(at, state.fuel)).max(attempt.cost);
                if let Some(cell) = self.client.deals.cell(attempt.deal)
                    && let Err(error) = self.client.deals.count_job(&cell, &attempt.id, cost, true).await
                {
                    tracing::info!(%error, "a job that was stopped could not be paid for");
                }
                job.count(at, cost);
            }
            other => {
                if let Ok(Err(error)) = other {
                    tracing::info!(node = %attempt.node, %error, "a job could not be stopped at its provider");
                }
                self.end(&attempt).await;
            }
        }
    }

    /// Takes an order off its tab, with what was counted.
    async fn end(&self, attempt: &Attempt) {
        if let Some(cell) = self.client.deals.cell(attempt.deal)
            && let Err(error) = self.client.deals.end_job(&cell, &attempt.id).await
        {
            tracing::info!(node = %attempt.node, %error, "what an order cost could not be paid");
        }
    }
}

impl Spec {
    /// What is wanted of `providers` providers.
    fn wish(&self, providers: usize) -> Wish<'_> {
        Wish {
            providers,
            work: &self.work,
            cost_max: self.cost_max,
            configuration: self.is_compared().then(spare_sandbox::engine::configuration),
        }
    }

    /// Whether results of several runs may be compared.
    fn is_compared(&self) -> bool {
        self.copies > 1 || self.check_percent > 0
    }

    fn check(&self) -> Result<(), JobError> {
        if self.copies == 0 || self.agree == 0 || self.agree > self.copies {
            return Err(JobError::Checks(
                "of the copies of a job, at least one and at most all have to agree",
            ));
        }
        if self.copies > COPIES_MAX {
            return Err(JobError::Checks("a job has 16 copies at most"));
        }
        if self.copies > 1 && self.agree * 2 <= self.copies {
            return Err(JobError::Checks("more than half of the copies of a job have to agree"));
        }
        if self.label.len() > LABEL_MAX_BYTES || self.label.chars().any(char::is_control) {
            return Err(JobError::Checks("a label has 256 bytes at most, and no control characters"));
        }
        if self.is_secured && !self.is_compared() {
            return Err(JobError::Checks(
                "a pledge secures only what is checked; leave out --secured, or allow checks (--check)",
            ));
        }
        if self.check_percent > 100 {
            return Err(JobError::Checks("at most 100 percent of jobs can be checked"));
        }
        if !self.work.is_deterministic && (self.copies > 1 || self.check_percent > 0) {
            let why = "work that gets the machine's clock and random bytes cannot be checked; leave out --free, or the checks (--check 0)";
            return Err(JobError::Checks(why));
        }
        Ok(())
    }
}

/// The beginning of a node key, for people.
pub fn short(node: &PublicKey) -> String {
    node.to_string()[..12].to_owned()
}

fn list(failures: &BTreeMap<PublicKey, String>) -> String {
    let each = failures.iter().map(|(node, why)| format!("{}: {why}", short(node)));
    each.collect::<Vec<_>>().join("; ")
}

/// Why a provider is not hired, for people.
pub fn words(passed: &Passed) -> String {
    match passed {
        Passed::NoCompute => "runs no jobs".to_owned(),
        Passed::OtherEngine => {
            "runs another engine, so results cannot be compared; --check 0 takes it".to_owned()
        }
        Passed::Memory { needed_bytes, most_bytes } => format!(
            "gives a job {most_bytes} bytes of memory at most, and this one needs {needed_bytes} with all that goes in and comes out; see --memory and --output-max"
        ),
        Passed::Output { most_bytes } => {
            format!("takes {most_bytes} bytes of output at most; see --output-max")
        }
        Passed::Expensive { cost } => {
            format!("may cost {cost} credits; see --max-cost, or allow less with --fuel and --memory")
        }
        Passed::Struck => "failed again and again, or signed a wrong result; see `spare audit`".to_owned(),
        Passed::Neighbour(node) => {
            format!("shares its operator or network with {}, which is chosen", short(node))
        }
        Passed::NotDrawn => "could run it".to_owned(),
    }
}
