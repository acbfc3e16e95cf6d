//! Placement: which provider holds which shard, and how providers are chosen.
//!
//! [`choose`] is pure and seeded: the same candidates and seed give the same providers, so simulations run the
//! production rule. Shards of one segment go to distinct failure domains: no two share an operator name, nor an
//! observed /24 (IPv4) or /48 (IPv6). Within that, the draw is weighted by free room and by record.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::amount::StoragePrice;
use crate::keys::PublicKey;

/// The network part of an address, which neighbours share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Subnet {
    /// An IPv4 /24.
    V4([u8; 3]),
    /// An IPv6 /48.
    V6([u8; 6]),
}

impl From<IpAddr> for Subnet {
    fn from(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => {
                let [a, b, c, _] = ip.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(ip) => {
                let [a, b, c, d, e, f, ..] = ip.octets();
                Self::V6([a, b, c, d, e, f])
            }
        }
    }
}

/// A provider that may be given a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its node key.
    pub node: PublicKey,
    /// Its operator's name.
    pub operator: String,
    /// The network it was observed at.
    pub subnet: Subnet,
    /// Room it says it has.
    pub free_bytes: u64,
    /// How well it has answered, from 1 (newly failed) to 100 (no failure known).
    pub record: u8,
    /// Its price of storage.
    pub price: StoragePrice,
}

/// What is to be placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Providers needed.
    pub providers: usize,
    /// Length of the shard that each gets.
    pub shard_bytes: u64,
    /// Highest price of storage that is paid.
    pub price_max: StoragePrice,
}

/// There are not enough providers in distinct failure domains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{needed} providers in distinct failure domains are needed, {found} were found \
     ({known} known, {full} without room for {shard_bytes} bytes, {expensive} above the highest price, \
     {struck} out after failing again and again, {shared} sharing an operator or network)"
)]
pub struct TooFewProviders {
    /// Providers needed.
    pub needed: usize,
    /// Providers that could be chosen together.
    pub found: usize,
    /// Candidates in all.
    pub known: usize,
    /// Candidates without room.
    pub full: usize,
    /// Candidates with room that ask too much.
    pub expensive: usize,
    /// Candidates with room, cheap enough, whose record is 0.
    pub struck: usize,
    /// Candidates left out since a chosen one shares their operator or network.
    pub shared: usize,
    /// Length of the shard to place.
    pub shard_bytes: u64,
}

/// Chooses providers for `wish`, beside those in `taken`, by a weighted draw from `seed`.
///
/// A candidate's weight is its free room, up to 2^20 shards of this length, times its record, times how its price compares with the
/// lowest: half the weight at twice the price, down to a hundredth. Candidates are drawn one
/// by one; each drawn one is an edge between its operator and its network, and the choice is a matching of these
/// edges, grown by augmenting paths (Kuhn 1955). So a choice is found whenever one exists.
///
/// # Errors
/// [`TooFewProviders`] when the failure domains do not suffice.
pub fn choose(
    candidates: &[Candidate],
    taken: &[Candidate],
    wish: &Wish,
    seed: &[u8; 32],
) -> Result<Vec<Candidate>, TooFewProviders> {
    let Wish { providers: needed, shard_bytes, price_max } = *wish;
    let mut open: Vec<&Candidate> = candidates.iter().filter(|c| c.free_bytes >= shard_bytes).collect();
    let full = candidates.len() - open.len();
    open.retain(|c| c.price <= price_max);
    let expensive = candidates.len() - full - open.len();
    open.retain(|c| c.record > 0);
    let struck = candidates.len() - full - expensive - open.len();
    let lowest = open.iter().map(|c| c.price.0).min().unwrap_or(0);
    let weight = |c: &Candidate| {
        let shards = (c.free_bytes / shard_bytes.max(1)).clamp(1, 1 << 20);
        // Beside something free, what costs anything counts as a hundred times as dear.
        let cheapness =
            (u128::from(lowest) * 100).checked_div(c.price.0.into()).map_or(100, |c| c.clamp(1, 100));
        u128::from(shards) * u128::from(c.record) * cheapness
    };
    open.retain(|c| !taken.iter().any(|t| t.operator == c.operator || t.subnet == c.subnet));
    open.sort_by_key(|c| c.node);
    let mut total: u128 = open.iter().map(|c| weight(c)).sum();
    let mut stream = blake3::Hasher::new_keyed(seed).finalize_xof();
    let mut matching = Matching::default();
    while matching.by_subnet.len() < needed {
        if open.is_empty() {
            let (known, found) = (candidates.len(), matching.by_subnet.len());
            return Err(TooFewProviders {
                needed,
                found,
                known,
                full,
                expensive,
                struck,
                shared: known - full - expensive - struck - found,
                shard_bytes,
            });
        }
        let mut bytes = [0; 16];
        stream.fill(&mut bytes);
        let mut ticket = u128::from_le_bytes(bytes) % total;
        let winner = open
            .iter()
            .position(|c| {
                let hit = ticket < weight(c);
                ticket = ticket.saturating_sub(weight(c));
                hit
            })
            .expect("the ticket lies below the total weight");
        let winner = open.remove(winner);
        total -= weight(winner);
        matching.add(winner);
    }
    let mut chosen: Vec<Candidate> = matching.by_subnet.into_values().cloned().collect();
    // Shard 0 must not always fall to the lowest network: data shards are read more than parity.
    chosen.sort_by_key(|c| *blake3::keyed_hash(seed, &c.node.to_bytes()).as_bytes());
    Ok(chosen)
}

/// Why a candidate was not chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passed {
    /// It has no room for the shard.
    Full,
    /// It asks more than is paid.
    Expensive,
    /// It failed lately, and weighs little.
    Failing,
    /// It failed again and again.
    Struck,
    /// Its operator has one of the chosen providers.
    SameOperator(PublicKey),
    /// One of the chosen providers is in its network.
    SameNetwork(PublicKey),
    /// It could have been chosen; others were drawn.
    NotDrawn,
}

/// Why `candidate` is not among `chosen`, or `None` if it is.
pub fn why_passed(candidate: &Candidate, chosen: &[Candidate], wish: &Wish) -> Option<Passed> {
    if chosen.iter().any(|c| c.node == candidate.node) {
        return None;
    }
    let shares =
        |same: fn(&Candidate, &Candidate) -> bool| chosen.iter().find(|c| same(c, candidate)).map(|c| c.node);
    Some(if candidate.free_bytes < wish.shard_bytes {
        Passed::Full
    } else if candidate.price > wish.price_max {
        Passed::Expensive
    } else if candidate.record == 0 {
        Passed::Struck
    } else if let Some(node) = shares(|a, b| a.operator == b.operator) {
        Passed::SameOperator(node)
    } else if let Some(node) = shares(|a, b| a.subnet == b.subnet) {
        Passed::SameNetwork(node)
    } else if candidate.record < 100 {
        Passed::Failing
    } else {
        Passed::NotDrawn
    })
}

/// A largest set of drawn candidates in which no operator and no network occurs twice.
#[derive(Default)]
struct Matching<'a> {
    drawn: BTreeMap<&'a str, Vec<&'a Candidate>>,
    by_subnet: BTreeMap<Subnet, &'a Candidate>,
}

impl<'a> Matching<'a> {
    /// Takes one more candidate and grows the matching if it now can.
    fn add(&mut self, candidate: &'a Candidate) {
        let operators = self.drawn.entry(&candidate.operator).or_default();
        if operators.iter().any(|known| known.subnet == candidate.subnet) {
            return;
        }
        operators.push(candidate);
        let matched: HashSet<&str> = self.by_subnet.values().map(|c| c.operator.as_str()).collect();
        let unmatched: Vec<&str> = self.drawn.keys().copied().filter(|o| !matched.contains(o)).collect();
        // Networks from which one search found no way are dead ends for the next one, too.
        let mut seen = HashSet::new();
        for operator in unmatched {
            if self.augment(operator, &mut seen) {
                return;
            }
        }
    }

    /// Finds a network for `operator`, moving other operators to another of their networks where needed.
    fn augment(&mut self, operator: &'a str, seen: &mut HashSet<Subnet>) -> bool {
        for candidate in self.drawn[operator].clone() {
            if !seen.insert(candidate.subnet) {
                continue;
            }
            let holder = self.by_subnet.get(&candidate.subnet).map(|c| c.operator.as_str());
            if holder.is_none_or(|other| self.augment(other, seen)) {
                self.by_subnet.insert(candidate.subnet, candidate);
                return true;
            }
        }
        false
    }
}

/// Which provider holds each shard of a blob, by segment and shard number. Mutable: repair moves shards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Placement {
    /// The first version.
    V1 {
        /// The providers that occur, each once.
        providers: Vec<PublicKey>,
        /// For each segment, for each shard, the position in `providers`.
        segments: Vec<Vec<u16>>,
    },
}

impl Placement {
    /// Builds a placement from the holder of each shard of each segment.
    pub fn new(holders: &[Vec<PublicKey>]) -> Self {
        let mut providers: Vec<PublicKey> = holders.iter().flatten().copied().collect();
        providers.sort_unstable();
        providers.dedup();
        let place = |p: &PublicKey| providers.binary_search(p).expect("all holders are listed") as u16;
        let segments = holders.iter().map(|segment| segment.iter().map(place).collect()).collect();
        Self::V1 { providers, segments }
    }

    /// The providers that hold any shard.
    pub fn providers(&self) -> &[PublicKey] {
        let Self::V1 { providers, .. } = self;
        providers
    }

    /// The holders of segment `index`'s shards in order, or nothing when the placement does not know the segment.
    pub fn holders(&self, index: usize) -> Vec<PublicKey> {
        let Self::V1 { providers, segments } = self;
        let shards = segments.get(index).map(Vec::as_slice).unwrap_or_default();
        // A holder that is left out would shift the others to shards that they do not hold.
        shards
            .iter()
            .map(|i| providers.get(usize::from(*i)).copied())
            .collect::<Option<_>>()
            .unwrap_or_default()
    }

    /// Whether this is a placement of `segments` segments of `shards` shards each.
    pub fn fits(&self, segments: usize, shards: usize) -> bool {
        let Self::V1 { segments: placed, .. } = self;
        placed.len() == segments && (0..segments).all(|s| self.holders(s).len() == shards)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn candidate(tag: u8, operator: &str, subnet: u8, free_bytes: u64) -> Candidate {
        Candidate {
            node: PublicKey::Ed25519([tag; 32]),
            operator: operator.into(),
            subnet: Subnet::V4([127, 0, subnet]),
            free_bytes,
            record: 100,
            price: StoragePrice(10),
        }
    }

    fn wish(providers: usize, shard_bytes: u64) -> Wish {
        Wish { providers, shard_bytes, price_max: StoragePrice(u64::MAX) }
    }

    #[test]
    fn prices_weigh_and_have_a_limit() {
        let mut all = vec![candidate(1, "a", 1, 100), candidate(2, "b", 2, 100)];
        all[1].price = StoragePrice(30);
        let cheap = (0..1000u16).filter(|i| {
            let seed = *blake3::hash(&i.to_le_bytes()).as_bytes();
            choose(&all, &[], &wish(1, 1), &seed).unwrap()[0] == all[0]
        });
        assert!((700..800).contains(&cheap.count()), "three times the price has a third of the weight");
        let limited = Wish { price_max: StoragePrice(29), ..wish(2, 1) };
        let error = choose(&all, &[], &limited, &[0; 32]).unwrap_err();
        assert_eq!((error.found, error.expensive, error.shared), (1, 1, 0));
    }

    #[test]
    fn everyone_passed_over_is_told_why() {
        let all = [
            candidate(1, "ann", 1, 9),
            candidate(2, "ann", 2, 9),
            candidate(3, "bob", 1, 9),
            candidate(4, "cy", 4, 3),
            Candidate { price: StoragePrice(99), ..candidate(5, "di", 5, 9) },
            Candidate { record: 50, ..candidate(6, "eve", 6, 9) },
            candidate(7, "flo", 7, 9),
        ];
        let wish = Wish { price_max: StoragePrice(50), ..wish(1, 5) };
        let why: Vec<_> = all.iter().map(|c| why_passed(c, &all[..1], &wish)).collect();
        let first = all[0].node;
        let expected = [
            None,
            Some(Passed::SameOperator(first)),
            Some(Passed::SameNetwork(first)),
            Some(Passed::Full),
            Some(Passed::Expensive),
            Some(Passed::Failing),
            Some(Passed::NotDrawn),
        ];
        assert_eq!(why, expected);
    }

    #[test]
    fn neighbours_and_namesakes_do_not_share_a_segment() {
        let all = [
            candidate(1, "ann", 1, 9),
            candidate(2, "ann", 2, 9),
            candidate(3, "bob", 2, 9),
            candidate(4, "cy", 4, 3),
        ];
        for seed in 0..50 {
            let chosen = choose(&all, &[], &wish(2, 5), &[seed; 32]).unwrap();
            let operators: HashSet<_> = chosen.iter().map(|c| &c.operator).collect();
            let subnets: HashSet<_> = chosen.iter().map(|c| c.subnet).collect();
            assert_eq!((operators.len(), subnets.len()), (2, 2));
        }
        let error = choose(&all, &all[..1], &wish(2, 5), &[0; 32]).unwrap_err();
        assert_eq!((error.needed, error.found, error.full), (2, 1, 1));
    }

    #[test]
    fn room_and_record_weigh() {
        let mut all = vec![candidate(1, "a", 1, 100), candidate(2, "b", 2, 900)];
        let wins = |all: &[Candidate]| {
            (0..1000u16)
                .filter(|i| {
                    let seed = *blake3::hash(&i.to_le_bytes()).as_bytes();
                    choose(all, &[], &wish(1, 1), &seed).unwrap()[0].node == PublicKey::Ed25519([2; 32])
                })
                .count()
        };
        assert!((850..950).contains(&wins(&all)));
        all[1].record = 1;
        assert!(wins(&all) < 150);
    }

    #[test]
    fn placements_answer_who_holds_what() {
        let key = |tag| PublicKey::Ed25519([tag; 32]);
        let holders = vec![vec![key(3), key(1)], vec![key(1), key(2)]];
        let placement = Placement::new(&holders);
        assert_eq!(placement.providers(), [key(1), key(2), key(3)]);
        assert_eq!(placement.holders(0), holders[0]);
        assert_eq!(placement.holders(1), holders[1]);
        assert!(placement.holders(2).is_empty());
        let wild = Placement::V1 { providers: vec![key(1)], segments: vec![vec![9, 0]] };
        assert!(wild.holders(0).is_empty(), "a position beyond the list is nobody, and nobody else moves up");
        assert!(placement.fits(2, 2) && !placement.fits(2, 3) && !placement.fits(1, 2) && !wild.fits(1, 2));
    }

    /// Most shards that can be placed: the largest matching of operators with networks, by trying everything.
    fn largest(pairs: &[(u8, u8)], operators: &mut Vec<u8>, subnets: &mut Vec<u8>) -> usize {
        let Some(((operator, subnet), rest)) = pairs.split_first() else { return 0 };
        let without = largest(rest, operators, subnets);
        if operators.contains(operator) || subnets.contains(subnet) {
            return without;
        }
        operators.push(*operator);
        subnets.push(*subnet);
        let with = 1 + largest(rest, operators, subnets);
        operators.pop();
        subnets.pop();
        with.max(without)
    }

    proptest! {
        #[test]
        fn as_many_are_placed_as_can_be(pairs in prop::collection::vec((0u8..5, 0u8..5), 1..12), seed in any::<[u8; 32]>()) {
            let all: Vec<Candidate> =
                pairs.iter().enumerate().map(|(i, (o, s))| candidate(i as u8, &o.to_string(), *s, 1000)).collect();
            let most = largest(&pairs, &mut Vec::new(), &mut Vec::new());
            let chosen = choose(&all, &[], &wish(most, 1), &seed).unwrap();
            let operators: HashSet<_> = chosen.iter().map(|c| &c.operator).collect();
            let subnets: HashSet<_> = chosen.iter().map(|c| c.subnet).collect();
            prop_assert_eq!((chosen.len(), operators.len(), subnets.len()), (most, most, most));
            let error = choose(&all, &[], &wish(most + 1, 1), &seed).unwrap_err();
            prop_assert_eq!(error.found, most);
        }

        #[test]
        fn a_choice_repeats_with_its_seed_and_not_with_the_order(count in 3usize..40, seed in any::<[u8; 32]>()) {
            let all: Vec<Candidate> = (0..count).map(|i| candidate(i as u8, &i.to_string(), i as u8, 1000 + i as u64)).collect();
            let chosen = choose(&all, &[], &wish(3, 10), &seed).unwrap();
            let reversed: Vec<Candidate> = all.iter().rev().cloned().collect();
            prop_assert_eq!(choose(&reversed, &[], &wish(3, 10), &seed).unwrap(), chosen);
        }
    }
}
