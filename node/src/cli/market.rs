//! `balance` and `market`: money, and the ledger that keeps it.

use anyhow::Context as _;
use reqwest::Method;
use spare_market::block::{Block, Ledger};
use spare_proofs::encode::from_bytes;

use super::http::Reported;
use super::show::{bytes, count, span, ticket};
use super::{Context, DealsCommand, MarketCommand};
use crate::api::{Balance, DealInfo, Funding, MarketReport, Withdrawn};
use crate::limits::BLOCKS_MAX_BYTES;

pub(super) async fn balance(context: &Context) -> anyhow::Result<()> {
    let balance: Balance = context.api()?.json(Method::GET, &["balance"]).await?;
    context.print(&balance, write_balance)
}

fn write_balance(balance: &Balance, out: &mut String) {
    line!(out, "account {}, in credits", balance.account);
    line!(out, "  free    {}", balance.free);
    line!(
        out,
        "  locked  {}  (in deals, as payment for storage and jobs to come or as collateral)",
        balance.locked
    );
    line!(out, "  earned  {}", balance.earned);
    line!(out, "  spent   {}", balance.spent);
}

pub(super) async fn deals(context: &Context, command: Option<DealsCommand>) -> anyhow::Result<()> {
    let api = context.api()?;
    if let Some(DealsCommand::Close { deal, force }) = command {
        api.send(api.request(Method::DELETE, &["deals", &deal]).query(&[("force", force)])).await?;
        return context.print(&serde_json::json!({"deal": deal, "closing": true}), |_, out| {
            line!(
                out,
                "{deal} is closing; what is left of its escrow comes back after 3 periods, but not within 5 minutes of a deal's making"
            );
        });
    }
    let deals: Vec<DealInfo> = api.json(Method::GET, &["deals"]).await?;
    let report: MarketReport = api.json(Method::GET, &["market"]).await?;
    context.print(&deals, |deals, out| {
        if deals.is_empty() {
            eprintln!("no deals; `spare put` makes them");
            return;
        }
        line!(
            out,
            "{:<8}  {:<22}  {:<7}  {:>9}  {:>12}  {:>12}  {:>12}  {:<10}  notes",
            "deal",
            "with",
            "state",
            "stored",
            "a month",
            "escrow",
            "paid",
            "funded for"
        );
        for deal in deals {
            let with = match deal.side.as_str() {
                "client" => format!(
                    "provider {}",
                    deal.operator.as_deref().filter(|o| !o.is_empty()).unwrap_or(&deal.with[..12])
                ),
                _ => format!("client {}", &deal.with[..12]),
            };
            let funded = match deal.funded_periods {
                _ if deal.bytes == 0 => "-".to_owned(),
                None => "free".to_owned(),
                Some(periods) => span(periods.saturating_mul(report.period_s.into())),
            };
            let notes = deal.failing.as_ref().map(|why| format!("audits fail, {why}")).unwrap_or_default();
            line!(
                out,
                "{:<8}  {with:<22}  {:<7}  {:>9}  {:>12}  {:>12}  {:>12}  {funded:<10}  {notes}",
                &deal.deal[..8],
                deal.state,
                bytes(deal.bytes),
                short(&deal.month),
                short(&deal.escrow),
                short(&deal.paid)
            );
        }
        eprintln!("in credits");
    })
}

/// An amount of credits for a column: to a millionth, or in full if it is less than that.
pub(super) fn short(amount: &str) -> String {
    let Some((whole, fraction)) = amount.split_once('.') else { return amount.to_owned() };
    let kept = fraction.get(..6).unwrap_or(fraction);
    if whole == "0" && kept.bytes().all(|digit| digit == b'0') {
        return amount.to_owned();
    }
    format!("{whole}.{}", kept.trim_end_matches('0')).trim_end_matches('.').to_owned()
}

pub(super) async fn withdraw(context: &Context) -> anyhow::Result<()> {
    let withdrawn: Withdrawn = context.api()?.json(Method::POST, &["withdraw"]).await?;
    context.print(&withdrawn, |w, out| {
        line!(
            out,
            "{} credits were due; they are paid as far as escrows have them, less the market's fee",
            w.amount
        );
        write_balance(&w.balance, out);
    })
}

pub(super) async fn run(context: &Context, command: MarketCommand) -> anyhow::Result<()> {
    match command {
        MarketCommand::Report => report(context).await,
        MarketCommand::Fund { account, amount } => {
            let api = context.api()?;
            let funding = Funding { account: account.to_string(), amount: amount.to_string() };
            let request = api.request(Method::POST, &["market", "fund"]).json(&funding);
            let balance: Balance = api.send(request).await?.json().await?;
            context.print(&balance, write_balance)
        }
        MarketCommand::Verify => verify(context).await,
        MarketCommand::Ticket => ticket(context).await,
    }
}

async fn report(context: &Context) -> anyhow::Result<()> {
    let report: MarketReport = context.api()?.json(Method::GET, &["market"]).await?;
    context.print(&report, |r, out| {
        let here = if r.is_here { "this node" } else { r.market.as_str() };
        line!(out, "market at {here}, block {}, period {} of {} s", r.height, r.period, r.period_s);
        line!(
            out,
            "  {}, {}, {}",
            count(r.accounts as u64, "account"),
            count(r.nodes as u64, "node"),
            count(r.deals as u64, "open deal")
        );
        line!(out, "  issued   {} credits", r.issued);
        line!(
            out,
            "  paid     {} credits to providers, of which the market keeps {}%",
            r.paid,
            f64::from(r.fee_bps) / 100.0
        );
        line!(out, "  fees     {} credits, with what challenges and disputes brought", r.fees);
        line!(out, "  rewards  {} credits, which the fees have to cover", r.rewards);
        line!(out, "  root     {}", r.state_root);
    })
}

/// Fetches every block from the node and replays it here. What the node says of itself plays no part but in the comparison at the end.
async fn verify(context: &Context) -> anyhow::Result<()> {
    let api = context.api()?;
    let (_, genesis) = context.home.identity_and_genesis()?;
    let mut ledger = Ledger::new(genesis)?;
    let report: MarketReport = api.json(Method::GET, &["market"]).await?;
    let mut txs = 0;
    while ledger.tip().height < report.height {
        let from = ledger.tip().height + 1;
        let request = api.request(Method::GET, &["market", "blocks"]).query(&[("from", from)]);
        let bytes = api.send(request).await?.bytes().await?;
        let blocks: Vec<Block> = from_bytes(&bytes, BLOCKS_MAX_BYTES).context("the node sent no blocks")?;
        anyhow::ensure!(!blocks.is_empty(), "the node has no block {from}");
        // The node may have gone on since it reported.
        let wanted = (report.height - ledger.tip().height) as usize;
        for block in blocks.into_iter().take(wanted) {
            txs += block.txs.len();
            ledger.accept(block)?;
        }
    }
    ledger.state().check_all()?;
    let root = blake3::Hash::from_bytes(ledger.state().root()).to_hex().to_string();
    if root != report.state_root {
        let message = format!("replaying leads to root {root}, the node has {}", report.state_root);
        return Err(Reported { code: "other_root".into(), message }.into());
    }
    let result =
        serde_json::json!({"height": report.height, "transactions": txs, "state_root": root, "holds": true});
    context.print(&result, |_, out| {
        line!(
            out,
            "{} with {} replayed: every signature and every rule holds,",
            count(report.height, "block"),
            count(txs as u64, "transaction")
        );
        line!(out, "no money was made or lost, and the state root is the node's, {root}");
    })
}
