//! The HTTP API: version 1 under `/v1`, loopback by default, a bearer token on every route but the description.
//!
//! Errors have one shape, `{"error": {"code": "...", "message": "..."}}`, and codes are stable. Bodies stream in both directions.
//! The OpenAPI document at `/v1/openapi.json` is generated from the handlers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

mod audits;
mod blobs;
mod compute;
mod deals;
mod jobs;
mod market;

use axum::Router;
use axum::extract::{Query, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Json, Response};
use futures::StreamExt;
use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_market::placement::{Candidate, Passed, Wish, choose, why_passed};
use utoipa::{IntoParams, OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::chain::ChainError;
use crate::client::TransferState;
use crate::deals::DealError;
use crate::discover::is_relayed;
use crate::doctor::Check;
use crate::earn::Earner;
use crate::get::GetError;
use crate::market::{AWAY_S, SubmitError};
use crate::node::Node;
use crate::put::PutError;
use crate::reach::{How, PortReport};
use crate::recover::{RecoverError, Recovered};
use crate::scrub::Scrub;
use crate::shards::{Rot, Rotten, Volume};
use crate::unix_now_s;

#[derive(OpenApi)]
#[openapi(
    info(title = "Spare node", description = "Store blobs on the disks of others, and rent out your own."),
    modifiers(&BearerToken),
    security(("token" = []))
)]
struct Description;

struct BearerToken;

impl utoipa::Modify for BearerToken {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
        let scheme = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
        openapi.components.get_or_insert_default().add_security_scheme("token", scheme);
    }
}

/// How long the rest of a refused upload is read and dropped.
const DRAIN_FOR: Duration = Duration::from_secs(30);

/// An error, as every route reports it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// What went wrong.
    pub error: ErrorDetail,
}

/// What went wrong.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// Stable, for programs.
    pub code: String,
    /// For people: what happened and what to do.
    pub message: String,
}

/// An error response.
#[derive(Debug)]
pub struct ApiError {
    status: StatusCode,
    code: &'static str,
    message: String,
}

impl ApiError {
    fn new(status: StatusCode, code: &'static str, message: impl ToString) -> Self {
        Self { status, code, message: message.to_string() }
    }

    fn internal(error: impl ToString) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
    }

    fn no_blob(name: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "no_such_blob",
            format!("there is no blob named '{name}'; `spare ls` lists them"),
        )
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let error = ErrorDetail { code: self.code.to_owned(), message: self.message };
        (self.status, Json(ErrorBody { error })).into_response()
    }
}

impl From<PutError> for ApiError {
    fn from(error: PutError) -> Self {
        let (status, code) = match &error {
            PutError::BadName(_) => (StatusCode::BAD_REQUEST, "bad_name"),
            PutError::Exists(_) => (StatusCode::CONFLICT, "name_exists"),
            PutError::Busy(_) => (StatusCode::CONFLICT, "name_busy"),
            PutError::TooLong { .. } => (StatusCode::PAYLOAD_TOO_LARGE, "too_long"),
            PutError::Unnameable(_) => (StatusCode::SERVICE_UNAVAILABLE, "shards_unnameable"),
            PutError::NoRoom { .. } => (StatusCode::INSUFFICIENT_STORAGE, "no_room"),
            PutError::Providers { .. } => (StatusCode::SERVICE_UNAVAILABLE, "too_few_providers"),
            PutError::Transfer { .. } => (StatusCode::SERVICE_UNAVAILABLE, "providers_failed"),
            PutError::Funds(DealError::Funds { .. }) => (StatusCode::PAYMENT_REQUIRED, "funds"),
            PutError::Funds(_) => (StatusCode::SERVICE_UNAVAILABLE, "market_unreachable"),
            PutError::Heads(_) => (StatusCode::SERVICE_UNAVAILABLE, "heads_not_signed"),
            PutError::Index { .. } => (StatusCode::SERVICE_UNAVAILABLE, "index_not_copied"),
            PutError::Source(_) => (StatusCode::BAD_REQUEST, "source_failed"),
            PutError::Meta(_) | PutError::Catalog(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        };
        Self::new(status, code, error)
    }
}

impl From<GetError> for ApiError {
    fn from(error: GetError) -> Self {
        match &error {
            GetError::Missing { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "shards_missing", error),
            GetError::Recipe(_) | GetError::Placement | GetError::Segment { .. } => Self::internal(error),
        }
    }
}

impl From<RecoverError> for ApiError {
    fn from(error: RecoverError) -> Self {
        match &error {
            RecoverError::Catalog(_) | RecoverError::Meta(_) => Self::internal(error),
            RecoverError::Nobody { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_providers", error),
            RecoverError::Nothing { .. } => Self::new(StatusCode::NOT_FOUND, "no_index", error),
            RecoverError::Busy => Self::new(StatusCode::CONFLICT, "busy", error),
            RecoverError::Unusable(_) => Self::new(StatusCode::BAD_GATEWAY, "index_unusable", error),
        }
    }
}

impl From<crate::meta::MetaError> for ApiError {
    fn from(error: crate::meta::MetaError) -> Self {
        Self::internal(error)
    }
}

impl From<ChainError> for ApiError {
    fn from(error: ChainError) -> Self {
        Self::internal(error)
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match &error {
            SubmitError::NotTaken(refused) => {
                let code = match refused.code.as_str() {
                    "not_the_market" => "not_the_market",
                    "supply" => "supply",
                    "unknown_signer" => "not_registered",
                    _ => "refused",
                };
                Self::new(StatusCode::CONFLICT, code, error)
            }
            SubmitError::NotTheMarket(_) => Self::new(StatusCode::CONFLICT, "not_the_market", error),
            SubmitError::Peer(_) | SubmitError::Busy | SubmitError::Slow { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "market_unreachable", error)
            }
            SubmitError::Chain(_) => Self::internal(error),
        }
    }
}

pub use audits::{AuditInfo, ChallengerStatus, FailingInfo, StrikeInfo};
pub use blobs::{BlobInfo, BlobStat, HolderInfo, PutDone, ShardInfo, ShardState, parse_range};
pub use compute::{ComputeStatus, GpuInfo, WorkInfo};
pub use deals::{DealInfo, Earnings, Spending, Withdrawn};
pub use jobs::{FileInfo, JobInfo, LOG_FROM, MaterialInfo, NewJob, OfferInfo, OrderInfo, ended_words};
pub use market::{Balance, Funding, MarketReport, Quote};

type Shared = State<Arc<Node>>;

/// The router, and the OpenAPI document that describes it.
pub fn router(node: Arc<Node>, token: String) -> (Router, utoipa::openapi::OpenApi) {
    let (routes, description) = OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(blobs::list_blobs))
        .routes(routes!(blobs::put_blob, blobs::get_blob, blobs::delete_blob))
        .routes(routes!(blobs::stat_blob))
        .routes(routes!(list_transfers))
        .routes(routes!(recover))
        .routes(routes!(list_asks))
        .routes(routes!(status))
        .routes(routes!(doctor))
        .routes(routes!(market::balance))
        .routes(routes!(market::market_report))
        .routes(routes!(market::market_fund))
        .routes(routes!(market::market_blocks))
        .routes(routes!(market::quote))
        .routes(routes!(audits::list_audits))
        .routes(routes!(audits::get_evidence))
        .routes(routes!(audits::challenge_deal))
        .routes(routes!(deals::list_deals))
        .routes(routes!(deals::close_deal))
        .routes(routes!(deals::withdraw))
        .routes(routes!(jobs::missing))
        .routes(routes!(jobs::put_material))
        .routes(routes!(jobs::list, jobs::submit))
        .routes(routes!(jobs::offers))
        .routes(routes!(jobs::watch, jobs::remove))
        .routes(routes!(jobs::cancel))
        .routes(routes!(jobs::log))
        .routes(routes!(jobs::output))
        .routes(routes!(jobs::receipt))
        .routes(routes!(compute::work))
        .split_for_parts();
    let guarded = routes
        .layer(from_fn_with_state(Arc::new(blake3::hash(token.as_bytes())), require_token))
        .with_state(node);
    let document = description.clone();
    let open =
        Router::new().route("/v1/openapi.json", axum::routing::get(move || async move { Json(document) }));
    let all = open.merge(guarded).fallback(no_such_route).layer(axum::middleware::map_response(in_one_shape));
    (all, description)
}

/// Longest plain text error that is put into the one shape of errors.
const PLAIN_ERROR_MAX_BYTES: usize = 4096;

/// Gives errors that the framework words, such as for a query that does not parse, the shape that all errors have.
async fn in_one_shape(response: Response) -> Response {
    let status = response.status();
    let is_json = response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t == "application/json");
    if !(status.is_client_error() || status.is_server_error()) || is_json {
        return response;
    }
    let (code, default) = match status {
        StatusCode::METHOD_NOT_ALLOWED => {
            ("method_not_allowed", "this route has no such method; /v1/openapi.json describes them all")
        }
        _ => ("bad_request", "the request cannot be understood"),
    };
    let text = axum::body::to_bytes(response.into_body(), PLAIN_ERROR_MAX_BYTES).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    ApiError::new(status, code, if text.is_empty() { default } else { text.as_ref() }).into_response()
}

async fn no_such_route() -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "no_such_route",
        "there is no such route; /v1/openapi.json describes them all",
    )
}

/// Lets a request pass only with the node's token. Compared by hash, so in constant time.
async fn require_token(State(token): State<Arc<blake3::Hash>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    let given = given.and_then(|v| v.strip_prefix("Bearer "));
    if given.is_some_and(|given| blake3::hash(given.trim().as_bytes()) == *token) {
        return next.run(request).await;
    }
    drain(request.into_body().into_data_stream());
    let message = "this node wants its token: 'Authorization: Bearer TOKEN', where TOKEN is in the file api.token in the node's folder";
    ApiError::new(StatusCode::UNAUTHORIZED, "unauthorized", message).into_response()
}

/// Reads and drops the rest of a refused upload for a while. A client that is still sending would miss the answer if its connection were
/// closed under it.
fn drain(rest: impl futures::Stream<Item = Result<bytes::Bytes, axum::Error>> + Send + 'static) {
    tokio::spawn(tokio::time::timeout(DRAIN_FOR, rest.for_each(|_| std::future::ready(()))));
}

/// Lists puts and gets under way.
#[utoipa::path(get, path = "/v1/transfers", responses((status = 200, body = Vec<TransferState>), (status = 401, body = ErrorBody)))]
async fn list_transfers(State(node): Shared) -> Json<Vec<TransferState>> {
    Json(node.client.transfers())
}

/// Rebuilds the list of blobs from the copies that providers keep.
#[utoipa::path(post, path = "/v1/recover", responses((status = 200, body = Recovered), (status = 401, body = ErrorBody),
    (status = 404, body = ErrorBody), (status = 409, body = ErrorBody), (status = 502, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn recover(State(node): Shared) -> Result<Json<Recovered>, ApiError> {
    Ok(Json(crate::recover::recover(&node.client).await?))
}

/// A provider as its ask describes it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProviderInfo {
    /// Its node key.
    pub node: String,
    /// Its operator's name.
    pub operator: String,
    /// Where direct transfers reach it.
    pub direct: Vec<String>,
    /// Bytes on offer.
    pub offered_bytes: u64,
    /// Bytes free.
    pub free_bytes: u64,
    /// Unix time in seconds until which its ask holds.
    pub valid_until_s: u64,
    /// Price of storage, in credits per TB and month, as decimal text.
    pub price: String,
    /// Price of reading, in credits per TB, as decimal text.
    pub read_price: String,
    /// Where it says it is.
    pub region: String,
    /// Whether it can only be asked for through relays, and then reached by hole punching.
    pub behind_nat: bool,
    /// Whether a libp2p connection with it stands.
    pub connected: bool,
    /// Whether it failed lately.
    pub failing: bool,
    /// With `why`: whether a put now would choose it, or why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

#[derive(Debug, Deserialize, IntoParams)]
struct AsksQuery {
    /// Whether to draw providers as a put would, and say of each why it was chosen or not.
    #[serde(default)]
    why: bool,
}

/// Longest shard of a long blob: what a put looks for room for.
const LONG_SHARD_BYTES: u64 = 40 << 20;

/// For each candidate, why a put of a long blob under the node's code chooses it or not. A put draws anew for each segment.
fn why(node: &Node) -> HashMap<PublicKey, String> {
    let geometry = node.config.client.code.0;
    let shard_bytes = LONG_SHARD_BYTES / geometry.k() as u64;
    let wish = Wish { providers: geometry.n(), shard_bytes, price_max: node.client.price_max };
    let candidates = node.client.peers.candidates();
    let chosen = choose(&candidates, &[], &wish, &rand::random());
    let (chosen, too_few) = match chosen {
        Ok(chosen) => (chosen, None),
        // As many as there can be, to show who is in whose way.
        Err(error) => {
            let fewer = Wish { providers: error.found, ..wish };
            (choose(&candidates, &[], &fewer, &rand::random()).unwrap_or_default(), Some(error))
        }
    };
    let operator = |node: &PublicKey| {
        chosen.iter().find(|c| c.node == *node).map_or_else(String::new, |c| c.operator.clone())
    };
    let words = |c: &Candidate| match why_passed(c, &chosen, &wish) {
        None if too_few.is_some() => format!("would be chosen, but {} are needed", wish.providers),
        None => "chosen".to_owned(),
        Some(Passed::Full) => format!("no room for a shard of {shard_bytes} bytes"),
        Some(Passed::Expensive) => "asks more than client.max_price".to_owned(),
        Some(Passed::Failing) => "failed lately, and so weighs little".to_owned(),
        Some(Passed::Struck) => "failed again and again; see `spare audit`".to_owned(),
        Some(Passed::SameOperator(node)) => {
            format!("its operator already has {}, which is chosen", &node.to_string()[..12])
        }
        Some(Passed::SameNetwork(node)) => {
            format!("in one network with {} of {}, which is chosen", &node.to_string()[..12], operator(&node))
        }
        Some(Passed::NotDrawn) => "others were drawn this time".to_owned(),
    };
    candidates.iter().map(|c| (c.node, words(c))).collect()
}

/// Lists the asks that hold: who offers room, and for how much.
#[utoipa::path(get, path = "/v1/asks", params(AsksQuery), responses((status = 200, body = Vec<ProviderInfo>), (status = 401, body = ErrorBody)))]
async fn list_asks(State(node): Shared, Query(query): Query<AsksQuery>) -> Json<Vec<ProviderInfo>> {
    let peers = &node.client.peers;
    let mut why = if query.why { why(&node) } else { HashMap::new() };
    let mut describe = |p: crate::asks::Provider| ProviderInfo {
        price: p.ask.price.to_tb_month().to_string(),
        read_price: p.ask.read_price.to_tb().to_string(),
        region: p.ask.region.clone(),
        behind_nat: p.libp2p_addrs().iter().any(is_relayed),
        connected: node.addresses.is_connected(&p.node),
        why: query.why.then(|| why.remove(&p.node).unwrap_or_else(|| "this node itself".to_owned())),
        node: p.node.to_string(),
        direct: p.ask.direct.iter().map(ToString::to_string).collect(),
        offered_bytes: p.ask.offered_bytes,
        free_bytes: p.ask.free_bytes,
        valid_until_s: p.ask.valid_until_s,
        failing: peers.is_cooling(&p.node),
        operator: p.ask.operator,
    };
    Json(peers.book.valid(unix_now_s()).into_iter().map(&mut describe).collect())
}

/// The node at one moment.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The program's version.
    pub version: String,
    /// The node key.
    pub node: String,
    /// The account.
    pub account: String,
    /// The network.
    pub network: String,
    /// Seconds since start.
    pub uptime_s: u64,
    /// What it takes to join through this node.
    pub ticket: String,
    /// Where libp2p listens.
    pub libp2p: Vec<String>,
    /// Where direct transfers reach it.
    pub direct: Vec<String>,
    /// Whether others can reach each of the two UDP ports, and why not.
    pub reach: Vec<PortReport>,
    /// What it does for peers behind NATs.
    pub relay: RelayStatus,
    /// Peers connected over libp2p.
    pub connected_peers: usize,
    /// Providers whose asks hold.
    pub known_providers: usize,
    /// Blobs of this client.
    pub blobs: usize,
    /// Their length together.
    pub blob_bytes: u64,
    /// What this client spends.
    pub spending: Spending,
    /// Storage rented out, if any.
    pub provider: Option<ProviderStatus>,
    /// What it runs jobs on, if it offers that.
    pub compute: Option<ComputeStatus>,
    /// What it does as a challenger, if anything.
    pub challenger: Option<ChallengerStatus>,
    /// Bytes received over `spare/1`, frames included.
    pub received_bytes: u64,
    /// Bytes sent over `spare/1`, frames included.
    pub sent_bytes: u64,
    /// Resident memory of the process.
    pub resident_bytes: u64,
    /// Puts and gets under way.
    pub transfers: Vec<TransferState>,
    /// What needs attention, beside money.
    pub alerts: Vec<String>,
    /// Names of puts that were cut short. Repeating one goes on with it, removing the name gives its room back.
    pub unfinished_puts: Vec<String>,
}

/// What a node does for peers behind NATs: it introduces them, and carries no data for them.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RelayStatus {
    /// Whether it offers to.
    pub offered: bool,
    /// Peers that can be asked for through it.
    pub reservations: usize,
    /// Introductions since it started.
    pub circuits: u64,
}

/// Storage rented out.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ProviderStatus {
    /// Bytes on offer.
    pub offered_bytes: u64,
    /// Bytes of disk taken, as `du` counts.
    pub used_bytes: u64,
    /// Bytes that can still be promised.
    pub free_bytes: u64,
    /// This provider's price of storage, in credits per TB and month, as decimal text.
    pub price: String,
    /// The lowest, the middle and the highest price of other providers; nothing if there are none.
    pub other_prices: Vec<String>,
    /// What it brings.
    pub earnings: Earnings,
    /// Whether what is stored is still what was stored.
    pub scrub: ScrubStatus,
}

/// Whether stored shards are still what was stored.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ScrubStatus {
    /// Bytes per second at which shards are read again; 0 for never.
    pub rate: u64,
    /// Whether a pass over all shards is under way.
    pub passing: bool,
    /// Shards checked in the pass under way, or the last one.
    pub checked_shards: u64,
    /// Their bytes.
    pub checked_bytes: u64,
    /// Unix time in seconds when the last full pass ended.
    pub last_pass_s: Option<u64>,
    /// Shards that have rotted.
    pub rotten_shards: u64,
    /// Some of them.
    pub rotten: Vec<RottenShard>,
    /// What that means and what to do; empty if nothing has rotted.
    pub advice: String,
}

/// A shard that has rotted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct RottenShard {
    /// The account whose it is.
    pub owner: String,
    /// Its root.
    pub root: String,
    /// Unix time in seconds when that was found.
    pub found_s: u64,
    /// Which bytes, or what else is wrong.
    pub why: String,
}

/// Most rotten shards that are listed.
const ROTTEN_LISTED_MAX: usize = 20;

fn scrub_status(scrub: &Scrub, volume: &Volume) -> Result<ScrubStatus, ApiError> {
    let standing = scrub.standing();
    let rotten_shards = volume.rotten_shards()?;
    let describe = |rotten: Rotten| {
        let Rot::V1 { found_s, why } = rotten.rot;
        RottenShard { owner: rotten.owner.to_string(), root: rotten.root.to_string(), found_s, why }
    };
    let rotten = volume.rotten(None, ROTTEN_LISTED_MAX)?.into_iter().map(describe).collect();
    let advice = match rotten_shards {
        0 => String::new(),
        shards => format!(
            "{shards} stored shard{} lost, damaged or unreadable on the disk, and refused to readers, who fetch others instead; nothing wrong was served. Audits of them fail, so their clients pay less until they store them again. Check the disk (for instance with `smartctl -a`) and move the folder to another one if it fails",
            if shards == 1 { " is" } else { "s are" },
        ),
    };
    Ok(ScrubStatus {
        rate: scrub.rate(),
        passing: standing.is_passing,
        checked_shards: standing.checked_shards,
        checked_bytes: standing.checked_bytes,
        last_pass_s: standing.last_pass_s,
        rotten_shards,
        rotten,
        advice,
    })
}

/// The lowest, the middle and the highest price of storage that others ask.
fn other_prices(node: &Node) -> Vec<String> {
    let mut prices: Vec<_> = node.client.peers.candidates().into_iter().map(|c| c.price).collect();
    prices.sort_unstable();
    let picked = [0, prices.len() / 2, prices.len().saturating_sub(1)];
    picked.iter().filter_map(|i| Some(prices.get(*i)?.to_tb_month().to_string())).collect()
}

/// Resident memory of this process in bytes, from `/proc/self/statm`; 0 where there is none.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|p| p.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}

/// What keeps this node from taking part in the network.
fn alerts(node: &Node) -> Result<Vec<String>, ApiError> {
    let mut alerts = node.file_alerts.lock().expect("no holder panics").clone();
    if node.addresses.connected().is_empty() && !node.market.is_here() {
        alerts.push(
            "no peer is connected; the setting network.peers says through whom this node joins".to_owned(),
        );
    }
    if node.earner.is_some() && node.reach.report(unix_now_s()).iter().all(|p| p.how == How::Unreachable) {
        alerts.push(
            "nobody can reach this provider, so it gets no work; `spare doctor` says why and what to do"
                .to_owned(),
        );
    }
    let newest_s = node.market.chain.view(|ledger| ledger.tip().time_s)?;
    let silent_s = unix_now_s().saturating_sub(newest_s.max(node.genesis.v1().started_s));
    if silent_s > 2 * u64::from(node.client.deals.period_s()) + AWAY_S {
        alerts.push(format!(
            "the market has made no block for {silent_s} s that arrived here: nothing can be paid meanwhile"
        ));
    }
    Ok(alerts)
}

/// Looks for what keeps the node from doing its work.
#[utoipa::path(get, path = "/v1/doctor", responses((status = 200, body = Vec<Check>), (status = 401, body = ErrorBody)))]
async fn doctor(State(node): Shared) -> Result<Json<Vec<Check>>, ApiError> {
    let looking = tokio::task::spawn_blocking(move || crate::doctor::of_node(&node));
    Ok(Json(looking.await.map_err(ApiError::internal)??))
}

/// Says how the node is.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = Status), (status = 401, body = ErrorBody)))]
async fn status(State(node): Shared) -> Result<Json<Status>, ApiError> {
    let blobs = node.client.catalog.all()?;
    let earnings = deals::earnings(&node)?;
    let relaying = node.addresses.relaying();
    let provide = |(earner, scrub): (&Arc<Earner>, &Arc<Scrub>)| {
        let room = earner.volume().room();
        Ok::<_, ApiError>(ProviderStatus {
            earnings,
            offered_bytes: room.offered_bytes,
            used_bytes: room.used_bytes,
            free_bytes: room.free_bytes,
            price: node.config.provide.price.0.to_string(),
            other_prices: other_prices(&node),
            scrub: scrub_status(scrub, earner.volume())?,
        })
    };
    let provider = node.earner.as_ref().zip(node.scrub.as_ref()).map(provide).transpose()?;
    Ok(Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: node.identity.node_key().public().to_string(),
        account: node.identity.account.to_string(),
        network: blake3::Hash::from_bytes(node.identity.network.0).to_hex().to_string(),
        uptime_s: node.started.elapsed().as_secs(),
        ticket: node.ticket().to_string(),
        libp2p: node.libp2p_addrs().iter().map(ToString::to_string).collect(),
        direct: node.direct_addrs().iter().map(ToString::to_string).collect(),
        reach: node.reach.report(unix_now_s()),
        relay: RelayStatus {
            offered: relaying.offered,
            reservations: relaying.reservations,
            circuits: relaying.circuits,
        },
        connected_peers: node.addresses.connected().len(),
        known_providers: node.client.peers.book.valid(unix_now_s()).len(),
        blob_bytes: blobs.iter().map(|(_, entry)| entry.bytes).sum(),
        blobs: blobs.len(),
        spending: deals::spending(&node)?,
        provider,
        compute: compute::compute_status(&node),
        challenger: audits::challenger(&node)?,
        received_bytes: node.traffic.received_bytes.load(Ordering::Relaxed),
        sent_bytes: node.traffic.sent_bytes.load(Ordering::Relaxed),
        resident_bytes: resident_bytes(),
        transfers: node.client.transfers(),
        alerts: alerts(&node)?,
        unfinished_puts: crate::put::unfinished(&node.client)?,
    }))
}

/// Serves the API on `addr` until `stop` resolves; `ready` is told the address bound.
///
/// # Errors
/// When the port is taken.
pub async fn serve(
    node: Arc<Node>,
    token: String,
    addr: SocketAddr,
    ready: impl FnOnce(SocketAddr) -> std::io::Result<()>,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind(addr).await?;
    ready(listener.local_addr()?)?;
    let (router, _) = router(node, token);
    let serving = axum::serve(listener, router);
    // Transfers under way are cut: both ends can resume them.
    tokio::select! {
        result = serving => result,
        () = stop => Ok(()),
    }
}
