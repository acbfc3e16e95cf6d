//! Routes about money: the account, the market, and what things cost.

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Json;
use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, AmountError, HOURS_PER_MONTH, StoragePrice};
use spare_market::block::Ledger;
use spare_market::deal::Deal;
use spare_market::keys::{PublicKey, PublicKeyError};
use spare_market::placement::{Wish, choose};
use spare_market::state::Key;
use spare_market::tx::Action;
use utoipa::{IntoParams, ToSchema};

use super::{ApiError, ErrorBody, Shared};
use crate::config::{Code, MaxPrice};
use crate::node::Node;

/// An account's money. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Balance {
    /// The account.
    pub account: String,
    /// What can be put into deals.
    pub free: String,
    /// What is in deals: escrow and collateral.
    pub locked: String,
    /// What deals have paid to this account so far, after fees.
    pub earned: String,
    /// What this account's deals have paid to others so far.
    pub spent: String,
    /// The ledger's block that says so.
    pub height: u64,
}

pub(super) fn balance_of(ledger: &Ledger, account: &PublicKey) -> Balance {
    let state = ledger.state();
    let money = state.account(account);
    let in_deal = |deal: &Deal| {
        let escrow = if deal.terms.client == *account { deal.escrow.0 } else { 0 };
        let collateral = if deal.terms.provider == *account { deal.collateral.0 } else { 0 };
        escrow + collateral
    };
    let locked = Amount(state.deals_of(account).map(|(_, deal)| in_deal(deal)).sum());
    Balance {
        account: account.to_string(),
        free: money.free.to_string(),
        locked: locked.to_string(),
        earned: money.earned.to_string(),
        spent: money.spent.to_string(),
        height: ledger.tip().height,
    }
}

/// Says how much money this node's account has.
#[utoipa::path(get, path = "/v1/balance", responses((status = 200, body = Balance), (status = 401, body = ErrorBody)))]
pub(super) async fn balance(State(node): Shared) -> Result<Json<Balance>, ApiError> {
    Ok(Json(node.market.chain.view(|ledger| balance_of(ledger, &node.identity.account))?))
}

/// The market as this node's ledger has it. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct MarketReport {
    /// The market's node key.
    pub market: String,
    /// Whether this node is the market.
    pub is_here: bool,
    /// Height of the newest block.
    pub height: u64,
    /// Its unix time in seconds.
    pub time_s: u64,
    /// Hash of its header, which commits to all before.
    pub block_hash: String,
    /// Root of the state after it.
    pub state_root: String,
    /// The period of the newest block.
    pub period: u64,
    /// Length of a period in seconds.
    pub period_s: u32,
    /// The market's share of payments, in ten-thousandths.
    pub fee_bps: u16,
    /// Credits issued.
    pub issued: String,
    /// Paid to providers so far, fees included: the market's revenue is a part of this.
    pub paid: String,
    /// Fees kept so far.
    pub fees: String,
    /// Rewards paid so far. There are none.
    pub rewards: String,
    /// Accounts that ever had money.
    pub accounts: usize,
    /// Nodes registered.
    pub nodes: usize,
    /// Deals that are not closed.
    pub deals: usize,
}

pub(super) fn hex(bytes: [u8; 32]) -> String {
    blake3::Hash::from_bytes(bytes).to_hex().to_string()
}

fn report(ledger: &Ledger, is_here: bool) -> MarketReport {
    let (genesis, tip, totals) = (ledger.genesis().v1(), ledger.tip(), ledger.state().totals());
    let count = |is: fn(&Key) -> bool| ledger.state().entries().filter(|(key, _)| is(key)).count();
    MarketReport {
        market: genesis.market.to_string(),
        is_here,
        height: tip.height,
        time_s: tip.time_s,
        block_hash: hex(tip.hash),
        state_root: hex(ledger.state().root()),
        period: ledger.period(),
        period_s: genesis.period_s,
        fee_bps: genesis.fee_bps,
        issued: totals.issued.to_string(),
        paid: totals.paid.to_string(),
        fees: totals.fees.to_string(),
        rewards: Amount::ZERO.to_string(),
        accounts: count(|key| matches!(key, Key::Account(_))),
        nodes: count(|key| matches!(key, Key::Delegate(_))),
        deals: count(|key| matches!(key, Key::Deal(_))),
    }
}

/// Says how the market stands.
#[utoipa::path(get, path = "/v1/market", responses((status = 200, body = MarketReport), (status = 401, body = ErrorBody)))]
pub(super) async fn market_report(State(node): Shared) -> Result<Json<MarketReport>, ApiError> {
    Ok(Json(node.market.chain.view(|ledger| report(ledger, node.market.is_here()))?))
}

/// Whom to fund with how much.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Funding {
    /// The account, 64 hex digits.
    pub account: String,
    /// Credits, as decimal text.
    pub amount: String,
}

/// Issues credits to an account. Only the market's node can.
#[utoipa::path(post, path = "/v1/market/fund", request_body = Funding, responses((status = 200, body = Balance),
    (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 409, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn market_fund(
    State(node): Shared,
    Json(funding): Json<Funding>,
) -> Result<Json<Balance>, ApiError> {
    let bad = |code, error: String| ApiError::new(StatusCode::BAD_REQUEST, code, error);
    let account: PublicKey =
        funding.account.parse().map_err(|e: PublicKeyError| bad("bad_account", e.to_string()))?;
    let amount = funding.amount.parse().map_err(|e: AmountError| bad("bad_amount", e.to_string()))?;
    node.wallet.send(Action::Fund { account, amount }).await?;
    Ok(Json(node.market.chain.view(|ledger| balance_of(ledger, &account))?))
}

#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct BlocksQuery {
    /// Height of the first block wanted; the first there is has height 1.
    from: u64,
}

/// Sends blocks in their canonical encoding, as many as come to about a mebibyte; none when there are no more. Those from before this node's
/// snapshot come from other peers.
#[utoipa::path(get, path = "/v1/market/blocks", params(BlocksQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>), (status = 401, body = ErrorBody)))]
pub(super) async fn market_blocks(
    State(node): Shared,
    Query(query): Query<BlocksQuery>,
) -> Result<Vec<u8>, ApiError> {
    Ok(spare_proofs::encode::to_bytes(&node.follower.blocks(query.from.max(1)).await?))
}

/// What is asked about.
#[derive(Debug, Deserialize, IntoParams)]
pub(super) struct QuoteQuery {
    /// Length of what is to be stored.
    bytes: u64,
    /// The code, `data+parity`; the node's default without it.
    #[serde(default)]
    code: Option<String>,
    /// Highest price of storage that is paid, in credits per TB and month; the node's setting without it.
    #[serde(default)]
    max_price: Option<String>,
}

/// What storing something costs. Amounts are decimal text, in credits.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Quote {
    /// Bytes of all shards together.
    pub stored_bytes: u64,
    /// The code, `k+parity`.
    pub code: String,
    /// What a month costs, at providers drawn as the put will draw them.
    pub month: String,
    /// What a month costs at most, if dearer ones are drawn.
    pub month_max: String,
    /// What reading everything once costs at most.
    pub read_max: String,
    /// The highest price of storage among those that may be drawn, in credits per TB and month.
    pub max_price: String,
    /// Money free to be put aside.
    pub free: String,
    /// Days of storage that a put pays for in advance.
    pub fund_days: u16,
}

/// The code that a request names, or the node's.
pub(super) fn code_of(node: &Node, text: Option<&String>) -> Result<Code, ApiError> {
    let Some(text) = text else { return Ok(node.config.client.code) };
    // In a query a plus sign is a space.
    let parsed = text.replace(' ', "+").parse();
    parsed.map_err(|e: String| ApiError::new(StatusCode::BAD_REQUEST, "bad_code", e))
}

/// The highest price that a request names, or the node's setting.
pub(super) fn price_max_of(node: &Node, text: Option<&String>) -> Result<StoragePrice, ApiError> {
    let Some(text) = text else { return Ok(node.client.price_max) };
    let parsed = MaxPrice::try_from(text.clone()).map(MaxPrice::storage_price);
    parsed.map_err(|e| ApiError::new(StatusCode::BAD_REQUEST, "bad_price", e))
}

/// Says what storing something costs, before it is stored.
#[utoipa::path(get, path = "/v1/quote", params(QuoteQuery), responses((status = 200, body = Quote), (status = 400, body = ErrorBody),
    (status = 401, body = ErrorBody), (status = 503, body = ErrorBody)))]
pub(super) async fn quote(
    State(node): Shared,
    Query(query): Query<QuoteQuery>,
) -> Result<Json<Quote>, ApiError> {
    let code = code_of(&node, query.code.as_ref())?;
    let price_max = price_max_of(&node, query.max_price.as_ref())?;
    let needed = code.0.n();
    node.client.find_providers(|c| c.peers.candidates().len() >= needed).await;
    let share_bytes = query.bytes.div_ceil(code.0.k() as u64);
    let candidates = node.client.peers.candidates();
    // A put draws anew for each segment, so what it looks for is room for a segment's shard.
    let shard_bytes = share_bytes.min(super::LONG_SHARD_BYTES / code.0.k() as u64);
    let wish = Wish { providers: needed, shard_bytes, price_max };
    let too_few = |e| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too_few_providers", format!("{e}"));
    let drawn = choose(&candidates, &[], &wish, &rand::random()).map_err(too_few)?;
    let month_s = HOURS_PER_MONTH * 3600;
    let sum = |prices: &mut dyn Iterator<Item = StoragePrice>| {
        Amount(prices.map(|price| price.cost(share_bytes, month_s).0).sum())
    };
    let mut prices: Vec<StoragePrice> = candidates
        .iter()
        .filter(|c| c.price <= price_max && c.free_bytes >= shard_bytes)
        .map(|c| c.price)
        .collect();
    prices.sort_unstable_by(|a, b| b.cmp(a));
    let asks = node.client.peers.book.valid(crate::unix_now_s());
    let read_price = asks.iter().map(|p| p.ask.read_price).max().unwrap_or_default();
    let free = node.market.chain.view(|ledger| ledger.state().account(&node.identity.account).free)?;
    Ok(Json(Quote {
        stored_bytes: share_bytes.saturating_mul(needed as u64),
        code: code.to_string(),
        month: sum(&mut drawn.iter().map(|c| c.price)).to_string(),
        month_max: sum(&mut prices.iter().take(needed).copied()).to_string(),
        read_max: read_price.cost(query.bytes).to_string(),
        max_price: prices.first().map_or(Amount::ZERO, |price| at_least(*price)).to_string(),
        free: free.to_string(),
        fund_days: node.config.client.fund_days,
    }))
}

/// `price` per TB and month, rounded so that it is not below the price when it is read again.
fn at_least(price: StoragePrice) -> Amount {
    let mut amount = price.to_tb_month();
    while StoragePrice::per_tb_month(amount).is_some_and(|read| read < price) {
        amount.0 += 1_000_000;
    }
    amount
}
