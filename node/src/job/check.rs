//! Checking results, fetching what came out, and receipts that anybody can check by running the work again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use spare_market::job::{JobReceipt, Material, Order, Outputs, Ran, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, SignedBytes, SignedError};
use spare_proofs::encode::{DecodeError, from_bytes, to_bytes};
use spare_sandbox::engine::configuration;
use spare_sandbox::host::Stop;
use spare_sandbox::run::Go;

use super::{Checked, CheckedBy, Job, Orders, Outcome};
use crate::deals::Pay;
use crate::frames::RefusalCode;
use crate::jobs::wall;
use crate::materials::MaterialError;
use crate::peers::PeerError;
use crate::work::{Done, Materials, OWN, WorkFailure, Workshop};

/// Longest receipt with all that it takes to check it.
const BUNDLE_MAX_BYTES: usize = 1 << 30;

/// Why what came out is not here.
#[derive(Debug)]
pub(super) enum FetchError {
    /// This node cannot keep it.
    Here(String),
    /// Providers that have it do not send it, and why.
    Withheld(Vec<(usize, String)>),
}

/// The result of a job: an order's, or this node's own.
pub(super) enum JobResult {
    Ordered { at: usize, ran: Box<Ran>, checked: Checked },
    Own { done: Box<Done> },
}

impl Orders {
    /// Compares the results of all orders, and runs the work again if that is drawn or they differ. Whoever signed another result than is right is held to
    /// it.
    pub(super) async fn check(self: &Arc<Self>, job: &Arc<Job>) -> Result<JobResult, String> {
        let receipts = job.receipts();
        let spec = job.spec();
        let (first_at, _, first) = receipts.first().cloned().ok_or("nobody ran it")?;
        let all_agree = receipts.iter().all(|(_, _, ran)| ran.hash() == first.hash());
        let is_drawn = rand::random_range(0..100) < spec.check_percent;
        if all_agree && !is_drawn {
            let checked = match spec.copies {
                1 => Checked::NotDrawn,
                copies => Checked::Agreed(copies),
            };
            return Ok(JobResult::Ordered { at: first_at, ran: Box::new(first), checked });
        }
        if all_agree && spec.check_by == CheckedBy::Provider {
            return self.check_by_provider(job, first_at, first).await;
        }
        self.decide_by_own_run(job).await
    }

    /// Results differ, and this node cannot run the work: what enough providers agree on is taken for right.
    async fn decide_by_number(self: &Arc<Self>, job: &Arc<Job>, why: &str) -> Result<JobResult, String> {
        let receipts = job.receipts();
        let agreeing = |hash: [u8; 32]| receipts.iter().filter(|(_, _, ran)| ran.hash() == hash).count();
        let best = receipts.iter().max_by_key(|(_, _, ran)| agreeing(ran.hash()));
        let (at, _, ran) = best.cloned().ok_or("nobody ran it")?;
        let count = agreeing(ran.hash());
        if count < usize::from(job.spec().agree) || count * 2 <= receipts.len() {
            return Err(format!(
                "{} providers came to different results, and too few to the same; this node cannot tell who is right: {why}",
                receipts.len()
            ));
        }
        self.hold_to_it(job, ran.hash()).await;
        Ok(JobResult::Ordered { at, ran: Box::new(ran), checked: Checked::Agreed(count as u8) })
    }

    /// Has another provider run the work, and compares. Where there is none, this node runs it.
    async fn check_by_provider(
        self: &Arc<Self>,
        job: &Arc<Job>,
        at: usize,
        ran: Ran,
    ) -> Result<JobResult, String> {
        let before = job.receipts().len();
        if let Err(why) = self.follow_one_more(job).await {
            tracing::info!(job = %job.key, why, "no other provider ran a job again");
        }
        let receipts = job.receipts();
        let agrees =
            receipts.len() > before && receipts.iter().all(|(_, _, other)| other.hash() == ran.hash());
        if agrees {
            return Ok(JobResult::Ordered {
                at,
                ran: Box::new(ran),
                checked: Checked::Again(CheckedBy::Provider),
            });
        }
        self.decide_by_own_run(job).await
    }

    /// Has one more provider run the work.
    async fn follow_one_more(self: &Arc<Self>, job: &Arc<Job>) -> Result<(), String> {
        self.order_more(job, 1, &mut job.failures()).await?;
        for at in job.open_attempts() {
            if let Err(error) = self.follow(job, at).await {
                job.attempt_failed(at, error.to_string());
                return Err(error.to_string());
            }
        }
        Ok(())
    }

    /// Whatever the majority says: a run of one's own is what a client can trust. Only where there can be none do numbers count.
    async fn decide_by_own_run(self: &Arc<Self>, job: &Arc<Job>) -> Result<JobResult, String> {
        let receipts = job.receipts();
        let done = match self.run_again(job).await {
            Ok(done) => done,
            Err(why) => {
                let (at, _, first) = receipts.first().cloned().ok_or("nobody ran it")?;
                if receipts.iter().all(|(_, _, ran)| ran.hash() == first.hash()) {
                    return Ok(JobResult::Ordered {
                        at,
                        ran: Box::new(first),
                        checked: Checked::NotPossible(why),
                    });
                }
                return self.decide_by_number(job, &why).await;
            }
        };
        let right = done.ran.hash();
        self.hold_to_it(job, right).await;
        let agreeing = receipts.into_iter().find(|(_, _, ran)| ran.hash() == right);
        Ok(match agreeing {
            Some((at, _, ran)) => {
                JobResult::Ordered { at, ran: Box::new(ran), checked: Checked::Again(CheckedBy::Here) }
            }
            None => JobResult::Own { done: Box::new(done) },
        })
    }

    /// Holds those to it who signed another result than `right`.
    async fn hold_to_it(self: &Arc<Self>, job: &Arc<Job>, right: [u8; 32]) {
        for (at, _, ran) in job.receipts() {
            // Another engine may come to another result; nobody was asked to compare with it.
            if ran.hash() == right || ran.configuration != configuration() {
                continue;
            }
            let node = job.attempt(at).node;
            let why = format!(
                "job {}: it signed another result than comes out when the work is run again",
                job.key
            );
            self.client.peers.standings.was_wrong(&node, job.spec().work.id(), &why);
            job.was_wrong(at, right);
            if let Err(error) = self.keep(job) {
                tracing::error!(%error, "a wrong result could not be noted");
            }
            self.dispute(job, at, right);
        }
    }

    /// Runs a job's work here.
    pub(super) async fn run_again(&self, job: &Arc<Job>) -> Result<Done, String> {
        let work = job.spec().work.clone();
        let workshop = self.workshop.clone();
        let materials = self.materials.clone();
        let (account, stop) = (self.account, Stop::new());
        let _stop_when_dropped = StopOnDrop(stop.clone());
        let run = move || {
            let gathered = materials.gather(&account, &work).map_err(|e| e.to_string())?;
            let workshop = workshop.get().map_err(|e| e.to_string())?;
            // Strangers' jobs may have all workers just now.
            for _ in 1..BUSY_TRIES {
                match rerun(&workshop, &work, gathered.clone(), &stop) {
                    Err(failure) if failure.is_for_want_of_workers() => {}
                    done => return done.map_err(|e| e.to_string()),
                }
            }
            rerun(&workshop, &work, gathered, &stop).map_err(|e| e.to_string())
        };
        tokio::task::spawn_blocking(run).await.map_err(|e| e.to_string())?
    }

    /// Fetches what came out, from whichever order has that result, and keeps it.
    pub(super) async fn fetch(&self, job: &Arc<Job>, result: JobResult) -> Result<Outcome, FetchError> {
        let (at, ran, checked) = match result {
            JobResult::Own { done } => return self.keep_own(job, *done).await,
            JobResult::Ordered { at, ran, checked } => (at, ran, checked),
        };
        let same =
            job.receipts().into_iter().filter(|(of, _, other)| *of != at && other.hash() == ran.hash());
        let mut withheld = Vec::new();
        for at in std::iter::once(at).chain(same.map(|(of, ..)| of)) {
            match self.fetch_from(job, at, &ran).await {
                Ok(outputs) => {
                    return Ok(Outcome::Done { ran, attempt: Some(at as u32), checked, outputs });
                }
                Err(FetchError::Withheld(more)) => withheld.extend(more),
                Err(error) => return Err(error),
            }
        }
        Err(FetchError::Withheld(withheld))
    }

    /// Keeps what came out of this node's own run.
    async fn keep_own(&self, job: &Arc<Job>, done: Done) -> Result<Outcome, FetchError> {
        let Done { ran, stdout, stderr, outputs, .. } = done;
        let listed = outputs.iter().map(|(path, bytes)| (path.clone(), Material::of(bytes))).collect();
        let listed = Outputs(listed);
        let printed = [stdout, stderr, to_bytes(&listed)];
        for bytes in printed.into_iter().chain(outputs.into_iter().map(|(_, bytes)| bytes)) {
            self.put(job, bytes).await?;
        }
        let checked = Checked::Again(CheckedBy::Here);
        Ok(Outcome::Done { ran: Box::new(ran), attempt: None, checked, outputs: listed.0 })
    }

    /// Fetches what came out of one order. Returns its output files.
    async fn fetch_from(
        &self,
        job: &Arc<Job>,
        at: usize,
        ran: &Ran,
    ) -> Result<Vec<(String, Material)>, FetchError> {
        let wrong = |why: &str| FetchError::Withheld(vec![(at, why.to_owned())]);
        let listed = if ran.outputs == Material::of(&to_bytes(&Outputs::default())) {
            Outputs::default()
        } else {
            let bytes = self.fetch_bytes(job, at, ran.outputs).await?;
            let listed = from_bytes(&bytes, bytes.len());
            self.put(job, bytes).await?;
            listed.map_err(|_| wrong("its list of outputs is none"))?
        };
        if listed.0.iter().map(|(_, m)| m.bytes).fold(0, u64::saturating_add) != ran.output_bytes {
            return Err(wrong("its outputs have other lengths than its receipt says"));
        }
        for material in [ran.stdout, ran.stderr].into_iter().chain(listed.0.iter().map(|(_, m)| *m)) {
            let bytes = self.fetch_bytes(job, at, material).await?;
            self.put(job, bytes).await?;
        }
        Ok(listed.0)
    }

    /// Keeps bytes that came out of a job.
    async fn put(&self, job: &Job, bytes: Vec<u8>) -> Result<(), FetchError> {
        let (materials, account) = (self.materials.clone(), self.account);
        let keep = move || {
            let material = materials.put(account, &bytes)?;
            Ok::<_, MaterialError>(materials.pin(account, [material]))
        };
        let kept = tokio::task::spawn_blocking(keep).await.map_err(|e| FetchError::Here(e.to_string()))?;
        job.pin(kept.map_err(|e| FetchError::Here(e.to_string()))?);
        Ok(())
    }

    /// Bytes that came out, from here or from the provider.
    async fn fetch_bytes(
        &self,
        job: &Arc<Job>,
        at: usize,
        material: Material,
    ) -> Result<Vec<u8>, FetchError> {
        if material.bytes == 0 {
            return Ok(Vec::new());
        }
        let (materials, account) = (self.materials.clone(), self.account);
        let here = tokio::task::spawn_blocking(move || materials.read(&account, &material)).await;
        if let Ok(Ok(bytes)) = here {
            return Ok(bytes);
        }
        let attempt = job.attempt(at);
        let mut last = String::new();
        for _ in 0..FETCH_TRIES {
            let fetching = self
                .client
                .peers
                .with_session(&attempt.node, async |session| session.job_bytes(attempt.id, material).await);
            match fetching.await {
                Ok(bytes) => return Ok(bytes),
                Err(PeerError::Refused(refusal)) if refusal.code == RefusalCode::PaymentDue => {
                    if let Some(cell) = self.client.deals.cell(attempt.deal)
                        && let Err(error) = self.client.deals.pay(&cell, Pay::Demanded).await
                    {
                        tracing::info!(node = %attempt.node, %error, "a provider that waits for payment could not be paid");
                    }
                    last = refusal.to_string();
                }
                Err(error) => last = error.to_string(),
            }
            tokio::time::sleep(FETCH_EVERY).await;
        }
        Err(FetchError::Withheld(vec![(at, format!("it does not send what came out: {last}"))]))
    }

    /// A receipt of a job, with all that it takes to check it.
    ///
    /// # Errors
    /// When the job has no receipt, or its bytes are not here.
    pub fn bundle(&self, job: &Job, at: usize) -> Result<Bundle, BundleError> {
        let (_, receipt, _) =
            job.receipts().into_iter().find(|(of, ..)| *of == at).ok_or(BundleError::NoReceipt)?;
        let attempt = job.attempt(at);
        let work = job.spec().work.clone();
        let Materials { module, stdin, inputs } = self.materials.gather(&self.account, &work)?;
        Ok(Bundle::V1 {
            network: self.network,
            node: attempt.node,
            order: attempt.order,
            receipt,
            work,
            module,
            stdin,
            inputs,
        })
    }
}

/// Times that a check waits for a worker.
const BUSY_TRIES: usize = 10;
const FETCH_TRIES: usize = 20;
const FETCH_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

/// Stops a run that nobody waits for any more.
struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// Runs work to compare what comes out. Blocks.
///
/// # Errors
/// [`WorkFailure`].
pub(crate) fn rerun(
    workshop: &Workshop,
    work: &Work,
    materials: Materials,
    stop: &Stop,
) -> Result<Done, WorkFailure> {
    workshop.carry_out(&OWN, work, materials, wall(work), stop, &mut |_| Go::On)
}

/// Why a receipt cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// It is no such file.
    #[error("this is no receipt of a job: {0}")]
    Decode(#[from] DecodeError),
    /// A signature does not hold.
    #[error("a signature does not hold: {0}")]
    Signature(#[from] SignedError),
    /// Its parts do not belong together.
    #[error("{0}")]
    Parts(&'static str),
    /// There is none.
    #[error("no provider signed a receipt for this")]
    NoReceipt,
    /// Bytes are gone.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The work could not be run.
    #[error(transparent)]
    Work(#[from] WorkFailure),
}

/// A provider's receipt with the order, the work, and all bytes that it takes to run it again: who has it needs nothing else to check it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Bundle {
    /// The first version.
    V1 {
        /// The network.
        network: NetworkId,
        /// The provider's node.
        node: PublicKey,
        /// The order, signed by the client.
        order: SignedBytes,
        /// The receipt, signed by the provider.
        receipt: SignedBytes,
        /// The work.
        work: Work,
        /// The program.
        module: Vec<u8>,
        /// Standard input.
        stdin: Vec<u8>,
        /// Inputs, in the work's order.
        inputs: Vec<Vec<u8>>,
    },
}

/// What running the work again shows.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The provider's node.
    pub node: PublicKey,
    /// What it signed.
    pub signed: Ran,
    /// What comes out here.
    pub found: Ran,
}

impl Verdict {
    /// Whether the provider signed what comes out.
    pub fn is_right(&self) -> bool {
        self.signed.hash() == self.found.hash()
    }
}

impl Bundle {
    /// Decodes a bundle.
    ///
    /// # Errors
    /// [`BundleError::Decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, BundleError> {
        Ok(from_bytes(bytes, BUNDLE_MAX_BYTES)?)
    }

    /// Encodes it.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// Checks the signatures and that the parts belong together; not the result. Returns the provider and what it signed.
    ///
    /// # Errors
    /// [`BundleError`].
    pub fn check(&self) -> Result<(PublicKey, Ran), BundleError> {
        let Self::V1 { network, node, order, receipt, work, .. } = self;
        let order = order.clone().check::<Order>(*network)?;
        let receipt = receipt.clone().check::<JobReceipt>(*network)?;
        let JobReceipt::V1 { job, ran, .. } = receipt.value();
        if receipt.signer() != *node {
            return Err(BundleError::Parts("somebody else signed the receipt"));
        }
        if *job != order.value().job_id() {
            return Err(BundleError::Parts("the receipt is for another order"));
        }
        if order.value().v1().work != work.id() || ran.work != work.id() {
            return Err(BundleError::Parts("the order or the receipt is for other work"));
        }
        if !work.is_deterministic {
            return Err(BundleError::Parts(
                "this work had the machine's clock and random bytes: nobody can check it",
            ));
        }
        if ran.configuration != configuration() {
            return Err(BundleError::Parts(
                "it was run by another engine than this program has; use the same version",
            ));
        }
        Ok((*node, ran.clone()))
    }

    /// Runs the work again and compares. Blocks.
    ///
    /// # Errors
    /// [`BundleError`]; that the results differ is none.
    pub fn verify(&self, workshop: &Workshop) -> Result<Verdict, BundleError> {
        let (node, signed) = self.check()?;
        let Self::V1 { work, module, stdin, inputs, .. } = self;
        let materials = Materials { module: module.clone(), stdin: stdin.clone(), inputs: inputs.clone() };
        let done = rerun(workshop, work, materials, &Stop::new())?;
        Ok(Verdict { node, signed, found: done.ran })
    }
}
