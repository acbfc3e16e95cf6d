//! Going to the ledger about a wrong result: the dispute itself, and handing the verifiers what they need to judge it.

use std::sync::Arc;
use std::time::Duration;

use spare_market::amount::Amount;
use spare_market::dispute::{Dispute, Outcome as Decided, Stage, Verdict};
use spare_market::job::{JobId, Order};
use spare_market::keys::PublicKey;
use spare_market::tx::Action;

use super::record::Attempt;
use super::{Job, Orders, short};
use crate::market::{NotTaken, SubmitError};
use crate::peers::PeerError;

/// How often a verifier is tried again that could not be reached.
const TRY_EVERY: Duration = Duration::from_secs(3);

impl Orders {
    /// Disputes an order's result on the ledger, if its order names verifiers, and hands them what they need. In the background, since that takes as long as verifiers do.
    pub(super) fn dispute(self: &Arc<Self>, job: &Arc<Job>, at: usize, finding: [u8; 32]) {
        let (orders, job) = (self.clone(), job.clone());
        tokio::spawn(async move {
            if let Err(why) = orders.dispute_and_serve(&job, at, finding).await {
                let node = short(&job.attempt(at).node);
                tracing::warn!(job = %job.key, node, why, "a wrong result could not be disputed on the ledger");
            }
        });
    }

    async fn dispute_and_serve(&self, job: &Arc<Job>, at: usize, finding: [u8; 32]) -> Result<(), String> {
        let attempt = job.attempt(at);
        let order = attempt.order.clone().check::<Order>(self.network).map_err(|e| e.to_string())?;
        let verifiers = order.value().v1().verifiers.clone();
        if verifiers.is_empty() || order.value().v1().penalty == Amount::ZERO {
            return Err("the order names no verifiers, or its provider pledged nothing".to_owned());
        }
        let (_, receipt, _) =
            job.receipts().into_iter().find(|(of, ..)| *of == at).ok_or("the order has no receipt")?;
        loop {
            let action = Action::Dispute { order: attempt.order.clone(), receipt: receipt.clone(), finding };
            match self.wallet.send(action).await {
                Ok(_) => {
                    tracing::warn!(job = %job.key, node = %attempt.node, "a wrong result is disputed on the ledger");
                    break;
                }
                // It was disputed before this node was started again.
                Err(SubmitError::NotTaken(NotTaken { code, .. })) if code == "disputed" => break,
                Err(error @ (SubmitError::NotTaken(_) | SubmitError::NotTheMarket(_))) => {
                    return Err(error.to_string());
                }
                Err(error) => {
                    tracing::info!(%error, "a dispute did not get to the market; it is tried again");
                    tokio::time::sleep(TRY_EVERY).await;
                }
            }
        }
        let serving = verifiers.iter().map(|verifier| self.serve(job, &attempt, verifier));
        futures::future::join_all(serving).await;
        Ok(())
    }

    /// Hands a verifier the work and its bytes, for as long as the dispute is open and it lacks them.
    async fn serve(&self, job: &Arc<Job>, attempt: &Attempt, verifier: &PublicKey) {
        let is_awaited = |dispute: &Dispute| {
            let of = dispute.seats.iter().find(|seat| seat.node == *verifier);
            dispute.is_open() && of.is_some_and(|seat| seat.verdict == Verdict::Awaited)
        };
        while self.dispute_of(&attempt.id).is_some_and(|(dispute, _)| is_awaited(&dispute)) {
            if let Err(error) = self.serve_once(job, attempt, verifier).await {
                tracing::debug!(%verifier, %error, "a verifier could not be told of a case");
            }
            tokio::time::sleep(TRY_EVERY).await;
        }
    }

    async fn serve_once(
        &self,
        job: &Arc<Job>,
        attempt: &Attempt,
        verifier: &PublicKey,
    ) -> Result<(), PeerError> {
        let work = &job.spec().work;
        let held = self
            .client
            .peers
            .with_session(verifier, async |session| session.case(attempt.id, work).await)
            .await?;
        for (material, held) in work.materials().zip(held) {
            if held {
                continue;
            }
            let (materials, account) = (self.materials.clone(), self.account);
            let bytes = tokio::task::spawn_blocking(move || materials.read(&account, &material)).await;
            let Ok(Ok(bytes)) = bytes else {
                return Err(PeerError::GivenUp);
            };
            let sending = self.client.peers.with_session(verifier, async |session| {
                session.store_material(attempt.deal, material, bytes.into(), |_| ()).await
            });
            sending.await?;
        }
        Ok(())
    }

    /// The dispute about an order, if the ledger knows one, and the running tick.
    fn dispute_of(&self, id: &JobId) -> Option<(Dispute, u64)> {
        let found = self.chain.view(|l| Some((l.state().dispute(id).cloned()?, l.state().totals().ticks)));
        found.ok().flatten()
    }

    /// How the dispute about an order stands, for people.
    pub fn dispute_words(&self, id: &JobId) -> Option<String> {
        let (dispute, tick) = self.dispute_of(id)?;
        Some(match (dispute.stage(tick), dispute.decision) {
            (_, Some(decision)) => match decision.outcome {
                Decided::Right => "verifiers found what the provider signed; the bond is lost".to_owned(),
                Decided::Wrong { penalty, award, burned, .. } => format!(
                    "verifiers found that it is wrong: the provider lost {penalty} credits, of which {award} came here and {burned} were burned"
                ),
                Decided::Unproven => "too few verifiers found the same; nothing is proven".to_owned(),
            },
            (Stage::Committing, None) => format!("{} verifiers run it again", dispute.seats.len()),
            (Stage::Revealing, None) => "verifiers say what they found".to_owned(),
            _ => "it is about to be decided".to_owned(),
        })
    }
}
