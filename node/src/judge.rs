//! Judge: a verifier's part in disputes about jobs. case -> run again -> commit -> reveal.
//!
//! **Participants.** The client of a disputed job, or its provider, sends this node the work and its bytes, since the ledger has their hashes alone. The ledger
//! says which disputes name this node, and until when it is waited for.
//!
//! **Goals.** A verdict is what comes out here and nothing else; what a party says came out is not even looked at. It is durable before it is committed to, so that a stop between
//! commit and reveal costs nothing.
//! **Non-goals.** Fetching bytes that nobody sends. A verifier that gets none, or that runs another engine, says that it found nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use spare_market::deal::DealId;
use spare_market::dispute::{Dispute, Stage, Verdict, commitment};
use spare_market::job::{JobId, Work};
use spare_market::keys::PublicKey;
use spare_market::tx::Action;
use spare_sandbox::engine::configuration;

use crate::chain::{Chain, ChainError};
use crate::frames::{Refusal, RefusalCode};
use crate::job::{OpenWorkshop, rerun};
use crate::limits::JOB_INPUT_MAX_BYTES;
use crate::market::Wallet;
use crate::materials::Materials;
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::work::MODULE_MAX_BYTES;

const KEY_PREFIX: &[u8] = b"case ";
/// How often it is looked whether something is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How long a machine that could not run a case is given.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Most fuel of work that is judged: about an hour's.
const FUEL_MAX: u64 = 10_000_000_000_000;
/// Cases that are judged at once.
const CASES_AT_ONCE_MAX: usize = 4;

/// A case: what was sent about a disputed job, and what was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Case {
    /// The first version.
    V1 {
        /// The work.
        work: Work,
        /// What was found, once it was run, and what hides that until it is revealed.
        verdict: Option<(Option<[u8; 32]>, [u8; 32])>,
    },
}

/// A verifier.
pub struct Judge {
    node: PublicKey,
    chain: Arc<Chain>,
    wallet: Arc<Wallet>,
    meta: Arc<Meta>,
    materials: Arc<Materials>,
    workshop: Arc<OpenWorkshop>,
    /// Most memory that work may need.
    memory_bytes: u64,
    cases: Mutex<BTreeMap<JobId, Case>>,
}

fn record_key(job: &JobId) -> Vec<u8> {
    [KEY_PREFIX, &job.0].concat()
}

fn not_a_case(why: &str) -> Refusal {
    Refusal::new(RefusalCode::BadOrder, why)
}

impl Judge {
    /// The cases in `meta`.
    ///
    /// # Errors
    /// When the local records cannot be read.
    pub fn open(
        node: PublicKey,
        chain: Arc<Chain>,
        wallet: Arc<Wallet>,
        meta: Arc<Meta>,
        materials: Arc<Materials>,
        workshop: Arc<OpenWorkshop>,
        memory_bytes: u64,
    ) -> Result<Self, MetaError> {
        let mut cases = BTreeMap::new();
        for (rest, case) in meta.all::<Case>(Table::Jobs, KEY_PREFIX)? {
            if let Ok(id) = rest.as_slice().try_into() {
                cases.insert(JobId(id), case);
            }
        }
        Ok(Self { node, chain, wallet, meta, materials, workshop, memory_bytes, cases: Mutex::new(cases) })
    }

    fn cases(&self) -> MutexGuard<'_, BTreeMap<JobId, Case>> {
        self.cases.lock().expect("no holder panics")
    }

    /// Where bytes of jobs are.
    pub fn materials(&self) -> &Arc<Materials> {
        &self.materials
    }

    /// Open disputes that name this node, and the running tick.
    fn disputes(&self) -> Result<(Vec<(JobId, Dispute)>, u64), ChainError> {
        self.chain.view(|l| {
            let open = l.state().disputes_for(&self.node).map(|(job, dispute)| (job, dispute.clone()));
            (open.collect(), l.state().totals().ticks)
        })
    }

    /// Client and provider of a deal.
    fn parties(&self, deal: &DealId) -> Vec<PublicKey> {
        let parties = self
            .chain
            .view(|l| l.state().deal(deal).map(|deal| vec![deal.terms.client, deal.terms.provider]));
        parties.ok().flatten().unwrap_or_default()
    }

    /// Whether `party` may send bytes: a dispute about a job under that deal of its names this node.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn admit(&self, party: &PublicKey, deal: DealId) -> Result<(), Refusal> {
        let open = || -> Result<bool, ChainError> {
            let (disputes, _) = self.disputes()?;
            let is_named = disputes.iter().any(|(_, dispute)| dispute.deal == deal);
            Ok(is_named && self.parties(&deal).contains(party))
        };
        match open() {
            Ok(true) => Ok(()),
            Ok(false) => Err(not_a_case("no dispute about a job of yours under that deal names this node")),
            Err(error) => Err(Refusal::new(RefusalCode::Unavailable, error.to_string())),
        }
    }

    /// Takes the work of a disputed job. Says of its bytes, in the work's order, which are here.
    ///
    /// # Errors
    /// The refusal to send.
    pub fn take(&self, party: &PublicKey, job: JobId, work: Work) -> Result<Vec<bool>, Refusal> {
        let failed =
            |error: &dyn std::fmt::Display| Refusal::new(RefusalCode::Unavailable, error.to_string());
        let dispute = self.chain.view(|l| l.state().dispute(&job).cloned()).map_err(|e| failed(&e))?;
        let dispute =
            dispute.ok_or_else(|| not_a_case("there is no dispute about that job on the ledger"))?;
        self.admit(party, dispute.deal)?;
        if work.id() != dispute.work {
            return Err(not_a_case("the dispute is about other work"));
        }
        work.check().map_err(|e| not_a_case(&e.to_string()))?;
        self.check_limits(&work)?;
        let held = work.materials().map(|material| self.materials.has(party, &material)).collect();
        let mut cases = self.cases();
        if let std::collections::btree_map::Entry::Vacant(vacant) = cases.entry(job) {
            let case = Case::V1 { work, verdict: None };
            let mut batch = Batch::default();
            self.meta.commit(batch.put(Table::Jobs, &record_key(&job), &case)).map_err(|e| failed(&e))?;
            vacant.insert(case);
        }
        Ok(held)
    }

    /// Checks that work is not more than a verifier runs for its fee.
    fn check_limits(&self, work: &Work) -> Result<(), Refusal> {
        let inputs = work.materials().skip(1).fold(0_u64, |sum, material| sum.saturating_add(material.bytes));
        let is_within = work.needed_bytes() <= self.memory_bytes
            && work.limits.fuel <= FUEL_MAX
            && work.module.bytes <= MODULE_MAX_BYTES
            && inputs <= JOB_INPUT_MAX_BYTES;
        if is_within {
            Ok(())
        } else {
            Err(Refusal::new(RefusalCode::TooLarge, "this is more than is judged here"))
        }
    }

    /// Judges whatever this node is named in, for as long as it runs.
    pub async fn run(self: Arc<Self>) {
        let mut busy: BTreeMap<JobId, tokio::task::JoinHandle<()>> = BTreeMap::new();
        loop {
            busy.retain(|_, judging| !judging.is_finished());
            match self.disputes() {
                Ok((disputes, tick)) => {
                    self.forget(&disputes);
                    for (job, dispute) in disputes {
                        if busy.len() < CASES_AT_ONCE_MAX && !busy.contains_key(&job) {
                            let judge = self.clone();
                            busy.insert(
                                job,
                                tokio::spawn(async move { judge.look_at(job, &dispute, tick).await }),
                            );
                        }
                    }
                }
                Err(error) => tracing::error!(%error, "disputes cannot be looked at"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn look_at(&self, job: JobId, dispute: &Dispute, tick: u64) {
        let verdict = dispute.seats.iter().find(|seat| seat.node == self.node).map(|seat| seat.verdict);
        let action = match (dispute.stage(tick), verdict) {
            (Stage::Committing, Some(Verdict::Awaited)) => {
                let Some((found, nonce)) = self.verdict(job, dispute).await else { return };
                Action::Commit { job, hash: commitment(job, &self.node, found, &nonce) }
            }
            (Stage::Revealing, Some(Verdict::Committed(_))) => {
                let Some((found, nonce)) = self.known(&job) else { return };
                Action::Reveal { job, found, nonce }
            }
            (Stage::Due, _) => Action::Decide { job },
            _ => return,
        };
        match self.wallet.send(action.clone()).await {
            Ok(_) => tracing::info!(%job, ?action, "a disputed job was judged"),
            Err(error) => tracing::warn!(%job, %error, "a verdict was not taken"),
        }
    }

    fn known(&self, job: &JobId) -> Option<(Option<[u8; 32]>, [u8; 32])> {
        self.cases().get(job).and_then(|Case::V1 { verdict, .. }| *verdict)
    }

    /// What comes out of a disputed job, durable; nothing while its bytes are not all here.
    async fn verdict(&self, job: JobId, dispute: &Dispute) -> Option<(Option<[u8; 32]>, [u8; 32])> {
        if let Some(known) = self.known(&job) {
            return Some(known);
        }
        let Case::V1 { work, .. } = self.cases().get(&job).cloned()?;
        let found = if dispute.configuration == configuration() {
            // Either party may have sent the bytes; one that sends none must not keep the other's from being looked at.
            let has_all =
                |party: &PublicKey| work.materials().all(|material| self.materials.has(party, &material));
            let party = self.parties(&dispute.deal).into_iter().find(has_all)?;
            let (materials, workshop, running) =
                (self.materials.clone(), self.workshop.clone(), work.clone());
            let run = move || -> Result<[u8; 32], String> {
                let _pins = materials.pin(party, running.materials());
                let gathered = materials.gather(&party, &running).map_err(|e| e.to_string())?;
                let workshop = workshop.get().map_err(|e| e.to_string())?;
                let done = rerun(&workshop, &running, gathered, &spare_sandbox::host::Stop::new());
                Ok(done.map_err(|e| e.to_string())?.ran.hash())
            };
            let ran = tokio::task::spawn_blocking(run).await;
            match ran.map_err(|e| e.to_string()).and_then(|ran| ran) {
                Ok(hash) => Some(hash),
                Err(why) => {
                    // The machine may do better in a moment. A verifier that never does says nothing.
                    tracing::warn!(%job, why, "a disputed job could not be run again here; it is tried again");
                    tokio::time::sleep(TRY_AGAIN_AFTER).await;
                    return None;
                }
            }
        } else {
            None
        };
        let verdict = (found, rand::random());
        let case = Case::V1 { work, verdict: Some(verdict) };
        let kept = self.meta.commit(Batch::default().put(Table::Jobs, &record_key(&job), &case));
        if let Err(error) = kept {
            tracing::error!(%error, "a verdict could not be noted");
            return None;
        }
        self.cases().insert(job, case);
        Some(verdict)
    }

    /// Forgets cases whose disputes are over.
    fn forget(&self, open: &[(JobId, Dispute)]) {
        let mut cases = self.cases();
        let over: Vec<JobId> =
            cases.keys().filter(|job| !open.iter().any(|(known, _)| known == *job)).copied().collect();
        if over.is_empty() {
            return;
        }
        let mut batch = Batch::default();
        for job in over {
            cases.remove(&job);
            batch.delete(Table::Jobs, &record_key(&job));
        }
        if let Err(error) = self.meta.note(&batch) {
            tracing::error!(%error, "cases that are over could not be forgotten");
        }
    }
}
