//! `audit`: what is held against providers, and evidence that anybody checks.

use std::path::Path;

use anyhow::Context as _;
use reqwest::Method;
use spare_market::claim::{CHALLENGE_BOND, CHALLENGE_TICKS};
use spare_market::signed::NetworkId;

use super::show::{count, span};
use super::{AuditCommand, Context};
use crate::api::AuditInfo;
use crate::evidence::{Evidence, EvidenceError, Finding};
use crate::limits::EVIDENCE_MAX_BYTES;
use crate::unix_now_s;

pub(super) async fn run(context: &Context, command: Option<AuditCommand>) -> anyhow::Result<()> {
    match command {
        None => list(context).await,
        Some(AuditCommand::Export { name, file }) => export(context, &name, &file).await,
        Some(AuditCommand::Challenge { deal }) => challenge(context, &deal).await,
        Some(AuditCommand::Verify { file }) => verify(context, &file),
    }
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let audits: Vec<AuditInfo> = context.api()?.json(Method::GET, &["audits"]).await?;
    context.print(&audits, |audits, out| {
        if audits.is_empty() {
            eprintln!("nothing is held against any provider");
        }
        let now_s = unix_now_s();
        let ago = |at_s: u64| format!("{} ago", span(now_s.saturating_sub(at_s)));
        for audit in audits {
            let operator = audit.operator.as_deref().unwrap_or("?");
            let weight = match audit.record_percent {
                0 => "gets nothing new".to_owned(),
                percent => format!("weighs {percent}% when providers are chosen"),
            };
            line!(
                out,
                "{}  {operator}: {}, {weight}",
                &audit.node[..12],
                count(audit.strikes.len() as u64, "strike")
            );
            for strike in &audit.strikes {
                line!(out, "  strike    {}: it {}: {}", ago(strike.at_s), strike.fault, strike.why);
            }
            if let Some(failing) = &audit.failing {
                let told = if failing.is_told { "it was told" } else { "it could not be told yet" };
                line!(
                    out,
                    "  failing   since {}, {}: it {}: {} ({told}; a strike in {})",
                    ago(failing.since_s),
                    count(failing.tries, "try"),
                    failing.fault,
                    failing.why,
                    span(failing.strikes_at_s.saturating_sub(now_s))
                );
            }
            for name in &audit.evidence {
                line!(
                    out,
                    "  evidence  {name}  (`spare audit export {name} FILE` writes it, for anybody to check)"
                );
            }
        }
    })
}

async fn export(context: &Context, name: &str, file: &Path) -> anyhow::Result<()> {
    let api = context.api()?;
    let bytes = api.send(api.request(Method::GET, &["evidence", name])).await?.bytes().await?;
    let mut options = std::fs::File::options();
    let opened = options.write(true).create_new(true).open(file);
    let mut opened = opened.with_context(|| format!("cannot write {}", file.display()))?;
    std::io::Write::write_all(&mut opened, &bytes)?;
    context.print(&serde_json::json!({"evidence": name, "file": file}), |_, out| {
        line!(out, "{name} is in {}; `spare audit verify FILE` checks it, on any machine", file.display());
    })
}

async fn challenge(context: &Context, deal: &str) -> anyhow::Result<()> {
    let api = context.api()?;
    api.send(api.request(Method::POST, &["challenges", deal])).await?;
    context.print(&serde_json::json!({"deal": deal, "challenged": true, "bond": CHALLENGE_BOND.to_string()}), |_, out| {
        line!(
            out,
            "{deal} is challenged for a bond of {CHALLENGE_BOND} credits; its provider has {CHALLENGE_TICKS} periods to show what it holds. \
             `spare status` tells what came of it"
        );
    })
}

/// Checks evidence without a node. With a node's folder, it has to be about that node's network.
fn verify(context: &Context, file: &Path) -> anyhow::Result<()> {
    let size = std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len();
    anyhow::ensure!(size <= EVIDENCE_MAX_BYTES as u64, "{} is too long for evidence", file.display());
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (evidence, finding) =
        check(context, &bytes).with_context(|| format!("{} shows nothing", file.display()))?;
    let Evidence::WrongBytes { network, read, .. } = &evidence;
    let found = serde_json::json!({
        "evidence": evidence.id(), "holds": true, "node": finding.node.to_string(), "deal": finding.deal.to_string(),
        "shard": finding.root.to_string(), "network": blake3::Hash::from_bytes(network.0).to_hex().to_string(),
        "bytes": read.stream.len(), "why": finding.error.to_string(),
    });
    context.print(&found, |_, out| {
        line!(out, "it holds: node {} signed wrong bytes", finding.node);
        line!(out, "  deal      {}, whose head it signed", finding.deal);
        line!(out, "  shard     {}, which is under that head", finding.root);
        line!(
            out,
            "  read      {} bytes, signed by it, are not the shard's: {}",
            read.stream.len(),
            finding.error
        );
    })
}

fn check(context: &Context, bytes: &[u8]) -> Result<(Evidence, Finding), EvidenceError> {
    let evidence = Evidence::from_bytes(bytes)?;
    let Evidence::WrongBytes { network, .. } = &evidence;
    let home: Option<NetworkId> = context.home.identity().ok().map(|identity| identity.network);
    let finding = evidence.check(home.unwrap_or(*network))?;
    Ok((evidence, finding))
}
