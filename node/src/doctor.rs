//! `spare doctor`: what keeps a node from doing its work, and what to do about it.
//!
//! **Goals.** Each check says what was found in plain words, and where something is wrong, what to do. What can be looked at from outside is
//! looked at without a node, too. **Non-goals.** Repairing anything.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::config::Config;
use crate::home::Home;
use crate::market::AWAY_S;
use crate::node::Node;
use crate::reach::{How, PortReport};
use crate::shards::Volume;
use crate::transport::UDP_BUFFER_BYTES;
use crate::unix_now_s;

/// Free space of the node's folder below which metadata may soon not be kept.
const DISK_FREE_MIN_BYTES: u64 = 256 << 20;
/// Free space below which it is time to think of it.
const DISK_FREE_LOW_BYTES: u64 = 2 << 30;
/// Open files that a small node needs; each peer and each shard under way takes one.
const OPEN_FILES_MIN: u64 = 1024;
/// Open files that a node with many peers may need.
const OPEN_FILES_LOW: u64 = 8192;
/// How far others' clocks may seem ahead of this one before it counts as slow.
const CLOCK_SLOW_S: u64 = 30;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing to do.
    Ok,
    /// It works, and could work better.
    Warning,
    /// Something needs doing.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// What to do.
    pub advice: Option<String>,
}

fn ok(name: &str, finding: impl Into<String>) -> Check {
    Check { name: name.to_owned(), level: Level::Ok, finding: finding.into(), advice: None }
}

fn bad(name: &str, level: Level, finding: impl Into<String>, advice: impl Into<String>) -> Check {
    Check { name: name.to_owned(), level, finding: finding.into(), advice: Some(advice.into()) }
}

/// Looks at a running node.
///
/// # Errors
/// When its ledger cannot be read.
pub fn of_node(node: &Node) -> Result<Vec<Check>, crate::chain::ChainError> {
    let is_provider = node.earner.is_some();
    let mut checks: Vec<Check> =
        node.reach.report(unix_now_s()).iter().map(|port| of_port(port, is_provider)).collect();
    checks.push(of_peers(node));
    checks.push(of_market(node)?);
    checks.push(of_clock(node)?);
    checks.extend(of_folders(&node.home, &node.config));
    checks.extend(node.earner.as_ref().map(|earner| of_shards(earner.volume())));
    checks.push(of_buffers(node.direct.buffer_bytes as u64));
    checks.push(of_open_files());
    Ok(checks)
}

/// Looks at what can be seen without a running node, and says that none runs.
pub fn of_machine(home: &Home, config: &Config) -> Vec<Check> {
    let mut checks = vec![bad(
        "node",
        Level::Problem,
        format!(
            "no node runs for {}: ports, peers, market and clock were not looked at",
            home.path().display()
        ),
        "start it with `spare serve`, then ask again",
    )];
    checks.extend(of_folders(home, config));
    let granted = ["rmem_max", "wmem_max"].map(|name| {
        let text = std::fs::read_to_string(Path::new("/proc/sys/net/core").join(name)).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    });
    checks.push(of_buffers(granted[0].min(granted[1]).min(UDP_BUFFER_BYTES as u64)));
    checks.push(of_open_files());
    checks
}

fn of_port(port: &PortReport, is_provider: bool) -> Check {
    let name = format!("{} port", port.service);
    let finding = format!("UDP {} is {}: {}", port.port, port.how.words(), port.why);
    let level = match port.how {
        How::Public | How::Mapped | How::Local => Level::Ok,
        // Nobody dials a node that offers nothing.
        _ if !is_provider => {
            return ok(&name, format!("{finding}. A node that offers no room needs no open port"));
        }
        How::Unreachable => Level::Problem,
        How::Punch | How::Unknown => Level::Warning,
    };
    Check { name, level, finding, advice: port.advice.clone().filter(|_| level > Level::Ok) }
}

fn of_peers(node: &Node) -> Check {
    let count = node.addresses.connected().len();
    if count > 0 || node.market.is_here() {
        return ok("peers", format!("{count} connected"));
    }
    let advice = "see that this machine is online, and that network.peers names a peer that is up; a new ticket has newer addresses";
    bad("peers", Level::Problem, "none is connected", advice)
}

fn of_market(node: &Node) -> Result<Check, crate::chain::ChainError> {
    let (height, made_s) = node.market.chain.view(|ledger| (ledger.tip().height, ledger.tip().time_s))?;
    if node.market.is_here() {
        return Ok(ok("market", format!("this node is the market; its ledger has {height} blocks")));
    }
    let silent_s = unix_now_s().saturating_sub(made_s.max(node.genesis.v1().started_s));
    let is_connected = node.addresses.is_connected(&node.market.node);
    let finding = format!("block {height} arrived; it was made {silent_s} s ago");
    Ok(if silent_s > 2 * u64::from(node.client.deals.period_s()) + AWAY_S {
        let advice = if is_connected {
            "the market stands still, or this machine's clock is ahead; compare the clock first"
        } else {
            "the market is away, or cannot be reached from here; ask who runs it, or get a new ticket"
        };
        bad("market", Level::Problem, finding, advice)
    } else if is_connected {
        ok("market", format!("connected and in step: {finding}"))
    } else {
        let advice = "blocks come by way of other peers; to pay, the market itself has to be reached";
        bad("market", Level::Warning, format!("in step, but not connected: {finding}"), advice)
    })
}

/// Compares the clock with the newest block and with the asks that others made: neither can come from the future.
fn of_clock(node: &Node) -> Result<Check, crate::chain::ChainError> {
    let now_s = unix_now_s();
    let block_s = node.market.chain.view(|ledger| ledger.tip().time_s)?;
    let own = node.identity.node_key().public();
    let asks = node.client.peers.book.valid(now_s).into_iter().filter(|p| p.node != own);
    let newest_s = asks.map(|p| p.ask.made_s).chain([block_s]).max().unwrap_or(block_s);
    let ahead_s = newest_s.saturating_sub(now_s);
    Ok(if ahead_s > CLOCK_SLOW_S {
        let finding =
            format!("this machine's clock is at least {ahead_s} s behind the market's and other peers'");
        bad(
            "clock",
            Level::Problem,
            finding,
            "set the clock, best by switching on time synchronisation (timedatectl set-ntp true)",
        )
    } else {
        ok("clock", "nothing that others signed comes from its future")
    })
}

fn of_shards(volume: &Volume) -> Check {
    match volume.rotten_shards() {
        Ok(0) => ok("shards", "none is known to be lost or damaged"),
        Ok(rotten) => {
            let advice = "look at the disk (for instance with `smartctl -a`, and at what the kernel logged), and move the folder to another one \
                          if it fails; what their clients store again is whole again";
            bad(
                "shards",
                Level::Problem,
                format!("lost, damaged or unreadable on the disk: {rotten}"),
                advice,
            )
        }
        Err(error) => bad("shards", Level::Problem, error.to_string(), "see the node's log"),
    }
}

fn of_folders(home: &Home, config: &Config) -> Vec<Check> {
    let mut folders = vec![("folder", home.path().to_owned())];
    if config.provide.size.0 > 0 {
        let volume = match config.provide.dir.as_str() {
            "" => home.file("volume"),
            dir => PathBuf::from(dir),
        };
        folders.push(("shards' folder", volume));
    }
    folders.into_iter().map(|(name, path)| of_folder(name, &path)).collect()
}

fn of_folder(name: &str, path: &Path) -> Check {
    let shown = path.display();
    let probe = path.join(".doctor");
    if let Err(error) = File::create(&probe).and_then(|_| std::fs::remove_file(&probe)) {
        let advice = "see that the folder is there, belongs to the user that runs the node, and that its disk is not full or read-only";
        return bad(name, Level::Problem, format!("{shown} cannot be written: {error}"), advice);
    }
    let free_bytes = match rustix::fs::statvfs(path) {
        Ok(stat) => stat.f_bavail.saturating_mul(stat.f_frsize),
        Err(error) => {
            let advice = "see whether the disk is all right";
            return bad(
                name,
                Level::Warning,
                format!("{shown}: its free space is not known: {error}"),
                advice,
            );
        }
    };
    let finding = format!("{shown} can be written; {} MiB are free", free_bytes >> 20);
    if free_bytes < DISK_FREE_MIN_BYTES {
        bad(name, Level::Problem, finding, "free some space, or offer less (provide.size)")
    } else if free_bytes < DISK_FREE_LOW_BYTES {
        bad(name, Level::Warning, finding, "free some space soon")
    } else {
        ok(name, finding)
    }
}

fn of_buffers(granted_bytes: u64) -> Check {
    let finding = format!("the kernel grants {} KiB to a UDP socket", granted_bytes >> 10);
    let wanted_bytes = UDP_BUFFER_BYTES as u64;
    if granted_bytes >= wanted_bytes {
        return ok("UDP buffers", finding);
    }
    let advice = format!(
        "for fast transfers: sysctl -w net.core.rmem_max={wanted_bytes} net.core.wmem_max={wanted_bytes}, and the same in \
         /etc/sysctl.d; then start the node anew"
    );
    bad("UDP buffers", Level::Warning, finding, advice)
}

fn of_open_files() -> Check {
    let limit = getrlimit(Resource::Nofile).maximum;
    let finding =
        limit.map_or("open files are not limited".to_owned(), |n| format!("up to {n} files may be open"));
    let advice = "raise the limit, for instance with LimitNOFILE=65536 in the service, or `ulimit -Hn 65536`";
    match limit.unwrap_or(u64::MAX) {
        few if few < OPEN_FILES_MIN => bad("open files", Level::Problem, finding, advice),
        few if few < OPEN_FILES_LOW => bad("open files", Level::Warning, finding, advice),
        _ => ok("open files", finding),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(how: How) -> PortReport {
        PortReport {
            service: "direct".into(),
            port: 4711,
            how,
            addr: None,
            tester: None,
            tested_s: None,
            why: "because".into(),
            advice: Some("do something".into()),
        }
    }

    #[test]
    fn a_provider_needs_its_ports_and_a_client_does_not() {
        let check = of_port(&port(How::Unreachable), true);
        assert_eq!((check.level, check.advice.as_deref()), (Level::Problem, Some("do something")));
        assert_eq!(of_port(&port(How::Punch), true).level, Level::Warning);
        let check = of_port(&port(How::Unreachable), false);
        assert_eq!((check.level, check.advice), (Level::Ok, None));
        assert!(check.finding.contains("needs no open port"), "{}", check.finding);
        assert_eq!(of_port(&port(How::Public), true).level, Level::Ok);
    }

    #[test]
    fn without_a_node_the_machine_is_looked_at_and_serve_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let checks = of_machine(&Home::new(dir.path().to_owned()), &Config::default());
        assert!(checks[0].advice.as_ref().unwrap().contains("spare serve"));
        let folder = checks.iter().find(|check| check.name == "folder").unwrap();
        assert!(folder.finding.contains("can be written"), "{folder:?}");
        let checks = of_machine(&Home::new(dir.path().join("none")), &Config::default());
        assert_eq!(checks.iter().find(|check| check.name == "folder").unwrap().level, Level::Problem);
    }

    #[test]
    fn small_buffers_are_a_warning_with_the_command_that_helps() {
        assert_eq!(of_buffers(UDP_BUFFER_BYTES as u64).level, Level::Ok);
        let check = of_buffers(212_992);
        assert_eq!(check.level, Level::Warning);
        assert!(check.advice.unwrap().contains("net.core.rmem_max=4194304"));
    }
}
