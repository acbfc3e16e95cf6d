//! A job of this client: what it is, what became of its orders, and how it is just now.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::deal::DealId;
use spare_market::dispute::DISPUTE_WINDOW_S;
use spare_market::job::{ComputePrices, JobId, Material, Ran, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::SignedBytes;
use tokio::sync::watch;

use crate::deals::OpenOrder;
use crate::limits::ORDER_LOG_KEPT_BYTES;
use crate::materials::Pins;

/// More fuel than any machine uses in a second.
const FASTEST_FUEL_PER_S: u64 = 20_000_000_000;

/// Names a job at this node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobKey(pub [u8; 8]);

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job {self}")
    }
}

impl FromStr for JobKey {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
        bytes
            .and_then(|b| b.try_into().ok())
            .map(Self)
            .ok_or_else(|| format!("'{text}' is no job; it has 16 hex digits"))
    }
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// What the user calls it.
    pub label: String,
    /// The work.
    pub work: Work,
    /// The most that one provider's run may cost.
    pub cost_max: Amount,
    /// Providers that run it.
    pub copies: u8,
    /// How many of them have to come to the same result, where they differ and this node cannot run it itself.
    pub agree: u8,
    /// How likely it is run again to check it, in percent.
    pub check_percent: u8,
    /// Who runs it again.
    pub check_by: CheckedBy,
    /// Whether a provider has to pledge enough collateral that cheating does not pay at that rate.
    pub is_secured: bool,
    /// The one provider that is to run it, if that matters.
    pub node: Option<PublicKey>,
}

/// Who runs a job again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum CheckedBy {
    /// This node.
    Here,
    /// Another provider.
    Provider,
}

/// An order to one provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Attempt {
    pub(super) node: PublicKey,
    pub(super) deal: DealId,
    pub(super) order: SignedBytes,
    pub(super) id: JobId,
    pub(super) prices: ComputePrices,
    pub(super) cost: Amount,
    pub(super) end: Option<End>,
    /// When it was first seen to run, by this process.
    #[serde(skip)]
    pub(super) began: Option<Instant>,
    /// Whether this process made it, so that its provider may never have heard of it.
    #[serde(skip)]
    pub(super) is_new: bool,
}

/// How an order ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum End {
    Receipt(SignedBytes, Box<Ran>),
    Failed(String),
}

/// Whether a result was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    /// It was not drawn to be checked.
    NotDrawn,
    /// It was run again, with the same result.
    Again(CheckedBy),
    /// So many providers came to the same result.
    Agreed(u8),
    /// It could not be run again, and why.
    NotPossible(String),
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Its program ran to an end.
    Done {
        /// What came out.
        ran: Box<Ran>,
        /// The order whose result it is; none if it is this node's own.
        attempt: Option<u32>,
        /// Whether it was checked.
        checked: Checked,
        /// Output files by path.
        outputs: Vec<(String, Material)>,
    },
    /// It could not be carried out, and why.
    Failed(String),
    /// It was stopped.
    Cancelled,
}

/// A job as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Record {
    /// The first version.
    V1 {
        spec: Spec,
        created_ms: u64,
        attempts: Vec<Attempt>,
        /// Those whose result was wrong, and what is right.
        wrong: Vec<(u32, [u8; 32])>,
        outcome: Option<Outcome>,
        ended_ms: u64,
    },
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

impl Record {
    pub(super) fn new(spec: Spec) -> Self {
        Self::V1 {
            spec,
            created_ms: now_ms(),
            attempts: Vec::new(),
            wrong: Vec::new(),
            outcome: None,
            ended_ms: 0,
        }
    }
}

/// Where a job is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stage {
    /// Other jobs of this node come first.
    Queued,
    /// Providers are chosen.
    Matching,
    /// A deal is made, or topped up.
    Funding,
    /// A provider does not take the order yet, and why. It is tried again for a while, and then another one.
    Ordering(String),
    /// What the work needs is sent.
    Sending {
        /// Bytes sent.
        sent_bytes: u64,
        /// Bytes to send.
        total_bytes: u64,
    },
    /// The provider has others first.
    Waiting {
        /// Jobs before it.
        ahead: u32,
        /// About how long, in seconds, if anything is known of it.
        wait_s: Option<u32>,
        /// What it waits for.
        why: String,
    },
    /// The provider compiles the program.
    Compiling,
    /// The program runs.
    Running,
    /// The provider waits to be paid.
    Paying,
    /// The provider does not answer at the moment.
    Lost,
    /// The result is checked.
    Checking,
    /// What came out is fetched.
    Fetching,
    /// It is over.
    Over,
}

impl Stage {
    /// For people and programs.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Matching => "matching",
            Self::Funding => "funding",
            Self::Ordering(_) => "ordering",
            Self::Sending { .. } => "sending",
            Self::Waiting { .. } => "waiting",
            Self::Compiling => "compiling",
            Self::Running => "running",
            Self::Paying => "paying",
            Self::Lost => "lost",
            Self::Checking => "checking",
            Self::Fetching => "fetching",
            Self::Over => "over",
        }
    }
}

/// What changes while a job runs.
struct Live {
    stage: Stage,
    fuel: u64,
    /// What was printed so far by the first copy, and where that begins.
    stdout: Log,
    stderr: Log,
}

/// What was printed, its end alone where it is long.
#[derive(Debug, Clone, Default)]
struct Log {
    bytes: Vec<u8>,
    /// Bytes before those.
    gone: u64,
}

impl Log {
    fn end(&self) -> u64 {
        self.gone + self.bytes.len() as u64
    }

    fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        let surplus = self.bytes.len().saturating_sub(ORDER_LOG_KEPT_BYTES);
        self.bytes.drain(..surplus);
        self.gone += surplus as u64;
    }

    /// What is kept from `from` on, and where that begins.
    fn from(&self, from: u64) -> (u64, &[u8]) {
        let skip = from.saturating_sub(self.gone).min(self.bytes.len() as u64);
        (self.gone + skip, &self.bytes[skip as usize..])
    }
}

/// A job of this client.
pub struct Job {
    /// Its name here.
    pub key: JobKey,
    spec: Spec,
    record: Mutex<Record>,
    live: Mutex<Live>,
    changed: watch::Sender<u64>,
    cancelled: watch::Sender<bool>,
    pins: Mutex<Vec<Pins>>,
}

/// An order at one moment, for those who show it.
#[derive(Debug, Clone)]
pub struct OrderView {
    /// The provider's node.
    pub provider: PublicKey,
    /// The job there.
    pub job: JobId,
    /// What it has cost so far.
    pub cost: Amount,
    /// The hash of what came out, by the provider's receipt.
    pub result: Option<[u8; 32]>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// Whether that result is wrong.
    pub is_wrong: bool,
}

/// A job at one moment, for those who show it.
#[derive(Debug, Clone)]
pub struct View {
    /// Changes with everything below.
    pub version: u64,
    /// Where it is.
    pub stage: Stage,
    /// Fuel used so far, by the first copy.
    pub fuel: u64,
    /// What all its orders have cost so far.
    pub cost: Amount,
    /// Its orders, oldest first.
    pub orders: Vec<OrderView>,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// When it was taken on, in milliseconds of unix time.
    pub created_ms: u64,
    /// When it ended.
    pub ended_ms: u64,
}

impl Job {
    pub(super) fn new(key: JobKey, record: Record) -> Arc<Self> {
        let Record::V1 { spec, outcome, .. } = &record;
        let stage = if outcome.is_some() { Stage::Over } else { Stage::Queued };
        Arc::new(Self {
            key,
            spec: spec.clone(),
            live: Mutex::new(Live { stage, fuel: 0, stdout: Log::default(), stderr: Log::default() }),
            record: Mutex::new(record),
            changed: watch::Sender::new(1),
            cancelled: watch::Sender::new(false),
            pins: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().expect("no holder panics")
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("no holder panics")
    }

    /// What is wanted.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(super) fn record(&self) -> Record {
        self.lock().clone()
    }

    /// When it was taken on, in milliseconds of unix time.
    pub fn created_ms(&self) -> u64 {
        let Record::V1 { created_ms, .. } = &*self.lock();
        *created_ms
    }

    /// How it ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        let Record::V1 { outcome, .. } = &*self.lock();
        outcome.clone()
    }

    pub(super) fn pin(&self, pins: Pins) {
        self.pins.lock().expect("no holder panics").push(pins);
    }

    /// Bytes that it needs, and that came out of it.
    pub(super) fn materials(&self) -> Vec<Material> {
        let mut all: Vec<Material> = self.spec.work.materials().collect();
        if let Some(Outcome::Done { ran, outputs, .. }) = self.outcome() {
            all.extend([ran.stdout, ran.stderr, ran.outputs]);
            all.extend(outputs.iter().map(|(_, material)| *material));
        }
        all
    }

    fn attempts<T>(&self, with: impl FnOnce(&mut Vec<Attempt>) -> T) -> T {
        let Record::V1 { attempts, .. } = &mut *self.lock();
        with(attempts)
    }

    pub(super) fn attempt(&self, at: usize) -> Attempt {
        self.attempts(|all| all[at].clone())
    }

    pub(super) fn add_attempt(&self, attempt: Attempt) {
        self.attempts(|all| all.push(attempt));
        self.tell();
    }

    pub(super) fn attempt_count(&self) -> usize {
        self.attempts(|all| all.len())
    }

    /// Its orders, as far as their deals' tabs are concerned.
    pub(super) fn known_orders(&self) -> Vec<(JobId, OpenOrder)> {
        let limits = self.spec.work.limits;
        let known = |attempt: &Attempt| {
            let known = match &attempt.end {
                None => OpenOrder::Open,
                Some(End::Receipt(_, ran)) => OpenOrder::Ended(ran.cost(&attempt.prices, &limits)),
                Some(End::Failed(_)) => OpenOrder::Unknown,
            };
            (attempt.id, known)
        };
        self.attempts(|all| all.iter().map(known).collect())
    }

    /// What may be paid of an order whose provider says that it has used `fuel`: no more than a fast machine uses in the time that has gone by. Else it could
    /// say that all is used, be paid, and fail.
    pub(super) fn payable(&self, at: usize, fuel: u64) -> Amount {
        let limits = self.spec.work.limits;
        self.attempts(|all| {
            let attempt = &mut all[at];
            let began = *attempt.began.get_or_insert_with(Instant::now);
            let most = FASTEST_FUEL_PER_S.saturating_mul(began.elapsed().as_secs() + 1);
            attempt.prices.cost(limits.memory_bytes, fuel.min(limits.fuel).min(most), 0)
        })
    }

    pub(super) fn open_attempts(&self) -> Vec<usize> {
        self.attempts(|all| (0..all.len()).filter(|at| all[*at].end.is_none()).collect())
    }

    /// Orders with a receipt, and what came out of each.
    pub(super) fn receipts(&self) -> Vec<(usize, SignedBytes, Ran)> {
        let receipt = |(at, attempt): (usize, &Attempt)| match &attempt.end {
            Some(End::Receipt(raw, ran)) => Some((at, raw.clone(), (**ran).clone())),
            _ => None,
        };
        self.attempts(|all| all.iter().enumerate().filter_map(receipt).collect())
    }

    pub(super) fn failures(&self) -> BTreeMap<PublicKey, String> {
        let failed = |attempt: &Attempt| match &attempt.end {
            Some(End::Failed(why)) => Some((attempt.node, why.clone())),
            _ => None,
        };
        self.attempts(|all| all.iter().filter_map(failed).collect())
    }

    /// Providers that run it, or have.
    pub(super) fn nodes_in_use(&self) -> Vec<PublicKey> {
        let in_use = |attempt: &&Attempt| !matches!(attempt.end, Some(End::Failed(_)));
        self.attempts(|all| all.iter().filter(in_use).map(|attempt| attempt.node).collect())
    }

    pub(super) fn attempt_failed(&self, at: usize, why: String) {
        self.attempts(|all| all[at].end = Some(End::Failed(why)));
        self.tell();
    }

    pub(super) fn attempt_ended(&self, at: usize, receipt: SignedBytes, ran: Ran) {
        self.attempts(|all| all[at].end = Some(End::Receipt(receipt, Box::new(ran))));
        self.tell();
    }

    pub(super) fn count(&self, at: usize, cost: Amount) {
        self.attempts(|all| all[at].cost = cost);
        self.tell();
    }

    pub(super) fn was_wrong(&self, at: usize, right: [u8; 32]) {
        let Record::V1 { wrong, .. } = &mut *self.lock();
        if !wrong.iter().any(|(known, _)| *known == at as u32) {
            wrong.push((at as u32, right));
        }
    }

    /// Orders with a wrong result that can still be disputed, and what is right.
    pub(super) fn open_disputes(&self) -> Vec<(usize, [u8; 32])> {
        let Record::V1 { wrong, created_ms, .. } = &*self.lock();
        let is_open = now_ms() < created_ms.saturating_add(DISPUTE_WINDOW_S * 1000);
        wrong.iter().filter(|_| is_open).map(|(at, right)| (*at as usize, *right)).collect()
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.live().stage = stage;
        self.tell();
    }

    /// Notes how far the program is, and what it printed.
    pub(super) fn stepped(&self, fuel: u64, stdout: &[u8], stderr: &[u8]) {
        let mut live = self.live();
        live.fuel = live.fuel.max(fuel);
        live.stdout.push(stdout);
        live.stderr.push(stderr);
        drop(live);
        self.tell();
    }

    /// How much of what was printed is here.
    pub(super) fn log_ends(&self) -> (u64, u64) {
        let live = self.live();
        (live.stdout.end(), live.stderr.end())
    }

    /// What was printed while it runs, to standard output or standard error, from an offset on; and where what is still kept of that begins.
    pub fn log(&self, is_stdout: bool, from: u64) -> (u64, Vec<u8>) {
        let live = self.live();
        let (at, bytes) = if is_stdout { live.stdout.from(from) } else { live.stderr.from(from) };
        (at, bytes.to_vec())
    }

    pub(super) fn finish(&self, ended: Outcome) {
        let Record::V1 { outcome, ended_ms, .. } = &mut *self.lock();
        (*outcome, *ended_ms) = (Some(ended), now_ms());
        let mut live = self.live();
        live.stage = Stage::Over;
        if matches!(outcome, Some(Outcome::Done { .. })) {
            // The whole is among what came out.
            (live.stdout, live.stderr) = Default::default();
        }
    }

    pub(super) fn tell(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// Has it stopped.
    pub fn cancel(&self) {
        self.cancelled.send_replace(true);
    }

    pub(super) async fn is_cancelled(&self) {
        // The job outlives the wait, so there is a sender.
        let _ = self.cancelled.subscribe().wait_for(|cancelled| *cancelled).await;
    }

    /// Waits until there is something that was not `seen`.
    pub async fn news(&self, seen: u64) {
        let _ = self.changed.subscribe().wait_for(|version| *version != seen).await;
    }

    /// How it is.
    pub fn view(&self) -> View {
        let version = *self.changed.borrow();
        let (stage, live_fuel) = {
            let live = self.live();
            (live.stage.clone(), live.fuel)
        };
        let Record::V1 { attempts, wrong, outcome, created_ms, ended_ms, .. } = &*self.lock();
        let order = |(at, attempt): (usize, &Attempt)| {
            let (result, failed) = match &attempt.end {
                None => (None, None),
                Some(End::Receipt(_, ran)) => (Some(ran.hash()), None),
                Some(End::Failed(why)) => (None, Some(why.clone())),
            };
            let is_wrong = wrong.iter().any(|(known, _)| *known == at as u32);
            let (provider, job, cost) = (attempt.node, attempt.id, attempt.cost);
            OrderView { provider, job, cost, result, failed, is_wrong }
        };
        View {
            version,
            stage,
            fuel: match outcome {
                Some(Outcome::Done { ran, .. }) => ran.fuel,
                _ => live_fuel,
            },
            cost: Amount(attempts.iter().map(|attempt| attempt.cost.0).fold(0, u128::saturating_add)),
            orders: attempts.iter().enumerate().map(order).collect(),
            outcome: outcome.clone(),
            created_ms: *created_ms,
            ended_ms: *ended_ms,
        }
    }
}
