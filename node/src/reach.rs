//! Whether, and how, others can reach this node: kept for each of its two UDP ports.
//!
//! **Participants.** *Testers* are peers that dial a port back, by AutoNAT (libp2p's port) or by `spare/1`'s `DialBack` (both ports). The
//! *router* may forward ports by UPnP. *Relays* let peers behind NATs agree on when to dial each other.
//!
//! **Goals.** One verdict for each port, with who found it, when, and why not. No single peer's word decides where several were heard: the
//! newest finding of each network counts once, and as many successes as failures make a port reachable.
//!
//! **Non-goals.** Finding out what kind of NAT there is. What counts is who got through.

pub(crate) mod dial_back;
mod rate;
pub(crate) mod watch;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Mutex;

use serde::{Deserialize, Serialize};
use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use tokio::sync::Notify;
use utoipa::ToSchema;

use crate::frames::{Dialled, Service};
use crate::limits::{FINDING_LIFE_S, FINDINGS_MAX, PUNCH_TIMEOUT};

pub use rate::SubnetRate;

/// How a port is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// By anybody, at an address that testers outside got through to.
    Public,
    /// By anybody, since the router forwards the port, as UPnP asked it to.
    Mapped,
    /// By peers in this node's own network; nobody outside has tested.
    Local,
    /// By peers that a relay introduces, once both sides have dialled each other.
    Punch,
    /// By nobody.
    Unreachable,
    /// Nobody has tested yet.
    Unknown,
}

impl How {
    /// Whether a peer can dial the port and be answered.
    pub fn is_dialable(self) -> bool {
        matches!(self, Self::Public | Self::Mapped | Self::Local)
    }

    /// In plain words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Public => "reachable",
            Self::Mapped => "reachable by UPnP",
            Self::Local => "reachable from its own network",
            Self::Punch => "reachable by hole punching only",
            Self::Unreachable => "NOT reachable",
            Self::Unknown => "not tested yet",
        }
    }
}

/// One port, as users see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PortReport {
    /// `libp2p` or `direct`.
    pub service: String,
    /// The UDP port.
    pub port: u16,
    /// How it is reached.
    pub how: How,
    /// Where others reach it, or where they tried.
    pub addr: Option<String>,
    /// The node key of the last peer that tested.
    pub tester: Option<String>,
    /// Unix time in seconds of that test.
    pub tested_s: Option<u64>,
    /// Why it is so, in plain words.
    pub why: String,
    /// What the owner can do, if anything.
    pub advice: Option<String>,
}

/// What a tester found.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    tester: PublicKey,
    at_s: u64,
    /// Where it dialled.
    addr: SocketAddr,
    outcome: Dialled,
}

/// What is known of one port.
#[derive(Debug, Default)]
struct Facts {
    port: u16,
    findings: HashMap<Subnet, Finding>,
    /// Where the router forwards from.
    mapped: Option<SocketAddr>,
}

/// What asking the router came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Router {
    /// It is still asked.
    #[default]
    Asking,
    /// UPnP is switched off, or there is no router to ask.
    NotAsked,
    /// None answers.
    None,
    /// It has no public address itself.
    BehindAnother,
}

/// How hole punching went.
#[derive(Debug, Default)]
struct Punches {
    succeeded: u64,
    /// Failures since the last success, and the last of them.
    failed_in_row: u32,
    last_failure: Option<(PublicKey, String)>,
}

#[derive(Debug, Default)]
struct State {
    libp2p: Facts,
    direct: Facts,
    router: Router,
    /// Where peers in different networks see libp2p's port.
    observed: HashMap<Subnet, SocketAddr>,
    /// Relays at which this node can be asked for.
    relays: Vec<PublicKey>,
    punches: Punches,
}

impl State {
    fn facts(&mut self, service: Service) -> &mut Facts {
        match service {
            Service::Libp2p => &mut self.libp2p,
            Service::Direct => &mut self.direct,
        }
    }

    fn of(&self, service: Service) -> &Facts {
        match service {
            Service::Libp2p => &self.libp2p,
            Service::Direct => &self.direct,
        }
    }

    /// The address at which most networks see libp2p's port.
    fn believed(&self) -> Option<SocketAddr> {
        let mut votes: HashMap<SocketAddr, usize> = HashMap::new();
        for addr in self.observed.values() {
            *votes.entry(*addr).or_default() += 1;
        }
        votes.into_iter().max_by_key(|(addr, votes)| (!is_private(addr.ip()), *votes, *addr)).map(|(a, _)| a)
    }
}

/// Keeps what is known of this node's ports.
#[derive(Debug, Default)]
pub struct Reach {
    state: Mutex<State>,
    /// Told when a verdict may have changed.
    pub(crate) changed: Notify,
}

/// Whether `ip` means something in one network only.
pub fn is_private(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            ip.is_loopback()
                || ip.is_private()
                || ip.is_link_local()
                || ip.is_unspecified()
                || (a == 100 && (64..128).contains(&b))
        }
        IpAddr::V6(ip) => {
            ip.is_loopback() || ip.is_unspecified() || ip.is_unique_local() || ip.is_unicast_link_local()
        }
    }
}

impl Reach {
    /// Nothing is known yet of ports `libp2p` and `direct`.
    pub fn new(libp2p: u16, direct: u16) -> Self {
        let reach = Self::default();
        reach.change(|state| {
            state.libp2p.port = libp2p;
            state.direct.port = direct;
        });
        reach
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let changed = change(&mut self.state.lock().expect("no holder panics"));
        self.changed.notify_waiters();
        changed
    }

    fn view<T>(&self, view: impl FnOnce(&State) -> T) -> T {
        view(&self.state.lock().expect("no holder panics"))
    }

    /// Sets the port that libp2p was given.
    pub(crate) fn listens(&self, port: u16) {
        self.change(|state| state.libp2p.port = port);
    }

    /// Notes that `tester`, seen at `from`, dialled `addr` with this outcome.
    pub(crate) fn found(
        &self,
        service: Service,
        tester: PublicKey,
        from: IpAddr,
        addr: SocketAddr,
        outcome: Dialled,
        now_s: u64,
    ) {
        self.change(|state| {
            let findings = &mut state.facts(service).findings;
            // A network gets one voice inside and one outside, so a neighbour behind the same router does not speak for the world.
            let voice = Subnet::from(if is_private(addr.ip()) { addr.ip() } else { from });
            if !findings.contains_key(&voice) && findings.len() >= FINDINGS_MAX {
                let oldest = findings.iter().min_by_key(|(_, f)| f.at_s).map(|(subnet, _)| *subnet);
                oldest.map(|subnet| findings.remove(&subnet));
            }
            findings.insert(voice, Finding { tester, at_s: now_s, addr, outcome });
        });
    }

    /// Notes that a peer in the network of `reporter` sees libp2p's port at `addr`.
    pub(crate) fn observed(&self, reporter: IpAddr, addr: SocketAddr) {
        self.change(|state| {
            let reporter = Subnet::from(reporter);
            if state.observed.len() < FINDINGS_MAX || state.observed.contains_key(&reporter) {
                state.observed.insert(reporter, addr);
            }
        });
    }

    /// Where peers see this node, by most networks' word.
    pub(crate) fn seen_at(&self) -> Option<SocketAddr> {
        self.view(State::believed)
    }

    /// The port at which a tester should dial `service`: what a router made of it, where that is known.
    pub(crate) fn port_outside(&self, service: Service) -> u16 {
        self.view(|state| match service {
            Service::Direct => state.direct.mapped.map_or(state.direct.port, |addr| addr.port()),
            Service::Libp2p => {
                let mapped = state.libp2p.mapped.or_else(|| state.believed());
                mapped.map_or(state.libp2p.port, |addr| addr.port())
            }
        })
    }

    pub(crate) fn router(&self, router: Router) {
        self.change(|state| state.router = router);
    }

    /// Notes where the router forwards the port `inside` from, or that it no longer does.
    pub(crate) fn mapped(&self, inside: u16, outside: Option<SocketAddr>) {
        self.change(|state| {
            let facts = if state.direct.port == inside { &mut state.direct } else { &mut state.libp2p };
            facts.mapped = outside;
            // What was found before was found without it.
            facts.findings.clear();
        });
    }

    pub(crate) fn relays(&self, relays: Vec<PublicKey>) {
        self.change(|state| state.relays = relays);
    }

    /// Notes how punching a hole to `peer` went.
    pub(crate) fn punched(&self, peer: PublicKey, outcome: Result<(), String>) {
        self.change(|state| match outcome {
            Ok(()) => {
                state.punches.succeeded += 1;
                state.punches.failed_in_row = 0;
            }
            Err(why) => {
                state.punches.failed_in_row += 1;
                state.punches.last_failure = Some((peer, why));
            }
        });
    }

    /// How `service` is reached as of unix time `now_s`.
    pub fn how(&self, service: Service, now_s: u64) -> How {
        self.view(|state| judge(state, service, now_s).how)
    }

    /// Addresses at which testers reached `service`.
    pub fn proven(&self, service: Service, now_s: u64) -> Vec<SocketAddr> {
        self.view(|state| {
            let counting = counting(state.of(service), now_s).0;
            let good = counting.into_iter().filter(|f| f.outcome == Dialled::Answered);
            let mut addrs: Vec<SocketAddr> = good.map(|f| f.addr).collect();
            addrs.sort();
            addrs.dedup();
            addrs
        })
    }

    /// Both ports, as users see them.
    pub fn report(&self, now_s: u64) -> Vec<PortReport> {
        self.view(|state| [Service::Libp2p, Service::Direct].map(|s| judge(state, s, now_s)).into())
    }
}

/// The findings that count, and whether they come from outside: those do more than those from this node's own network.
fn counting(facts: &Facts, now_s: u64) -> (Vec<&Finding>, bool) {
    let fresh = || facts.findings.values().filter(|f| f.at_s + FINDING_LIFE_S >= now_s);
    let outside = fresh().any(|f| !is_private(f.addr.ip()));
    (fresh().filter(|f| is_private(f.addr.ip()) != outside).collect(), outside)
}

/// The verdict on one port. Half of the networks that tested are enough to call it reachable: a port is closed for some sooner than it is open
/// for a few.
fn judge(state: &State, service: Service, now_s: u64) -> PortReport {
    let facts = state.of(service);
    let (counting, outside) = counting(facts, now_s);
    let (good, bad): (Vec<&Finding>, Vec<&Finding>) =
        counting.into_iter().partition(|f| f.outcome == Dialled::Answered);
    let is_reached = !good.is_empty() && good.len() >= bad.len();
    let newest = |findings: &[&Finding]| findings.iter().max_by_key(|f| f.at_s).map(|f| Finding::clone(f));
    let shown = if is_reached { newest(&good) } else { newest(&bad) };
    let how = match &shown {
        None => How::Unknown,
        Some(f) if is_reached && Some(f.addr) == facts.mapped => How::Mapped,
        Some(_) if is_reached && outside => How::Public,
        Some(_) if is_reached => How::Local,
        Some(_) if can_punch(state, service, now_s) => How::Punch,
        Some(_) => How::Unreachable,
    };
    let (why, advice) = words(state, service, facts, how, shown.as_ref());
    PortReport {
        service: if service == Service::Direct { "direct" } else { "libp2p" }.to_owned(),
        port: facts.port,
        how,
        addr: shown.as_ref().map(|f| f.addr.to_string()),
        tester: shown.as_ref().map(|f| f.tester.to_string()),
        tested_s: shown.as_ref().map(|f| f.at_s),
        why,
        advice,
    }
}

/// Whether peers can be expected to get through once a relay introduces them: there is a relay, and no failure came after the last success.
fn can_punch(state: &State, service: Service, now_s: u64) -> bool {
    let by_relay = !state.relays.is_empty() && state.punches.failed_in_row == 0;
    // Direct transfers then go over the libp2p port, through the same hole.
    let has_hole = service == Service::Libp2p || judge(state, Service::Libp2p, now_s).how == How::Punch;
    by_relay && has_hole
}

/// Why a port is reached as it is, and what its owner can do.
fn words(
    state: &State,
    service: Service,
    facts: &Facts,
    how: How,
    shown: Option<&Finding>,
) -> (String, Option<String>) {
    let by = |f: &Finding| format!("{} at {}", short(&f.tester), f.addr);
    let forward = || {
        format!(
            "forward UDP port {} to this machine in your router, or switch UPnP on in it; if it is forwarded already, \
             let the firewall pass it",
            facts.port
        )
    };
    let untested = || ("a peer has to be connected, which then tests it".to_owned(), None);
    let Some(finding) = shown else { return untested() };
    match how {
        How::Unknown => untested(),
        How::Public => (format!("peer {} got through", by(finding)), None),
        How::Mapped => {
            (format!("the router forwards it by UPnP, and peer {} got through", by(finding)), None)
        }
        How::Local => {
            (format!("peer {} in this network got through; nobody outside has tested", by(finding)), None)
        }
        How::Punch if service == Service::Direct => (
            format!("{}; transfers go over the libp2p port, after hole punching", failed(finding)),
            Some(forward()),
        ),
        How::Punch => {
            let so_far = match state.punches.succeeded {
                0 => "not needed by anybody so far".to_owned(),
                1 => "it succeeded once".to_owned(),
                n => format!("it succeeded {n} times"),
            };
            let relays: Vec<String> = state.relays.iter().map(short).collect();
            let why = format!(
                "{}; peers get through by hole punching, introduced by relay {} ({so_far})",
                failed(finding),
                relays.join(" and ")
            );
            (why, Some(forward()))
        }
        How::Unreachable => {
            let punching = match (&state.punches.last_failure, state.relays.is_empty()) {
                _ if service == Service::Direct => String::new(),
                (Some((peer, why)), _) if state.punches.failed_in_row > 0 => {
                    format!("; hole punching failed with {}: {why}", short(peer))
                }
                (_, true) => "; no connected peer is a relay that could introduce others".to_owned(),
                _ => String::new(),
            };
            let router = match state.router {
                Router::None => "; no router answers to UPnP",
                Router::BehindAnother => "; the router has no public address itself",
                Router::Asking | Router::NotAsked => "",
            };
            (format!("{}{punching}{router}", failed(finding)), Some(forward()))
        }
    }
}

fn failed(finding: &Finding) -> String {
    let (tester, addr) = (short(&finding.tester), finding.addr);
    match finding.outcome {
        Dialled::Failed => format!("peer {tester} was answered at {addr}, but not by this node"),
        _ => format!("peer {tester} dialled {addr}, and nothing came back"),
    }
}

/// As much of a node key as people are shown.
pub(crate) fn short(node: &PublicKey) -> String {
    let mut text = node.to_string();
    text.truncate(12);
    text
}

/// What is said when a hole is not punched in time.
pub(crate) fn punch_timed_out() -> String {
    format!("no packet got through within {} s", PUNCH_TIMEOUT.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: u64 = 10_000;
    const OUTSIDE: &str = "203.0.113.9:4710";

    fn key(tag: u8) -> PublicKey {
        PublicKey::Ed25519([tag; 32])
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([198, 51, last, 1])
    }

    fn found(reach: &Reach, service: Service, tag: u8, addr: &str, outcome: Dialled, at_s: u64) {
        reach.found(service, key(tag), ip(tag), addr.parse().unwrap(), outcome, at_s);
    }

    #[test]
    fn findings_from_outside_prevail_and_one_liar_does_not_decide() {
        let reach = Reach::new(4710, 4711);
        assert_eq!(reach.how(Service::Libp2p, NOW_S), How::Unknown);
        found(&reach, Service::Libp2p, 1, "192.168.1.2:4710", Dialled::Answered, NOW_S);
        assert_eq!(reach.how(Service::Libp2p, NOW_S), How::Local);
        found(&reach, Service::Libp2p, 2, OUTSIDE, Dialled::Silent, NOW_S);
        assert_eq!(reach.how(Service::Libp2p, NOW_S), How::Unreachable);
        found(&reach, Service::Libp2p, 3, OUTSIDE, Dialled::Answered, NOW_S);
        assert_eq!(reach.how(Service::Libp2p, NOW_S), How::Public);
        assert_eq!(reach.how(Service::Direct, NOW_S), How::Unknown, "each port has its own verdict");
        found(&reach, Service::Libp2p, 2, OUTSIDE, Dialled::Silent, NOW_S + 1);
        assert_eq!(reach.how(Service::Libp2p, NOW_S + 1), How::Public, "a network has one voice");
        found(&reach, Service::Libp2p, 4, OUTSIDE, Dialled::Failed, NOW_S);
        assert_eq!(reach.how(Service::Libp2p, NOW_S), How::Unreachable);
        assert_eq!(reach.how(Service::Libp2p, NOW_S + FINDING_LIFE_S + 2), How::Unknown, "findings expire");
    }

    #[test]
    fn findings_are_bounded_and_the_oldest_go_first() {
        let reach = Reach::new(4710, 4711);
        for tag in 0..=FINDINGS_MAX as u8 {
            found(&reach, Service::Direct, tag, OUTSIDE, Dialled::Silent, NOW_S + u64::from(tag));
            reach.observed(ip(tag), SocketAddr::from(([192, 0, 2, tag], 1)));
        }
        reach.view(|state| {
            assert_eq!(state.direct.findings.len(), FINDINGS_MAX);
            assert!(!state.direct.findings.contains_key(&Subnet::from(ip(0))));
            assert_eq!(state.observed.len(), FINDINGS_MAX);
        });
    }

    #[test]
    fn behind_a_nat_a_relay_and_no_failure_make_the_difference() {
        let reach = Reach::new(4710, 4711);
        let both = [Service::Libp2p, Service::Direct];
        for service in both {
            found(&reach, service, 1, OUTSIDE, Dialled::Silent, NOW_S);
        }
        let report = &reach.report(NOW_S)[0];
        assert_eq!(report.how, How::Unreachable);
        assert!(report.why.contains("no connected peer is a relay"), "{}", report.why);
        assert!(report.advice.as_ref().unwrap().contains("forward UDP port 4710"), "{report:?}");
        reach.relays(vec![key(9)]);
        assert_eq!(both.map(|s| reach.how(s, NOW_S)), [How::Punch, How::Punch]);
        reach.punched(key(5), Err("no packet got through".into()));
        let report = &reach.report(NOW_S)[0];
        assert_eq!(report.how, How::Unreachable);
        assert!(report.why.contains("hole punching failed with"), "{}", report.why);
        assert_eq!(reach.how(Service::Direct, NOW_S), How::Unreachable);
        reach.punched(key(6), Ok(()));
        assert_eq!(both.map(|s| reach.how(s, NOW_S)), [How::Punch, How::Punch]);
    }

    #[test]
    fn a_mapped_port_counts_once_somebody_got_through_it() {
        let reach = Reach::new(4710, 4711);
        found(&reach, Service::Direct, 1, "203.0.113.9:4711", Dialled::Silent, NOW_S);
        reach.mapped(4711, Some("203.0.113.9:5000".parse().unwrap()));
        assert_eq!(reach.how(Service::Direct, NOW_S), How::Unknown, "to be tested anew");
        assert_eq!(reach.port_outside(Service::Direct), 5000);
        found(&reach, Service::Direct, 1, "203.0.113.9:5000", Dialled::Answered, NOW_S);
        assert_eq!(reach.how(Service::Direct, NOW_S), How::Mapped);
        assert_eq!(reach.proven(Service::Direct, NOW_S), ["203.0.113.9:5000".parse().unwrap()]);
    }
}
