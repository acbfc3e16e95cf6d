//! The short commands: ask the API, print the answer.

use reqwest::Method;

use super::Context;
use super::market::short;
use crate::api::{BlobInfo, BlobStat, ProviderInfo, ScrubStatus, ShardState, Status};
use crate::recover::Recovered;

/// A number of bytes for people: `1.5 GB`.
pub(super) fn bytes(bytes: u64) -> String {
    let units = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(scale, _)| bytes as f64 >= *scale) {
        Some((scale, unit)) => format!("{:.1} {unit}", bytes as f64 / scale),
        None => format!("{bytes} B"),
    }
}

/// A number of things: `1 blob`, `2 blobs`.
pub(super) fn count(number: impl Into<u64>, thing: &str) -> String {
    match number.into() {
        1 => format!("1 {thing}"),
        number => match thing.strip_suffix('y') {
            Some(stem) => format!("{number} {stem}ies"),
            None => format!("{number} {thing}s"),
        },
    }
}

/// A span of time for people: `3 h 20 min`.
pub(super) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// How the scrub stands, in one line.
fn scrub_line(scrub: &ScrubStatus) -> String {
    let last = match scrub.last_pass_s {
        None => "no full pass yet".to_owned(),
        Some(last_s) => format!("last full pass {} ago", span(crate::unix_now_s().saturating_sub(last_s))),
    };
    let checked = format!("{} ({})", count(scrub.checked_shards, "shard"), bytes(scrub.checked_bytes));
    match (scrub.rate, scrub.passing) {
        (0, _) => format!("off, since provide.scrub_rate is 0; {last}"),
        (_, true) => format!("{checked} read again so far; {last}; {} rotten", scrub.rotten_shards),
        (_, false) => format!("{checked} read again; {last}; {} rotten", scrub.rotten_shards),
    }
}

pub(super) async fn ls(context: &Context) -> anyhow::Result<()> {
    let blobs: Vec<BlobInfo> = context.api()?.json(Method::GET, &["blobs"]).await?;
    context.print(&blobs, |blobs, out| {
        for blob in blobs {
            line!(out, "{:>10}  {}", bytes(blob.bytes), blob.name);
        }
        if blobs.is_empty() {
            eprintln!("no blobs; `spare put FILE` stores one");
        }
    })
}

pub(super) async fn stat(context: &Context, name: &str, shards: bool) -> anyhow::Result<()> {
    let api = context.api()?;
    let request = api.request(Method::GET, &["stat", name]).query(&[("shards", shards)]);
    let stat: BlobStat = api.send(request).await?.json().await?;
    context.print(&stat, |stat, out| {
        let overhead = stat.stored_bytes as f64 / stat.blob.bytes.max(1) as f64;
        line!(out, "{}", stat.blob.name);
        line!(out, "  length    {} ({} bytes)", bytes(stat.blob.bytes), stat.blob.bytes);
        line!(
            out,
            "  code      {} in {}, {} stored ({overhead:.2} x)",
            stat.code,
            count(stat.segments as u64, "segment"),
            bytes(stat.stored_bytes)
        );
        let health = match stat.shards_to_spare {
            i64::MIN..0 if stat.shards_to_lose < 0 => {
                "LOST: providers have lost more shards than the code makes up for".to_owned()
            }
            i64::MIN..0 => "cannot be read now: too few providers are up".to_owned(),
            _ if stat.segments == 0 => "nothing is stored, so nothing can be lost".to_owned(),
            0 => "no further provider may be lost".to_owned(),
            spare => format!("{} may be lost", count(spare.unsigned_abs(), "more provider")),
        };
        line!(out, "  health    {health}");
        for holder in &stat.providers {
            let state = if holder.up { "up  " } else { "DOWN" };
            line!(
                out,
                "  {state}  {}  {:>9}  {}",
                &holder.node[..12],
                holder.shards.map_or_else(|| "?".to_owned(), |held| count(held as u64, "shard")),
                holder.operator.as_deref().unwrap_or("?")
            );
        }
        for (segment, shards) in stat.shards.iter().enumerate() {
            for (i, shard) in shards.iter().enumerate() {
                let state = match shard.state {
                    ShardState::Held => "",
                    ShardState::Lost => ", which has lost it",
                    ShardState::Unknown => ", which is down",
                };
                line!(
                    out,
                    "  segment {segment} shard {i:<3} {}  at {}{state}",
                    shard.root,
                    &shard.node[..12]
                );
            }
        }
    })
}

pub(super) async fn rm(context: &Context, name: &str, force: bool) -> anyhow::Result<()> {
    let api = context.api()?;
    api.send(api.request(Method::DELETE, &["blobs", name]).query(&[("force", force)])).await?;
    context.print(&serde_json::json!({"name": name, "removed": true}), |_, out| {
        line!(
            out,
            "{name} removed; its shards are being deleted, at providers that are away once they are back"
        );
    })
}

pub(super) async fn recover(context: &Context) -> anyhow::Result<()> {
    let recovered: Recovered = context.api()?.json(Method::POST, &["recover"]).await?;
    context.print(&recovered, |r, out| {
        line!(
            out,
            "{} found (index entry {}); {} of {} providers answered",
            count(r.blobs as u64, "blob"),
            r.index_seq,
            r.providers_answered,
            r.providers_asked
        );
    })
}

pub(super) async fn ticket(context: &Context) -> anyhow::Result<()> {
    let status: Status = context.api()?.json(Method::GET, &["status"]).await?;
    context.print(&serde_json::json!({"ticket": status.ticket}), |_, out| line!(out, "{}", status.ticket))
}

pub(super) async fn asks(context: &Context, why: bool) -> anyhow::Result<()> {
    let api = context.api()?;
    let asks: Vec<ProviderInfo> =
        api.send(api.request(Method::GET, &["asks"]).query(&[("why", why)])).await?.json().await?;
    context.print(&asks, |asks, out| {
        if asks.is_empty() {
            eprintln!("nobody offers room yet; asks arrive within seconds of joining a network");
            return;
        }
        line!(
            out,
            "{:<12}  {:>8}  {:>8}  {:>9}  {:<12}  {:<8}  address and state",
            "provider",
            "TB month",
            "TB read",
            "free",
            "operator",
            "region"
        );
        for ask in asks {
            let none = if ask.behind_nat { "behind a NAT" } else { "no direct address" };
            let addr = ask.direct.first().map_or(none, String::as_str);
            let state = match (ask.failing, ask.connected) {
                (true, _) => ", failed lately",
                (false, true) => ", connected",
                (false, false) => "",
            };
            let why = ask.why.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            line!(
                out,
                "{:<12}  {:>8}  {:>8}  {:>9}  {:<12}  {:<8}  {addr}{state}{why}",
                &ask.node[..12],
                ask.price,
                ask.read_price,
                bytes(ask.free_bytes),
                ask.operator,
                if ask.region.is_empty() { "-" } else { &ask.region },
            );
        }
        eprintln!("prices in credits, per TB and month of storage, and per TB read");
    })
}

pub(super) async fn status(context: &Context) -> anyhow::Result<()> {
    let status: Status = context.api()?.json(Method::GET, &["status"]).await?;
    context.print(&status, |s, out| {
        line!(
            out,
            "spare {}, running for {}, {} of memory",
            s.version,
            span(s.uptime_s),
            bytes(s.resident_bytes)
        );
        line!(out, "  account   {}", s.account);
        line!(out, "  node      {}", s.node);
        line!(
            out,
            "  listens   {} (direct), {} (libp2p)",
            s.direct.join(" "),
            s.libp2p.first().map_or("nowhere", String::as_str)
        );
        line!(
            out,
            "  network   {} connected, {} known",
            count(s.connected_peers as u64, "peer"),
            count(s.known_providers as u64, "provider")
        );
        for port in &s.reach {
            line!(
                out,
                "  {:<9} UDP port {} is {}: {}",
                port.service,
                port.port,
                port.how.words(),
                port.why
            );
            if let (Some(advice), Some(_)) = (&port.advice, &s.provider) {
                line!(out, "            -> {advice}");
            }
        }
        if s.relay.reservations > 0 {
            let peers = count(s.relay.reservations as u64, "peer");
            line!(out, "  relay     for {peers} behind NATs; {} introductions so far", s.relay.circuits);
        }
        for alert in &s.alerts {
            line!(out, "  ATTENTION {alert}");
        }
        line!(out, "  client    {}, {}", count(s.blobs as u64, "blob"), bytes(s.blob_bytes));
        let spending = &s.spending;
        if spending.deals > 0 {
            let funded = match spending.funded_s {
                None => "nothing is charged".to_owned(),
                Some(seconds) => format!("paid for in advance for {}", span(seconds)),
            };
            line!(
                out,
                "  spending  {} credits a month for {} at {}; {funded}",
                short(&spending.month),
                bytes(spending.bytes),
                count(spending.providers as u64, "provider")
            );
            line!(
                out,
                "  money     {} credits put aside for storage to come, {} free",
                short(&spending.escrow),
                short(&spending.free)
            );
            line!(out, "  audits    {} good since the node started", spending.audits);
        }
        for alert in &spending.alerts {
            line!(out, "  ATTENTION {alert}");
        }
        match &s.provider {
            Some(p) => {
                line!(
                    out,
                    "  provider  {} of disk in use, {} free, of {} on offer",
                    bytes(p.used_bytes),
                    bytes(p.free_bytes),
                    bytes(p.offered_bytes)
                );
                let others = match &p.other_prices[..] {
                    [low, _, high] if low == high => format!("others ask {low}"),
                    [low, middle, high] => {
                        format!("others ask {low} to {high}, half of them at most {middle}")
                    }
                    _ => "nobody else offers room".to_owned(),
                };
                line!(out, "  price     {} credits per TB and month; {others}", p.price);
                let e = &p.earnings;
                line!(
                    out,
                    "  renting   {} to {}, for {} credits a month",
                    bytes(e.bytes),
                    count(e.clients as u64, "client"),
                    short(&e.month)
                );
                line!(out, "  earned    {} credits so far, after the market's fee", short(&e.earned));
                line!(
                    out,
                    "  promised  {} credits by clients; they come every 24 periods, or now with `spare withdraw`",
                    short(&e.pending)
                );
                line!(out, "  accrued   {} credits that clients still have to promise", short(&e.unpromised));
                for alert in &e.alerts {
                    line!(out, "  ATTENTION {alert}");
                }
                line!(out, "  scrub     {}", scrub_line(&p.scrub));
                if !p.scrub.advice.is_empty() {
                    line!(out, "  ATTENTION {}", p.scrub.advice);
                }
                for rotten in &p.scrub.rotten {
                    line!(
                        out,
                        "  rotten    {} of {}: {}",
                        &rotten.root[..12],
                        &rotten.owner[..12],
                        rotten.why
                    );
                }
            }
            None => line!(out, "  provider  no; the setting provide.size offers room"),
        }
        match &s.compute {
            Some(c) => {
                let rate = c.fuel_per_s.map_or(String::new(), |rate| format!(", {:.2}G fuel a second each", rate as f64 / 1e9));
                line!(
                    out,
                    "  compute   {}: {} of {} places free, {} of memory{rate}; {} jobs ended, {} failed, {} refused",
                    c.state,
                    c.free_slots,
                    c.slots,
                    bytes(c.memory_bytes),
                    c.ended,
                    c.failed,
                    c.refused
                );
                for gpu in &c.gpus {
                    line!(
                        out,
                        "  gpu       {}, {}, {}; jobs on it are planned",
                        gpu.name,
                        bytes(gpu.memory_bytes),
                        gpu.driver
                    );
                }
                for aside in &c.gpus_set_aside {
                    line!(out, "  gpu       not offered: {aside}");
                }
                for why in &c.why_no_job {
                    line!(out, "  no jobs   {why}");
                }
            }
            None => line!(out, "  compute   no; the setting compute.offer runs jobs of others"),
        }
        if let Some(c) = &s.challenger {
            line!(
                out,
                "  challenger  asks about {} of others a period; {} asked, {} shown, {} received",
                count(c.deals_per_period, "deal"),
                count(c.asked, "time"),
                c.shown,
                bytes(c.received_bytes)
            );
            line!(
                out,
                "  challenges  {} made: {} answered, {} not, {} void since a newer head came, {} open; {} suspected. {} credits earned, {} lost in bonds",
                c.challenged,
                c.answered,
                c.won,
                c.challenged.saturating_sub(c.answered + c.won + c.open as u64),
                c.open,
                count(c.suspects as u64, "deal"),
                short(&c.earned),
                short(&c.lost)
            );
            match c.breaks_even_at {
                Some(share) => line!(out, "  break-even  a challenge pays where {:.2}% or more is missing", share * 100.0),
                None => line!(out, "  break-even  no deal of others has collateral and a head on the ledger yet"),
            }
        }
        line!(out, "  traffic   {} in, {} out", bytes(s.received_bytes), bytes(s.sent_bytes));
        for name in s.unfinished_puts.iter().filter(|name| !s.transfers.iter().any(|t| t.name == **name)) {
            line!(
                out,
                "  unfinished put: {name} (the same put goes on with it, `spare rm` gives its room back)"
            );
        }
        for t in &s.transfers {
            line!(
                out,
                "  {}       {}: {} done, {} shards sent",
                t.kind,
                t.name,
                bytes(t.done_bytes),
                t.shards_sent
            );
        }
    })
}
