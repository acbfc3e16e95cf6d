//! Routes about this node's jobs: sending what they need, running, watching, fetching what came out.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::job::{Ended, JobLimits, Material, Work};
use spare_market::keys::PublicKey;
use spare_proofs::tree::Root;
use utoipa::{IntoParams, ToSchema};

use super::deals::operator_of;
use super::market::hex;
use super::{ApiError, ErrorBody, Shared, drain};
use crate::job::{Checked, CheckedBy, Job, JobError, JobKey, OrderView, Outcome, Spec, Stage, View, words};
use crate::limits::JOB_INPUT_MAX_BYTES;
use crate::materials::MaterialError;
use crate::node::Node;

/// The header that says where a log begins: what was printed long ago is not kept while a job runs.
pub const LOG_FROM: &str = "x-log-from";
/// Longest wait for a job's news.
const WAIT_MAX_S: u64 = 30;

/// Bytes named by their hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MaterialInfo {
    /// Their BLAKE3 hash, in hex.
    pub root: String,
    /// How many.
    pub bytes: u64,
}

impl From<Material> for MaterialInfo {
    fn from(material: Material) -> Self {
        Self { root: material.root.to_string(), bytes: material.bytes }
    }
}

/// A file that a program finds, or leaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FileInfo {
    /// Its path.
    pub path: String,
    /// Its bytes.
    #[serde(flatten)]
    pub material: MaterialInfo,
}

/// A job to be run. What is left out is as `spare job run` has it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJob {
    /// What to call it.
    #[serde(default)]
    pub label: String,
    /// The program: a WASI module or component.
    pub module: MaterialInfo,
    /// Arguments; the first is the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment variables.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Standard input.
    #[serde(default)]
    pub stdin: Option<MaterialInfo>,
    /// Files that the program finds, in order of their paths.
    #[serde(default)]
    pub inputs: Vec<FileInfo>,
    /// Most fuel.
    pub fuel: u64,
    /// Most memory, in bytes.
    pub memory_bytes: u64,
    /// Most bytes of output files.
    pub output_bytes: u64,
    /// Most output files and folders.
    pub output_files: u32,
    /// Most bytes of standard output, and of standard error.
    pub log_bytes: u64,
    /// Where its random bytes come from: 64 hex digits; zeros without it.
    #[serde(default)]
    pub seed: Option<String>,
    /// What its clock says at the start, in seconds of unix time.
    #[serde(default)]
    pub starts_at_s: u64,
    /// Whether it gets the machine's clock and random bytes; its result cannot be checked then.
    #[serde(default)]
    pub free: bool,
    /// The most that one provider's run may cost, in credits; the node's setting without it.
    #[serde(default)]
    pub max_cost: Option<String>,
    /// Providers that run it, each for itself; 1 without it.
    #[serde(default)]
    pub copies: Option<u8>,
    /// How many of them have to come to the same result where they differ and this node cannot run it itself; more than half without it.
    #[serde(default)]
    pub agree: Option<u8>,
    /// How likely it is run again to check it, in percent; the node's setting without it.
    #[serde(default)]
    pub check_percent: Option<u8>,
    /// Who runs it again: `here` or `provider`; here without it.
    #[serde(default)]
    pub check_by: Option<String>,
    /// Whether a provider has to pledge enough that cheating does not pay at that rate of checks.
    #[serde(default)]
    pub secured: bool,
    /// The node key of the one provider that is to run it.
    #[serde(default)]
    pub provider: Option<String>,
}

/// An order of a job at one provider.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OrderInfo {
    /// The provider's node key.
    pub provider: String,
    /// Its operator, if its ask is known.
    pub operator: Option<String>,
    /// The job, as the provider names it.
    pub job: String,
    /// What it has cost so far, in credits.
    pub cost: String,
    /// The hash of what came out, by the provider's receipt.
    pub result: Option<String>,
    /// Why it failed, if it did.
    pub failed: Option<String>,
    /// Whether the provider signed a wrong result.
    pub wrong: bool,
    /// How the dispute about it on the ledger stands, if there is one.
    pub dispute: Option<String>,
}

/// A job of this node. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct JobInfo {
    /// Its name at this node.
    pub job: String,
    /// What it is called.
    pub label: String,
    /// `queued`, `matching`, `funding`, `ordering`, `sending`, `waiting`, `compiling`, `running`, `paying`, `lost`, `checking`, `fetching`, and at the end
    /// `done`, `failed` or `cancelled`.
    pub state: String,
    /// More about that, for people.
    pub detail: String,
    /// Changes with everything else here.
    pub version: u64,
    /// Fuel used so far.
    pub fuel: u64,
    /// Most fuel.
    pub fuel_max: u64,
    /// What it has cost so far.
    pub cost: String,
    /// What one provider's run may cost at most.
    pub max_cost: String,
    /// Its orders, oldest first.
    pub orders: Vec<OrderInfo>,
    /// How its program ended, for people.
    pub ended: Option<String>,
    /// The program's exit code, if it ended by itself.
    pub code: Option<u32>,
    /// Hash of what came out.
    pub result: Option<String>,
    /// Whether that was checked, for people.
    pub checked: Option<String>,
    /// Bytes of standard output.
    pub stdout_bytes: u64,
    /// Bytes of standard error.
    pub stderr_bytes: u64,
    /// Whether more was printed than was kept.
    pub is_log_cut: bool,
    /// Most bytes of memory at once.
    pub memory_peak_bytes: u64,
    /// Output files.
    pub outputs: Vec<FileInfo>,
    /// Unix time in seconds at which it was taken on.
    pub created_s: u64,
    /// Seconds from then to its end, or to now.
    pub took_s: f64,
}

/// A provider, and why a job would go there or not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct OfferInfo {
    /// Its node key.
    pub provider: String,
    /// Its operator's name.
    pub operator: String,
    /// Why it would not be hired, or `would be hired`.
    pub why: String,
    /// What the job may cost there at most, in credits.
    pub max_cost: Option<String>,
    /// Jobs that it runs at the same time.
    pub slots: u16,
    /// How many of those are free.
    pub free_slots: u16,
    /// Highest memory limit of a job there.
    pub memory_bytes: u64,
    /// Fuel that one job uses there in a second, as it measured.
    pub fuel_per_s: u64,
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        let (status, code) = match &error {
            JobError::Work(_) | JobError::Checks(_) => (StatusCode::BAD_REQUEST, "bad_job"),
            JobError::Missing(_) => (StatusCode::CONFLICT, "materials_missing"),
            JobError::Many => (StatusCode::TOO_MANY_REQUESTS, "busy"),
            JobError::NoJob => (StatusCode::NOT_FOUND, "no_such_job"),
            JobError::NotOver => (StatusCode::CONFLICT, "not_over"),
            JobError::Material(_) => return material_error(&error),
            JobError::Meta(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self::new(status, code, error)
    }
}

fn material_error(error: &(dyn std::error::Error + 'static)) -> ApiError {
    let of = |e: &MaterialError| match e {
        MaterialError::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "no_room"),
        MaterialError::NotHere(_) => (StatusCode::NOT_FOUND, "no_such_bytes"),
        MaterialError::Other(_) => (StatusCode::BAD_REQUEST, "other_bytes"),
        MaterialError::Io(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    let found = match error.downcast_ref::<JobError>() {
        Some(JobError::Material(inner)) => Some(inner),
        _ => error.downcast_ref::<MaterialError>(),
    };
    let (status, code) = found.map_or((StatusCode::INTERNAL_SERVER_ERROR, "internal"), of);
    let more = if code == "no_room" {
        "; remove jobs that are over with `spare job rm`, or set compute.room"
    } else {
        ""
    };
    ApiError::new(status, code, format!("{error}{more}"))
}

impl From<MaterialError> for ApiError {
    fn from(error: MaterialError) -> Self {
        material_error(&error)
    }
}

fn bad(message: impl ToString) -> ApiError {
    ApiError::new(StatusCode::BAD_REQUEST, "bad_job", message)
}

fn root_of(text: &str) -> Result<Root, ApiError> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok();
    let bytes = bytes.and_then(|bytes| bytes.try_into().ok());
    bytes.map(Root::from_bytes).ok_or_else(|| bad(format!("'{text}' is no hash; it has 64 hex digits")))
}

fn material_of(info: &MaterialInfo) -> Result<Material, ApiError> {
    Ok(Material { root: root_of(&info.root)?, bytes: info.bytes })
}

/// The job that a name, or the first digits of one, means.
fn job_of(node: &Node, text: &str) -> Result<Arc<Job>, ApiError> {
    if let Ok(key) = text.parse::<JobKey>() {
        return Ok(node.orders.get(key)?);
    }
    let mut meant = node.orders.all().into_iter().filter(|job| job.key.to_string().starts_with(text));
    match (meant.next(), meant.next()) {
        (Some(job), None) if text.len() >= 4 => Ok(job),
        (Some(_), _) => {
            let message = format!("'{text}' may be several jobs; write more digits of the one that is meant");
            Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_job", message))
        }
        _ => Err(JobError::NoJob.into()),
    }
}

/// The provider that a node key, the first digits of one, or an operator's name means.
fn provider_of(node: &Node, text: &str) -> Result<PublicKey, ApiError> {
    if let Ok(key) = text.parse() {
        return Ok(key);
    }
    let hands = node.client.peers.hands();
    let mut meant = hands
        .iter()
        .filter(|hand| hand.operator == text || (text.len() >= 8 && hand.node.to_string().starts_with(text)));
    match (meant.next(), meant.next()) {
        (Some(hand), None) => Ok(hand.node),
        (Some(_), _) => Err(bad(format!(
            "'{text}' may be several providers; write the node key of the one that is meant"
        ))),
        _ => Err(bad(format!("no provider is known as '{text}'; `spare asks` lists them"))),
    }
}

fn spec_of(node: &Node, new: NewJob) -> Result<Spec, ApiError> {
    let cost_max = match &new.max_cost {
        Some(text) => text.parse().map_err(|e| bad(format!("'{text}' is no number of credits: {e}")))?,
        None => node.config.client.max_job_cost.0,
    };
    let copies = new.copies.unwrap_or(1);
    let check_by = match new.check_by.as_deref() {
        None | Some("here") => CheckedBy::Here,
        Some("provider") => CheckedBy::Provider,
        Some(other) => return Err(bad(format!("'{other}' runs nothing again; write here or provider"))),
    };
    let is_checked_otherwise = new.free || copies > 1;
    let check_percent = new.check_percent.unwrap_or(match is_checked_otherwise {
        true => 0,
        false => node.config.client.check_percent.min(100),
    });
    let provider = new.provider.as_deref().map(|text| provider_of(node, text)).transpose()?;
    let seed = match &new.seed {
        Some(text) => *root_of(text)?.as_bytes(),
        None => [0; 32],
    };
    let inputs = new.inputs.iter().map(|file| Ok((file.path.clone(), material_of(&file.material)?)));
    let work = Work {
        module: material_of(&new.module)?,
        args: new.args,
        env: new.env,
        stdin: new.stdin.as_ref().map(material_of).transpose()?,
        inputs: inputs.collect::<Result<_, ApiError>>()?,
        limits: JobLimits {
            fuel: new.fuel,
            memory_bytes: new.memory_bytes,
            output_bytes: new.output_bytes,
            output_files: new.output_files,
            log_bytes: new.log_bytes,
        },
        seed,
        starts_at_s: new.starts_at_s,
        is_deterministic: !new.free,
    };
    Ok(Spec {
        label: new.label,
        work,
        cost_max,
        copies,
        agree: new.agree.unwrap_or(copies / 2 + 1),
        check_percent,
        check_by,
        is_secured: new.secured,
        node: provider,
    })
}

/// How a program ended, for people.
pub fn ended_words(ended: &Ended) -> String {
    match ended {
        Ended::Code(code) => format!("ended with code {code}"),
        Ended::OutOfFuel => "used all its fuel; allow it more with --fuel".to_owned(),
        Ended::Trapped(why) => format!("trapped: {why}"),
        Ended::Refused(why) => format!("was not started: {why}"),
    }
}

fn checked_words(checked: &Checked) -> String {
    match checked {
        Checked::NotDrawn => "not drawn to be checked".to_owned(),
        Checked::Again(CheckedBy::Here) => "run again here, with the same result".to_owned(),
        Checked::Again(CheckedBy::Provider) => {
            "run again by another provider, with the same result".to_owned()
        }
        Checked::Agreed(count) => format!("{count} providers came to the same result"),
        Checked::NotPossible(why) => format!("could not be checked: {why}"),
    }
}

fn stage_words(stage: &Stage) -> String {
    match stage {
        Stage::Sending { sent_bytes, total_bytes } => format!("{sent_bytes} of {total_bytes} bytes are sent"),
        Stage::Waiting { ahead, wait_s, why } => {
            let wait = wait_s.map_or(String::new(), |s| format!(", for about {s} s"));
            format!("{ahead} jobs are before it{wait}: {why}")
        }
        Stage::Ordering(why) => format!("a provider does not take the order yet: {why}"),
        Stage::Lost => "its provider does not answer at the moment".to_owned(),
        Stage::Paying => "its provider waits for a voucher".to_owned(),
        _ => String::new(),
    }
}

fn info(node: &Node, job: &Job) -> JobInfo {
    let View { version, stage, fuel, cost, orders, outcome, created_ms, ended_ms } = job.view();
    let spec = job.spec();
    let order = |order: OrderView| OrderInfo {
        operator: operator_of(node, &order.provider),
        provider: order.provider.to_string(),
        job: order.job.to_string(),
        cost: order.cost.to_string(),
        result: order.result.map(hex),
        failed: order.failed,
        wrong: order.is_wrong,
        dispute: node.orders.dispute_words(&order.job),
    };
    let now_ms = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_millis() as u64);
    let until_ms = if outcome.is_some() { ended_ms } else { now_ms };
    let mut info = JobInfo {
        job: job.key.to_string(),
        label: spec.label.clone(),
        state: stage.word().to_owned(),
        detail: stage_words(&stage),
        version,
        fuel,
        fuel_max: spec.work.limits.fuel,
        cost: cost.to_string(),
        max_cost: spec.cost_max.to_string(),
        orders: orders.into_iter().map(order).collect(),
        ended: None,
        code: None,
        result: None,
        checked: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
        is_log_cut: false,
        memory_peak_bytes: 0,
        outputs: Vec::new(),
        created_s: created_ms / 1000,
        took_s: until_ms.saturating_sub(created_ms) as f64 / 1000.0,
    };
    match outcome {
        None => {}
        Some(Outcome::Done { ran, attempt: _, checked, outputs }) => {
            info.state = "done".to_owned();
            info.detail = String::new();
            info.ended = Some(ended_words(&ran.ended));
            info.code = if let Ended::Code(code) = ran.ended { Some(code) } else { None };
            info.result = Some(hex(ran.hash()));
            info.checked = Some(checked_words(&checked));
            (info.stdout_bytes, info.stderr_bytes) = (ran.stdout.bytes, ran.stderr.bytes);
            info.is_log_cut = ran.is_log_cut;
            info.memory_peak_bytes = ran.memory_peak_bytes;
            let file = |(path, material): (String, Material)| FileInfo { path, material: material.into() };
            info.outputs = outputs.into_iter().map(file).collect();
        }
        Some(Outcome::Failed(why)) => (info.state, info.detail) = ("failed".to_owned(), why),
        Some(Outcome::Cancelled) => info.state = "cancelled".to_owned(),
    }
    info
}

/// Says which bytes, that jobs are to need, are not here.
#[utoipa::path(post, path = "/v1/jobs/missing", request_body = Vec<MaterialInfo>, responses((status = 200, body = Vec<MaterialInfo>), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub(super) async fn missing(
    State(node): Shared,
    Json(asked): Json<Vec<MaterialInfo>>,
) -> Result<Json<Vec<MaterialInfo>>, ApiError> {
    let (materials, account) = (node.orders.materials(), node.orders.account());
    let mut lacking = Vec::new();
    for info in asked {
        if !materials.has(&account, &material_of(&info)?) {
            lacking.push(info);
        }
    }
    Ok(Json(lacking))
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct MaterialQuery {
    /// How many bytes they are.
    bytes: u64,
}

/// Takes bytes that a job is to need.
#[utoipa::path(put, path = "/v1/jobs/materials/{root}", params(("root" = String, Path, description = "BLAKE3 hash of the bytes, in hex"), MaterialQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 204), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 507, body = ErrorBody)))]
pub(super) async fn put_material(
    State(node): Shared,
    Path(root): Path<String>,
    Query(query): Query<MaterialQuery>,
    body: Body,
) -> Result<StatusCode, ApiError> {
    let mut body = body.into_data_stream();
    let taken = take_material(&node, &root, query.bytes, &mut body).await;
    if taken.is_err() {
        drain(body);
    }
    taken.map(|()| StatusCode::NO_CONTENT)
}

async fn take_material(
    node: &Node,
    root: &str,
    bytes: u64,
    body: &mut axum::body::BodyDataStream,
) -> Result<(), ApiError> {
    if bytes > JOB_INPUT_MAX_BYTES {
        return Err(bad(format!(
            "{bytes} bytes are more than the {JOB_INPUT_MAX_BYTES} that a job's inputs may have"
        )));
    }
    let material = Material { root: root_of(root)?, bytes };
    let mut incoming = node.orders.materials().begin(node.orders.account(), material)?;
    while let Some(piece) = body.next().await {
        let piece = piece.map_err(|e| bad(format!("the bytes could not be read to their end: {e}")))?;
        let write = move || incoming.write(&piece).map(|()| incoming);
        incoming = tokio::task::spawn_blocking(write).await.map_err(ApiError::internal)??;
    }
    Ok(tokio::task::spawn_blocking(move || incoming.keep()).await.map_err(ApiError::internal)??)
}

/// Runs a job. What it needs has to be here.
#[utoipa::path(post, path = "/v1/jobs", request_body = NewJob, responses((status = 201, body = JobInfo), (status = 400, body = ErrorBody),
    (status = 401, body = ErrorBody), (status = 409, body = ErrorBody), (status = 429, body = ErrorBody)))]
pub(super) async fn submit(
    State(node): Shared,
    Json(new): Json<NewJob>,
) -> Result<(StatusCode, Json<JobInfo>), ApiError> {
    let spec = spec_of(&node, new)?;
    let job = node.orders.submit(spec)?;
    Ok((StatusCode::CREATED, Json(info(&node, &job))))
}

/// Says of each provider whether a job would go there, and why not.
#[utoipa::path(post, path = "/v1/jobs/offers", request_body = NewJob, responses((status = 200, body = Vec<OfferInfo>), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody)))]
pub(super) async fn offers(
    State(node): Shared,
    Json(new): Json<NewJob>,
) -> Result<Json<Vec<OfferInfo>>, ApiError> {
    let spec = spec_of(&node, new)?;
    let offers = node.orders.offers(&spec).into_iter().map(|(candidate, passed)| {
        let compute = candidate.compute.as_ref();
        OfferInfo {
            provider: candidate.node.to_string(),
            operator: candidate.operator.clone(),
            why: passed.as_ref().map_or_else(|| "would be hired".to_owned(), words),
            max_cost: compute.map(|c| c.prices.cost_max(&spec.work).to_string()),
            slots: compute.map_or(0, |c| c.slots),
            free_slots: compute.map_or(0, |c| c.free_slots),
            memory_bytes: compute.map_or(0, |c| c.memory_bytes),
            fuel_per_s: compute.map_or(0, |c| c.fuel_per_s),
        }
    });
    Ok(Json(offers.collect()))
}

/// Lists this node's jobs, oldest first.
#[utoipa::path(get, path = "/v1/jobs", responses((status = 200, body = Vec<JobInfo>), (status = 401, body = ErrorBody)))]
pub(super) async fn list(State(node): Shared) -> Json<Vec<JobInfo>> {
    Json(node.orders.all().iter().map(|job| info(&node, job)).collect())
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct WatchQuery {
    /// The version that is known; the answer waits for another.
    #[serde(default)]
    seen: u64,
    /// Seconds that the answer may wait; at most 30.
    #[serde(default)]
    wait_s: u64,
}

/// Says how a job is, as soon as that is news.
#[utoipa::path(get, path = "/v1/jobs/{job}", params(("job" = String, Path), WatchQuery),
    responses((status = 200, body = JobInfo), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn watch(
    State(node): Shared,
    Path(job): Path<String>,
    Query(query): Query<WatchQuery>,
) -> Result<Json<JobInfo>, ApiError> {
    let job = job_of(&node, &job)?;
    if job.outcome().is_none() {
        let wait = Duration::from_secs(query.wait_s.min(WAIT_MAX_S));
        // However that ends, what there is now is told.
        let _ = tokio::time::timeout(wait, job.news(query.seen)).await;
    }
    Ok(Json(info(&node, &job)))
}

/// Stops a job.
#[utoipa::path(post, path = "/v1/jobs/{job}/cancel", params(("job" = String, Path)),
    responses((status = 200, body = JobInfo), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn cancel(State(node): Shared, Path(job): Path<String>) -> Result<Json<JobInfo>, ApiError> {
    let job = job_of(&node, &job)?;
    job.cancel();
    Ok(Json(info(&node, &job)))
}

/// Forgets a job that is over, with what came out of it.
#[utoipa::path(delete, path = "/v1/jobs/{job}", params(("job" = String, Path)),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody)))]
pub(super) async fn remove(State(node): Shared, Path(job): Path<String>) -> Result<StatusCode, ApiError> {
    node.orders.remove(job_of(&node, &job)?.key)?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct LogQuery {
    /// First byte.
    #[serde(default)]
    from: u64,
}

/// What a job has printed to standard output or standard error, from a byte on. While it runs, that is what is kept of its end; the header `x-log-from` says from where.
#[utoipa::path(get, path = "/v1/jobs/{job}/log/{stream}", params(("job" = String, Path), ("stream" = String, Path, description = "`stdout` or `stderr`"), LogQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn log(
    State(node): Shared,
    Path((job, stream)): Path<(String, String)>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    let job = job_of(&node, &job)?;
    let is_stdout = match stream.as_str() {
        "stdout" => true,
        "stderr" => false,
        _ => return Err(bad("a job has a log of stdout and of stderr")),
    };
    let (at, bytes) = match job.outcome() {
        Some(Outcome::Done { ran, .. }) => {
            let material = if is_stdout { ran.stdout } else { ran.stderr };
            let all = read(&node, material).await?;
            let from = query.from.min(all.len() as u64);
            (from, all[from as usize..].to_vec())
        }
        _ => job.log(is_stdout, query.from),
    };
    Ok(([(LOG_FROM, at.to_string())], bytes).into_response())
}

async fn read(node: &Node, material: Material) -> Result<Vec<u8>, ApiError> {
    if material.bytes == 0 {
        return Ok(Vec::new());
    }
    let (materials, account) = (node.orders.materials().clone(), node.orders.account());
    let read = tokio::task::spawn_blocking(move || materials.read(&account, &material));
    Ok(read.await.map_err(ApiError::internal)??)
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct OutputQuery {
    /// The file's path.
    path: String,
}

/// An output file of a job that is done.
#[utoipa::path(get, path = "/v1/jobs/{job}/outputs", params(("job" = String, Path), OutputQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn output(
    State(node): Shared,
    Path(job): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Result<Response, ApiError> {
    let job = job_of(&node, &job)?;
    let no_file = || {
        let message = "the job left no such file, or is not done";
        ApiError::new(StatusCode::NOT_FOUND, "no_such_output", message)
    };
    let Some(Outcome::Done { outputs, .. }) = job.outcome() else { return Err(no_file()) };
    let (_, material) = outputs.into_iter().find(|(path, _)| *path == query.path).ok_or_else(no_file)?;
    Ok(read(&node, material).await?.into_response())
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct ReceiptQuery {
    /// Which order's, counted from 0.
    #[serde(default)]
    order: usize,
}

/// A provider's receipt, with all that it takes to check it: `spare job verify` runs it again.
#[utoipa::path(get, path = "/v1/jobs/{job}/receipt", params(("job" = String, Path), ReceiptQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn receipt(
    State(node): Shared,
    Path(job): Path<String>,
    Query(query): Query<ReceiptQuery>,
) -> Result<Response, ApiError> {
    let job = job_of(&node, &job)?;
    let reading = node.clone();
    let bundle = tokio::task::spawn_blocking(move || reading.orders.bundle(&job, query.order));
    let bundle = bundle.await.map_err(ApiError::internal)?;
    let bundle = bundle.map_err(|error| ApiError::new(StatusCode::NOT_FOUND, "no_receipt", error))?;
    Ok(bundle.to_bytes().into_response())
}
