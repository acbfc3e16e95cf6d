//! Routes about deals: how each one stands, closing one, being paid, and what all of them together earn and cost.

use std::collections::{BTreeSet, HashSet};

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, HOURS_PER_MONTH, StorageDue};
use spare_market::claim::{CHALLENGE_BOND, CHALLENGE_TICKS, Challenge};
use spare_market::deal::{Deal, DealId, GRACE_PERIODS, Status as DealStatus};
use spare_market::keys::PublicKey;
use spare_market::standing::Fault;
use spare_market::tab::Standing;
use utoipa::{IntoParams, ToSchema};

use super::audits::{failing_sentence, notice_alerts};
use super::market::{Balance, balance_of, hex};
use super::{ApiError, ErrorBody, Shared};
use crate::deals::{AuditState, DealError};
use crate::node::Node;
use crate::unix_now_s;

/// A deal as this node sees it. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct DealInfo {
    /// The deal.
    pub deal: String,
    /// This node's side: `client` or `provider`.
    pub side: String,
    /// The other side: the provider's node key, or the client's account.
    pub with: String,
    /// The provider's operator, if its ask is known.
    pub operator: Option<String>,
    /// `open`, `grace` when only the locked grace is left, or `closing`.
    pub state: String,
    /// Bytes of all shards under the newest head.
    pub bytes: u64,
    /// Price of storage, in credits per TB and month.
    pub price: String,
    /// What a month costs as things are.
    pub month: String,
    /// Put aside by the client and not yet paid.
    pub escrow: String,
    /// What is left of the provider's pledge.
    pub collateral: String,
    /// Whether its provider claims payment on the ledger, since no vouchers come.
    pub claiming: bool,
    /// Promised by vouchers so far.
    pub promised: String,
    /// Paid by the ledger so far, fees included.
    pub paid: String,
    /// Kept of that by the market.
    pub fee: String,
    /// Periods that the money lasts beyond the locked grace; nothing when nothing is charged.
    pub funded_periods: Option<u64>,
    /// The number of the newest head, 0 for none.
    pub head: u64,
    /// The hash of the newest head.
    pub head_hash: Option<String>,
    /// The first period for which it no longer holds.
    pub until: Option<u64>,
    /// Good audits since the node started.
    pub audits: u64,
    /// Why audits fail, if they do.
    pub failing: Option<String>,
}

/// What `rate` a period comes to in a month.
fn month_of(rate: StorageDue, period_s: u32) -> Amount {
    // To a second's fraction of a period, which is as fine as anyone reads it.
    let periods = (HOURS_PER_MONTH * 3600) / u64::from(period_s.max(1));
    rate.checked_mul(periods.max(1)).map_or(Amount::ZERO, StorageDue::floor)
}

fn state_of(deal: &Standing) -> String {
    let state = match deal.on_ledger.status {
        DealStatus::Closing { .. } => "closing",
        DealStatus::Open if deal.funding.in_grace => "grace",
        DealStatus::Open => "open",
    };
    state.to_owned()
}

/// Periods that the money lasts; nothing when nothing is charged.
fn funded(deal: &Standing) -> Option<u64> {
    (deal.funding.periods != u64::MAX).then_some(deal.funding.periods)
}

/// A deal, without what only one of the sides knows of it.
fn info(side: &str, with: PublicKey, deal: &Standing, period_s: u32) -> DealInfo {
    let head = deal.tab.head();
    DealInfo {
        deal: deal.id.to_string(),
        side: side.to_owned(),
        with: with.to_string(),
        operator: None,
        state: state_of(deal),
        bytes: deal.tab.bytes(),
        price: deal.on_ledger.terms.price.to_tb_month().to_string(),
        month: month_of(deal.tab.rate(), period_s).to_string(),
        escrow: deal.on_ledger.escrow.to_string(),
        collateral: deal.on_ledger.collateral.to_string(),
        claiming: deal.on_ledger.claiming.is_some_and(|claiming| claiming.is_on()),
        promised: deal.promised().to_string(),
        paid: deal.on_ledger.paid.to_string(),
        fee: deal.on_ledger.fee.to_string(),
        funded_periods: funded(deal),
        head: head.map_or(0, |h| h.head.seq),
        head_hash: head.map(|h| hex(h.hash)),
        until: head.map(|h| h.head.until),
        audits: 0,
        failing: None,
    }
}

pub(super) fn operator_of(node: &Node, provider: &PublicKey) -> Option<String> {
    node.client.peers.book.get(provider).map(|p| p.ask.operator)
}

fn bought_info(node: &Node, deal: &Standing, audit: AuditState) -> DealInfo {
    let provider = deal.on_ledger.terms.node;
    DealInfo {
        operator: operator_of(node, &provider),
        audits: audit.good,
        failing: failing_sentence(&node.client.peers.standings.of(&provider)),
        ..info("client", provider, deal, node.client.deals.period_s())
    }
}

fn deal_error(error: &DealError) -> ApiError {
    let (status, code) = match error {
        DealError::Funds { .. } => (StatusCode::PAYMENT_REQUIRED, "funds"),
        DealError::NoDeal => (StatusCode::NOT_FOUND, "no_such_deal"),
        DealError::Submit(_) => (StatusCode::SERVICE_UNAVAILABLE, "market_unreachable"),
        DealError::Meta(_) | DealError::Chain(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
        _ => (StatusCode::BAD_GATEWAY, "provider_failed"),
    };
    ApiError::new(status, code, error)
}

/// Lists the deals of this node, on either side.
#[utoipa::path(get, path = "/v1/deals", responses((status = 200, body = Vec<DealInfo>), (status = 401, body = ErrorBody)))]
pub(super) async fn list_deals(State(node): Shared) -> Result<Json<Vec<DealInfo>>, ApiError> {
    let bought = node.client.deals.standings()?;
    let provided = node.earner.as_ref().map(|earner| earner.standings()).transpose()?.unwrap_or_default();
    let period_s = node.client.deals.period_s();
    let bought = bought.into_iter().map(|(deal, audit)| bought_info(&node, &deal, audit));
    let provided = provided.iter().map(|deal| info("provider", deal.on_ledger.terms.client, deal, period_s));
    Ok(Json(bought.chain(provided).collect()))
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct CloseQuery {
    /// Whether to close also a deal that covers shards, which are lost with it.
    #[serde(default)]
    force: bool,
}

/// Begins to close a deal of which this node is the client. What is left of its escrow comes back after 3 periods.
#[utoipa::path(delete, path = "/v1/deals/{deal}", params(("deal" = String, Path, description = "the deal, or the first 8 digits or more of it"), CloseQuery),
    responses((status = 204), (status = 401, body = ErrorBody), (status = 404, body = ErrorBody), (status = 409, body = ErrorBody),
        (status = 503, body = ErrorBody)))]
pub(super) async fn close_deal(
    State(node): Shared,
    Path(name): Path<String>,
    Query(query): Query<CloseQuery>,
) -> Result<StatusCode, ApiError> {
    let deals = &node.client.deals;
    let mut named: Vec<_> = deals.cells();
    named.retain(|cell| name.len() >= 8 && cell.id.to_string().starts_with(&name));
    let [cell] = &named[..] else {
        let message =
            format!("'{name}' is no deal of which this node is the client; `spare deals` lists them");
        return Err(ApiError::new(StatusCode::NOT_FOUND, "no_such_deal", message));
    };
    let bytes = cell.head().map_or(0, |head| head.head.bytes);
    if bytes > 0 && !query.force {
        let message = format!(
            "{bytes} bytes are stored under this deal and would be lost; remove the blobs first, or add --force"
        );
        return Err(ApiError::new(StatusCode::CONFLICT, "deal_in_use", message));
    }
    deals.close(cell).await.map_err(|error| deal_error(&error))?;
    Ok(StatusCode::NO_CONTENT)
}

/// What was withdrawn.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Withdrawn {
    /// Credits that vouchers promised and are now paid, the market's fee included, as decimal text.
    pub amount: String,
    /// The account's money now.
    pub balance: Balance,
}

/// Puts the newest voucher of every deal on the ledger, so that what clients have promised is paid.
#[utoipa::path(post, path = "/v1/withdraw", responses((status = 200, body = Withdrawn), (status = 401, body = ErrorBody),
    (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn withdraw(State(node): Shared) -> Result<Json<Withdrawn>, ApiError> {
    let Some(earner) = &node.earner else {
        let message = "this node offers no storage, so nobody owes it anything";
        return Err(ApiError::new(StatusCode::CONFLICT, "not_a_provider", message));
    };
    let amount = earner.withdraw(&node.wallet).await?.to_string();
    let balance = node.market.chain.view(|ledger| balance_of(ledger, &node.identity.account))?;
    Ok(Json(Withdrawn { amount, balance }))
}

/// What a provider earns. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Earnings {
    /// Deals that are open or closing.
    pub deals: usize,
    /// Clients with whom.
    pub clients: usize,
    /// Bytes of all shards under heads.
    pub bytes: u64,
    /// Paid by the ledger so far, after fees.
    pub earned: String,
    /// Promised by vouchers and not yet paid.
    pub pending: String,
    /// Owed for what was stored and read, and not promised yet.
    pub unpromised: String,
    /// What a month brings as things are, before fees.
    pub month: String,
    /// What needs attention.
    pub alerts: Vec<String>,
}

/// Periods of funding at which a deal's end is announced.
const ALERT_PERIODS: [u64; 2] = [14, 3];

/// What is to be said of the money of a deal, if anything is stored under it. After the time that is paid for in advance comes a grace of 7
/// periods, then the deal is closed.
fn funding_alert(whose: &str, deal: &Standing, period_s: u32) -> Option<String> {
    if deal.tab.bytes() == 0 {
        return None;
    }
    if deal.on_ledger.status != DealStatus::Open {
        return Some(format!("{whose} is being closed; what is stored under it goes with it"));
    }
    if deal.funding.in_grace {
        return Some(format!(
            "{whose} has run dry: unless the client's account gets money, it is closed within {GRACE_PERIODS} periods of {period_s} s, and what is stored under it is lost"
        ));
    }
    let periods = funded(deal).filter(|periods| *periods <= ALERT_PERIODS[0])?;
    let lasts = format!("{whose} is paid for in advance for {periods} more periods of {period_s} s");
    if periods > ALERT_PERIODS[1] {
        return Some(lasts);
    }
    Some(format!("{lasts} only, and then {GRACE_PERIODS} of grace; the client's account needs money"))
}

/// What is missing of the collateral that a deal began with.
fn collateral_alert(deal: &Standing) -> Option<String> {
    let (began, left) = (deal.on_ledger.terms.collateral, deal.on_ledger.collateral);
    let is_less = deal.on_ledger.status == DealStatus::Open && left < began;
    is_less.then(|| {
        let (id, lost) = (deal.id.to_string(), began.saturating_sub(left));
        format!("deal {}: {lost} of {began} credits of its collateral are lost, for what was not shown when it was asked for", &id[..8])
    })
}

/// What the ledger asks of this provider.
fn exposed_alerts(node: &Node) -> Result<Vec<String>, ApiError> {
    let Some(earner) = &node.earner else { return Ok(Vec::new()) };
    let (tick, period_s) =
        node.market.chain.view(|l| (l.state().totals().ticks, l.genesis().v1().period_s))?;
    let alert = |(id, deal): (DealId, Deal)| {
        let mut words = Vec::new();
        if deal.claiming.is_some_and(|claiming| claiming.is_on()) {
            words.push(
                "payment is claimed on the ledger each period, until its client's vouchers keep coming"
                    .to_owned(),
            );
        }
        if let Some(head) = deal.head.filter(|_| deal.challenges > 0) {
            let challenge = Challenge { head, made_tick: tick, bond: CHALLENGE_BOND, moved: 0 };
            let penalty = challenge.penalty(&deal, period_s);
            let whose = if deal.challenges == 1 { "a challenge is" } else { "challenges are" };
            words.push(format!(
                "{whose} open: what is not shown within {CHALLENGE_TICKS} periods costs {penalty} credits of its collateral"
            ));
        }
        format!("deal {}: {}", &id.to_string()[..8], words.join("; "))
    };
    Ok(earner.exposed()?.into_iter().map(alert).collect())
}

/// What this node earns as a provider.
pub(super) fn earnings(node: &Node) -> Result<Earnings, ApiError> {
    let Some(earner) = &node.earner else { return Ok(Earnings::default()) };
    let deals = earner.standings()?;
    let sum =
        |amount: &dyn Fn(&Standing) -> Amount| Amount(deals.iter().map(|d| amount(d).0).sum()).to_string();
    let period_s = node.client.deals.period_s();
    let alert = |deal: &Standing| {
        let client = deal.on_ledger.terms.client.to_string();
        funding_alert(&format!("the deal with client {}", &client[..12]), deal, period_s)
    };
    let clients: BTreeSet<PublicKey> = deals.iter().map(|deal| deal.on_ledger.terms.client).collect();
    Ok(Earnings {
        deals: deals.len(),
        clients: clients.len(),
        bytes: deals.iter().map(|deal| deal.tab.bytes()).sum(),
        earned: node.market.chain.view(|l| l.state().account(&node.identity.account).earned)?.to_string(),
        pending: sum(&Standing::pending),
        unpromised: sum(&|deal| deal.open.saturating_sub(deal.pending())),
        month: sum(&|deal| month_of(deal.tab.rate(), period_s)),
        alerts: deals
            .iter()
            .filter_map(alert)
            .chain(deals.iter().filter_map(collateral_alert))
            .chain(notice_alerts(node)?)
            .chain(exposed_alerts(node)?)
            .collect(),
    })
}

/// What a client spends. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct Spending {
    /// Deals that are open.
    pub deals: usize,
    /// Providers with whom.
    pub providers: usize,
    /// Bytes of all shards under heads.
    pub bytes: u64,
    /// What a month costs as things are.
    pub month: String,
    /// Put aside in deals and not yet paid.
    pub escrow: String,
    /// Money free to be put aside.
    pub free: String,
    /// Seconds for which the deal that runs dry first is funded, beyond the grace; nothing when nothing is charged.
    pub funded_s: Option<u64>,
    /// Good audits since the node started.
    pub audits: u64,
    /// What needs attention.
    pub alerts: Vec<String>,
}

/// Shards that a provider was seen to have lost, as far back as strikes count.
fn lost_shards(standing: &spare_market::standing::Standing) -> usize {
    let strikes = standing.strikes(unix_now_s());
    let lost = strikes.filter(|strike| matches!(strike.fault, Fault::Lost | Fault::WrongBytes));
    lost.map(|strike| strike.place.root).collect::<HashSet<_>>().len()
}

/// What this node spends as a client.
pub(super) fn spending(node: &Node) -> Result<Spending, ApiError> {
    let deals = node.client.deals.standings()?;
    let period_s = node.client.deals.period_s();
    let mut alerts = Vec::new();
    for (deal, _) in &deals {
        let provider = &deal.on_ledger.terms.node;
        let operator = operator_of(node, provider).unwrap_or_default();
        let whose = format!("the deal with provider {} {operator}", &provider.to_string()[..12]);
        alerts.extend(funding_alert(whose.trim(), deal, period_s));
        if let Some(failing) = failing_sentence(&node.client.peers.standings.of(provider)) {
            alerts.push(format!("{} fails its audits; {failing}", whose.trim()));
        }
        match lost_shards(&node.client.peers.standings.of(provider)) {
            0 => {}
            lost => alerts.push(format!(
                "{}: it has lost {lost} of your shards, so what has shards there can bear less; `spare stat NAME` says how much, and `spare put FILE \
                 --name NAME --replace` stores it anew",
                whose.trim()
            )),
        }
    }
    let open: Vec<_> = deals.iter().filter(|(deal, _)| deal.on_ledger.status == DealStatus::Open).collect();
    let sum = |amount: &dyn Fn(&Standing) -> Amount| {
        Amount(open.iter().map(|(d, _)| amount(d).0).sum()).to_string()
    };
    let charged = open.iter().filter(|(deal, _)| deal.tab.bytes() > 0).filter_map(|(deal, _)| funded(deal));
    let providers: BTreeSet<PublicKey> = open.iter().map(|(deal, _)| deal.on_ledger.terms.node).collect();
    Ok(Spending {
        deals: open.len(),
        providers: providers.len(),
        bytes: open.iter().map(|(deal, _)| deal.tab.bytes()).sum(),
        month: sum(&|deal| month_of(deal.tab.rate(), period_s)),
        escrow: sum(&|deal| deal.on_ledger.escrow),
        free: node.market.chain.view(|l| l.state().account(&node.identity.account).free)?.to_string(),
        funded_s: charged.min().map(|periods| periods.saturating_mul(period_s.into())),
        audits: open.iter().map(|(_, audit)| audit.good).sum(),
        alerts,
    })
}
