//! Answering about jobs.

use std::sync::Arc;

use spare_market::deal::DealId;
use spare_market::grant::{Authority, Scope};
use spare_market::job::{JobId, Material, Work};
use spare_market::keys::PublicKey;
use spare_market::signed::SignedBytes;

use super::{Answerer, SessionEnd, account, drain, fill, is_unfunded, within};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::frames::{Refusal, RefusalCode, Response, write_frame};
use crate::jobs::{Jobs, refusal_of};
use crate::limits::{
    BULK_PIECE_BYTES, JOB_INPUT_MAX_BYTES, JOB_MATERIALS_ASKED_MAX, STALL_TIMEOUT, bulk_timeout,
};
use crate::transport::Wire;

fn no_jobs() -> Refusal {
    Refusal::new(RefusalCode::NotAProvider, "this node runs no jobs")
}

impl Answerer {
    /// The account the peer may act for in `scope`, and the jobs of this node.
    fn compute(
        &self,
        authority: Option<&Authority>,
        scope: Scope,
    ) -> Result<(PublicKey, Arc<Jobs>), Refusal> {
        let account = account(authority, scope)?;
        Ok((account, self.jobs.clone().ok_or_else(no_jobs)?))
    }

    /// Asks about jobs, in a thread that may block.
    pub(super) async fn asking_jobs(
        &self,
        authority: Option<&Authority>,
        scope: Scope,
        ask: impl FnOnce(&Jobs, PublicKey) -> Result<Response, Refusal> + Send + 'static,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, jobs) = match self.compute(authority, scope) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        Ok(tokio::task::spawn_blocking(move || ask(&jobs, owner)).await?)
    }

    pub(super) fn materials(
        &self,
        authority: Option<&Authority>,
        materials: &[Material],
    ) -> Result<Response, Refusal> {
        let (owner, jobs) = self.compute(authority, Scope::Read)?;
        if materials.len() > JOB_MATERIALS_ASKED_MAX {
            let why = format!("at most {JOB_MATERIALS_ASKED_MAX} at once");
            return Err(Refusal::new(RefusalCode::TooLarge, why));
        }
        Ok(Response::Holding(
            materials.iter().map(|material| jobs.materials().has(&owner, material)).collect(),
        ))
    }

    /// Takes bytes that a job needs. What follows `Ready` is always consumed, so that the session stays in step.
    pub(super) async fn store_material(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        deal: DealId,
        material: Material,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let owner = match account(authority, Scope::Store) {
            Ok(owner) => owner,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if material.bytes > JOB_INPUT_MAX_BYTES {
            let why = format!("a job's inputs have {JOB_INPUT_MAX_BYTES} bytes at most");
            return Ok(Err(Refusal::new(RefusalCode::TooLarge, why)));
        }
        if let Some(earner) = &self.earner {
            earner.await_deal(deal).await;
        }
        let (jobs, judge) = (self.jobs.clone(), self.judge.clone());
        let begin = move || {
            // Under a deal with this node they are for a job, under another for a case.
            let under_deal = jobs.as_ref().map_or(Err(no_jobs()), |jobs| jobs.check_deal(&owner, deal));
            let materials = match (under_deal, &jobs, &judge) {
                (Ok(()), Some(jobs), _) => jobs.materials(),
                (Err(_), _, Some(judge)) if judge.admit(&owner, deal).is_ok() => judge.materials(),
                (under_deal, ..) => return under_deal.and(Err(no_jobs())),
            };
            materials.begin(owner, material).map_err(|error| refusal_of(&error))
        };
        let mut incoming = match tokio::task::spawn_blocking(begin).await? {
            Ok(incoming) => incoming,
            Err(refusal) => return Ok(Err(refusal)),
        };
        wire.expect_bulk();
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Ready)).await?;
        let receive = async {
            let mut left = material.bytes as usize;
            while left > 0 {
                let mut piece = vec![0; left.min(BULK_PIECE_BYTES)];
                fill(wire, &mut piece).await?;
                left -= piece.len();
                let write = move || incoming.write(&piece).map(|()| incoming);
                incoming = match tokio::task::spawn_blocking(write).await? {
                    Ok(incoming) => incoming,
                    Err(error) => {
                        drain(wire, left).await?;
                        return Ok::<_, SessionEnd>(Err(error));
                    }
                };
            }
            Ok(Ok(incoming))
        };
        let received = within(bulk_timeout(material.bytes), receive).await?;
        let kept = match received {
            Ok(incoming) => tokio::task::spawn_blocking(move || incoming.keep()).await?,
            Err(error) => Err(error),
        };
        Ok(kept.map(|()| Response::Done).map_err(|error| refusal_of(&error)))
    }

    pub(super) async fn order(
        &self,
        authority: Option<&Authority>,
        order: SignedBytes,
        work: Box<Work>,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let take = || {
            let (order, work) = (order.clone(), (*work).clone());
            self.asking_jobs(authority, Scope::Store, move |jobs, owner| {
                jobs.order(&owner, order, work).map(|state| Response::Job(Box::new(state)))
            })
        };
        let taken = take().await?;
        if !is_unfunded(&taken) {
            return Ok(taken);
        }
        // The asker may see a block that has not arrived here.
        if let Some(earner) = &self.earner {
            earner.await_block().await;
        }
        take().await
    }

    /// Takes a case to judge.
    pub(super) async fn case(
        &self,
        authority: Option<&Authority>,
        job: JobId,
        work: Work,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let party = match account(authority, Scope::Store) {
            Ok(party) => party,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(judge) = self.judge.clone() else {
            let why = "this node judges no disputes";
            return Ok(Err(Refusal::new(RefusalCode::NotAProvider, why)));
        };
        let take = move || judge.take(&party, job, work).map(Response::Holding);
        Ok(tokio::task::spawn_blocking(take).await?)
    }

    pub(super) async fn watch_job(
        &self,
        authority: Option<&Authority>,
        job: JobId,
        seen: u64,
        stdout_from: u64,
        stderr_from: u64,
    ) -> Result<Response, Refusal> {
        let (owner, jobs) = self.compute(authority, Scope::Read)?;
        let state = jobs.watch(&owner, job, seen, stdout_from, stderr_from).await?;
        Ok(Response::Job(Box::new(state)))
    }

    /// Sends bytes that came out of a job.
    pub(super) async fn job_bytes(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        job: JobId,
        material: Material,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let (owner, jobs) = match self.compute(authority, Scope::Read) {
            Ok(found) => found,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Ok(_place) = self.job_bytes_sent.try_acquire() else {
            return Ok(Err(Refusal::new(
                RefusalCode::Busy,
                "many results are being sent; try again in a moment",
            )));
        };
        let opened = tokio::task::spawn_blocking(move || jobs.bytes(&owner, &job, &material)).await?;
        let mut file = match opened {
            Ok(file) => tokio::fs::File::from_std(file),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let announced = Response::JobBytes { bytes: material.bytes };
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &announced)).await?;
        let send = async {
            let mut left = material.bytes as usize;
            let mut piece = vec![0; left.min(BULK_PIECE_BYTES)];
            while left > 0 {
                let len = left.min(piece.len());
                // A file that is cut short ends the session, as any failing disk does.
                file.read_exact(&mut piece[..len]).await?;
                within(STALL_TIMEOUT, wire.send.write_all(&piece[..len])).await?;
                left -= len;
            }
            within(STALL_TIMEOUT, wire.send.flush()).await
        };
        within(bulk_timeout(material.bytes), send).await?;
        Ok(Ok(Response::Done))
    }
}
