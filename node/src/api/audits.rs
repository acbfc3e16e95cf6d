//! Routes about audits: what this client holds against providers, and evidence.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use spare_market::block::Ledger;
use spare_market::deal::DealId;
use spare_market::keys::PublicKey;
use spare_market::standing::{STRIKES_MAX, Standing};
use utoipa::ToSchema;

use super::deals::operator_of;
use super::{ApiError, ErrorBody, Shared};
use crate::challenge::{ChallengeError, Record};
use crate::evidence::Evidence;
use crate::node::Node;
use crate::unix_now_s;

/// A failure that lasted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StrikeInfo {
    /// Unix time in seconds.
    pub at_s: u64,
    /// What happened, after "it".
    pub fault: String,
    /// Why, in words.
    pub why: String,
    /// The shard that was asked for.
    pub shard: String,
}

/// A failure that is being asked about again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct FailingInfo {
    /// Unix time in seconds since when.
    pub since_s: u64,
    /// Times that it failed.
    pub tries: u32,
    /// What happened, after "it".
    pub fault: String,
    /// Why, in words.
    pub why: String,
    /// The shard that is asked for.
    pub shard: String,
    /// Whether the provider was told.
    pub is_told: bool,
    /// Unix time in seconds from which on it is a strike, if it goes on.
    pub strikes_at_s: u64,
}

/// What this client holds against a provider.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditInfo {
    /// The provider's node key.
    pub node: String,
    /// Its operator, if its ask is known.
    pub operator: Option<String>,
    /// What it weighs when providers are chosen, in percent of one against which nothing is held; 0 for one that is not chosen.
    pub record_percent: u8,
    /// Strikes that count.
    pub strikes: Vec<StrikeInfo>,
    /// What fails just now.
    pub failing: Option<FailingInfo>,
    /// Names of evidence against it.
    pub evidence: Vec<String>,
}

/// What fails just now, in one sentence, if anything.
pub(super) fn failing_sentence(standing: &Standing) -> Option<String> {
    let contained = standing.contained()?;
    let (tries, fault, why) = (contained.tries, contained.fault.sentence(), &contained.why);
    Some(format!("{tries} times in a row it {fault}: {why}"))
}

fn info(node: &Node, provider: PublicKey, standing: &Standing, evidence: &[(String, Evidence)]) -> AuditInfo {
    let now_s = unix_now_s();
    let strikes = standing.strikes(now_s).map(|strike| StrikeInfo {
        at_s: strike.at_s,
        fault: strike.fault.sentence().to_owned(),
        why: strike.why.clone(),
        shard: strike.place.root.to_string(),
    });
    let failing = standing.contained().map(|contained| FailingInfo {
        since_s: contained.since_s,
        tries: contained.tries,
        fault: contained.fault.sentence().to_owned(),
        why: contained.why.clone(),
        shard: contained.place.root.to_string(),
        is_told: contained.is_told,
        strikes_at_s: standing.strikes_at_s(node.client.peers.standings.spacing_s()),
    });
    let is_against = |evidence: &Evidence| {
        let Evidence::WrongBytes { node, .. } = evidence;
        *node == provider
    };
    let evidence = evidence.iter().filter(|(_, evidence)| is_against(evidence));
    AuditInfo {
        node: provider.to_string(),
        operator: operator_of(node, &provider),
        record_percent: standing.record_percent(now_s),
        strikes: strikes.collect(),
        failing,
        evidence: evidence.map(|(name, _)| name.clone()).collect(),
    }
}

/// Lists what is held against providers: failures, strikes, evidence. Those of which nothing is held are not in it.
#[utoipa::path(get, path = "/v1/audits", responses((status = 200, body = Vec<AuditInfo>), (status = 401, body = ErrorBody)))]
pub(super) async fn list_audits(State(node): Shared) -> Result<Json<Vec<AuditInfo>>, ApiError> {
    let standings = &node.client.peers.standings;
    let evidence = standings.evidence().map_err(ApiError::internal)?;
    let mut all = standings.all();
    for (_, Evidence::WrongBytes { node, .. }) in &evidence {
        all.entry(*node).or_default();
    }
    Ok(Json(all.iter().map(|(provider, standing)| info(&node, *provider, standing, &evidence)).collect()))
}

/// Gives evidence as bytes, which anybody can check with `spare audit verify`.
#[utoipa::path(get, path = "/v1/evidence/{name}", params(("name" = String, Path, description = "the evidence's name")),
    responses((status = 200, content_type = "application/octet-stream"), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody)))]
pub(super) async fn get_evidence(State(node): Shared, Path(name): Path<String>) -> Result<Bytes, ApiError> {
    let all = node.client.peers.standings.evidence().map_err(ApiError::internal)?;
    let found = all.into_iter().find(|(known, _)| *known == name).map(|(_, evidence)| evidence.to_bytes());
    let missing = || {
        let message = format!("there is no evidence named '{name}'; `spare audit` lists it");
        ApiError::new(StatusCode::NOT_FOUND, "no_such_evidence", message)
    };
    found.map(Bytes::from).ok_or_else(missing)
}

/// What this node does as a challenger. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct ChallengerStatus {
    /// Deals of others that are asked about in a period.
    pub deals_per_period: u32,
    /// Times that a provider was asked.
    pub asked: u64,
    /// Times that it showed what was drawn.
    pub shown: u64,
    /// Bytes received for that.
    pub received_bytes: u64,
    /// Deals whose provider failed, and is asked again.
    pub suspects: usize,
    /// Challenges on the ledger that are open.
    pub open: usize,
    /// Challenges made in all.
    pub challenged: u64,
    /// Those that were answered, which cost the bond, or half of it where the deal went over to another set meanwhile.
    pub answered: u64,
    /// Those that were not.
    pub won: u64,
    /// Shares of penalties received.
    pub earned: String,
    /// Bonds lost.
    pub lost: String,
    /// The share of a deal's bytes that has to be missing before challenging it pays, for the deal in the middle; nothing if none can be challenged.
    pub breaks_even_at: Option<f64>,
}

/// What this node does as a challenger, if it does or did anything.
pub(super) fn challenger(node: &Node) -> Result<Option<ChallengerStatus>, ApiError> {
    let record = node.challenger.record();
    let deals_per_period = node.config.challenge.deals_per_period;
    if deals_per_period == 0 && record == Record::default() {
        return Ok(None);
    }
    Ok(Some(ChallengerStatus {
        deals_per_period,
        asked: record.asked,
        shown: record.shown,
        received_bytes: record.received_bytes,
        suspects: record.suspects(),
        open: record.open(),
        challenged: record.challenged,
        answered: record.answered,
        won: record.won,
        earned: record.earned.to_string(),
        lost: record.lost.to_string(),
        breaks_even_at: node.challenger.breaks_even_at()?,
    }))
}

/// Challenges a deal on the ledger, for a bond that is lost if its provider shows what is drawn.
#[utoipa::path(post, path = "/v1/challenges/{deal}", params(("deal" = String, Path, description = "the deal, or the first 8 digits or more of it")),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn challenge_deal(
    State(node): Shared,
    Path(name): Path<String>,
) -> Result<StatusCode, ApiError> {
    let of_name = |l: &Ledger| -> Vec<DealId> {
        let named = l.state().deals().map(|(id, _)| id).filter(|id| id.to_string().starts_with(&name));
        named.take(2).collect()
    };
    let missing =
        |why: &str| Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_deal", format!("'{name}' {why}")));
    if name.len() < 8 {
        return missing("is too short: give the first 8 digits of a deal or more");
    }
    let named: Vec<DealId> = node.market.chain.view(of_name)?;
    let [deal] = named[..] else {
        let is_none = named.is_empty();
        return missing(if is_none {
            "names no deal on the ledger"
        } else {
            "names several deals: give more digits"
        });
    };
    match node.challenger.challenge(deal).await {
        Ok(()) => Ok(StatusCode::NO_CONTENT),
        Err(ChallengeError::Submit(error)) => Err(error.into()),
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// What a client says of its audits, for its provider to act upon.
pub(super) fn notice_alerts(node: &Node) -> Result<Vec<String>, ApiError> {
    let Some(earner) = &node.earner else { return Ok(Vec::new()) };
    let deals = earner.standings()?;
    let notices = earner.notices().map_err(ApiError::internal)?;
    let alert = |notice: &crate::frames::Notice| {
        let deal = deals.iter().find(|deal| deal.id == notice.deal)?;
        let client = deal.on_ledger.terms.client.to_string();
        let ago_s = unix_now_s().saturating_sub(notice.since_s);
        let in_s = notice.strikes_at_s.saturating_sub(unix_now_s());
        let strike = usize::from(notice.strikes) + 1;
        Some(format!(
            "client {} could not read shard {} {ago_s} s ago, since this node {}: {}. Nothing is promised for the deal meanwhile; if it goes on for {in_s} s, \
             it is strike {strike} of {STRIKES_MAX}, after which that client stores nothing new here",
            &client[..12],
            &notice.place.root.to_string()[..12],
            notice.fault.sentence(),
            notice.why
        ))
    };
    Ok(notices.iter().filter_map(alert).collect())
}
