//! Routes about the jobs of others that run here, and what this node runs them on.

use axum::extract::State;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{ErrorBody, Shared};
use crate::capacity::State as Measuring;
use crate::frames::{JobPhase, Service};
use crate::node::Node;
use crate::reach::How;

/// A job of others that runs here.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct WorkInfo {
    /// The job.
    pub job: String,
    /// Its client's account.
    pub client: String,
    /// `waiting`, `compiling`, `running` or `due`.
    pub state: String,
    /// More about that, for people.
    pub detail: String,
    /// Fuel used so far.
    pub fuel: u64,
    /// What it has cost so far, in credits.
    pub cost: String,
}

/// What a provider runs jobs on.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ComputeStatus {
    /// Whether jobs are offered, or why not.
    pub state: String,
    /// Jobs that run at the same time.
    pub slots: usize,
    /// How many of those are free.
    pub free_slots: usize,
    /// Memory for all jobs at once.
    pub memory_bytes: u64,
    /// Fuel that one job uses in a second, as was measured at the start.
    pub fuel_per_s: Option<u64>,
    /// Graphics processors that were found. Jobs cannot use them yet: planned.
    pub gpus: Vec<GpuInfo>,
    /// What else was found, and why it is not offered.
    pub gpus_set_aside: Vec<String>,
    /// Jobs that ran to their end since the start.
    pub ended: u64,
    /// Jobs that could not be carried out.
    pub failed: u64,
    /// Orders that were refused.
    pub refused: u64,
    /// Jobs that run or wait.
    pub open: usize,
    /// Why no jobs come, as far as that can be told from here; nothing while some do.
    pub why_no_job: Vec<String>,
}

/// A graphics processor.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct GpuInfo {
    /// Its name.
    pub name: String,
    /// Its driver and version.
    pub driver: String,
    /// Bytes of its memory.
    pub memory_bytes: u64,
}

/// Lists jobs of others that run or wait here, those that run first.
#[utoipa::path(get, path = "/v1/work", responses((status = 200, body = Vec<WorkInfo>), (status = 401, body = ErrorBody)))]
pub(super) async fn work(State(node): Shared) -> Json<Vec<WorkInfo>> {
    let open = node.jobs.as_ref().map(|jobs| jobs.open_jobs()).unwrap_or_default();
    let work = open.into_iter().map(|listed| {
        let (state, detail) = match &listed.phase {
            JobPhase::Waiting { ahead, why, .. } => ("waiting", format!("{ahead} jobs are before it: {why}")),
            JobPhase::Compiling => ("compiling", String::new()),
            JobPhase::Due => ("due", "it stands still until a voucher comes".to_owned()),
            _ => ("running", String::new()),
        };
        WorkInfo {
            job: listed.job.to_string(),
            client: listed.client.to_string(),
            state: state.to_owned(),
            detail,
            fuel: listed.fuel,
            cost: listed.cost.to_string(),
        }
    });
    Json(work.collect())
}

/// What this node runs jobs on, if it does.
pub(super) fn compute_status(node: &Node) -> Option<ComputeStatus> {
    let (jobs, capacity) = (node.jobs.as_ref()?, node.capacity.as_ref()?);
    let (state, measured) = match capacity.state() {
        Measuring::Measuring => ("being measured".to_owned(), None),
        Measuring::Measured(measured) => ("offered".to_owned(), Some(measured)),
        Measuring::Failed(why) => (format!("not offered: {why}"), None),
    };
    let counts = jobs.counts();
    let open = jobs.open_jobs().len();
    let gpu = |gpu: &spare_market::ask::Gpu| GpuInfo {
        name: gpu.name.clone(),
        driver: gpu.driver.clone(),
        memory_bytes: gpu.memory_bytes,
    };
    Some(ComputeStatus {
        state,
        slots: jobs.offer().slots,
        free_slots: jobs.free_slots(),
        memory_bytes: jobs.offer().memory_bytes,
        fuel_per_s: measured.as_ref().map(|m| m.fuel_per_s),
        gpus: measured.iter().flat_map(|m| &m.gpus).map(gpu).collect(),
        gpus_set_aside: measured.map(|m| m.set_aside).unwrap_or_default(),
        ended: counts.ended,
        failed: counts.failed,
        refused: counts.refused,
        open,
        why_no_job: if open == 0 { why_no_job(node, counts) } else { Vec::new() },
    })
}

/// What keeps jobs from coming, as far as that can be told from here.
fn why_no_job(node: &Node, counts: crate::jobs::Counts) -> Vec<String> {
    let mut reasons = Vec::new();
    let Some(own) = node.capacity.as_ref().and_then(|capacity| capacity.ask()) else {
        return vec!["jobs are not offered yet: what the machine can do is measured first".to_owned()];
    };
    let now_s = crate::unix_now_s();
    if node.reach.how(Service::Direct, now_s) == How::Unreachable {
        reasons.push("nobody can reach this node; `spare doctor` says why".to_owned());
    }
    // A job of an ordinary kind: 10^11 fuel and a GiB of memory.
    let cost = |ask: &spare_market::ask::ComputeAsk| ask.prices.cost(1 << 30, 100_000_000_000, 0);
    let others = node.client.peers.hands();
    let others: Vec<_> = others.iter().filter_map(|hand| hand.compute.as_ref()).collect();
    let cheaper = others.iter().filter(|ask| cost(ask) < cost(&own)).count();
    if cheaper > 0 {
        reasons
            .push(format!("{cheaper} of {} other providers ask less; see compute.fuel_price", others.len()));
    }
    if others.iter().any(|ask| ask.configuration != own.configuration) {
        reasons.push(
            "other providers run another engine; clients that compare results choose one kind".to_owned(),
        );
    }
    if node.config.provide.collateral.0 == spare_market::amount::Amount::ZERO {
        reasons.push(
            "nothing is pledged (provide.collateral), so clients who want that (--secured) pass by"
                .to_owned(),
        );
    }
    if counts.refused > 0 {
        reasons.push(format!("{} orders were refused since the start; the log says why", counts.refused));
    }
    if reasons.is_empty() {
        reasons.push("nothing stands in the way: no client has ordered anything".to_owned());
    }
    reasons
}
