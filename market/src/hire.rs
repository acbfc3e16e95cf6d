//! Hiring: which providers run a job, and why others do not.
//!
//! [`choose`] is pure and seeded, as [`placement`](crate::placement) is. Of those who can run the work and ask no more than is paid, some are drawn: the
//! cheaper, the less busy and the more reliable one is, the likelier. Copies of one job go to distinct operators and networks, and to machines that
//! come to the same result, so that a result can be compared and one cheat cannot outvote others.

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::ask::ComputeAsk;
use crate::job::Work;
use crate::keys::PublicKey;
use crate::placement::Subnet;

/// A provider that may run a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Its node key.
    pub node: PublicKey,
    /// Its operator's name.
    pub operator: String,
    /// The network it was observed at.
    pub subnet: Subnet,
    /// How well it has answered, from 0 (failed again and again) to 100 (no failure known).
    pub record: u8,
    /// What it runs jobs on, if it does.
    pub compute: Option<ComputeAsk>,
}

/// What is to be run, and for how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish<'a> {
    /// Providers needed, each of which runs it.
    pub providers: usize,
    /// The work.
    pub work: &'a Work,
    /// The most that one provider's run may cost.
    pub cost_max: Amount,
    /// The configuration whose result is wanted; none if any will do.
    pub configuration: Option<[u8; 32]>,
}

/// Why a provider is not hired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Passed {
    /// It runs no jobs.
    NoCompute,
    /// Its engine is another, or set up otherwise, so that its result may differ.
    OtherEngine,
    /// It gives a job less memory.
    Memory {
        /// What the job needs, all in all.
        needed_bytes: u64,
        /// The most it gives.
        most_bytes: u64,
    },
    /// It takes fewer bytes of output.
    Output {
        /// The most it takes.
        most_bytes: u64,
    },
    /// The job may cost more there than is paid.
    Expensive {
        /// What it may cost.
        cost: Amount,
    },
    /// It failed again and again.
    Struck,
    /// It shares an operator or a network with one that is chosen.
    Neighbour(PublicKey),
    /// Others were drawn.
    NotDrawn,
}

/// Too few providers can run it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("providers needed to run this: {needed}; found: {found}, of {known} known")]
pub struct TooFew {
    /// Providers needed.
    pub needed: usize,
    /// Providers that could be chosen together.
    pub found: usize,
    /// Candidates in all.
    pub known: usize,
}

impl Wish<'_> {
    /// What keeps `candidate` from running it, whoever else does.
    pub fn obstacle(&self, candidate: &Candidate) -> Option<Passed> {
        let Some(compute) = &candidate.compute else { return Some(Passed::NoCompute) };
        let limits = &self.work.limits;
        let needed_bytes = self.work.needed_bytes();
        let cost = compute.prices.cost_max(self.work);
        if self.configuration.is_some_and(|wanted| wanted != compute.configuration) {
            Some(Passed::OtherEngine)
        } else if needed_bytes > compute.memory_bytes {
            Some(Passed::Memory { needed_bytes, most_bytes: compute.memory_bytes })
        } else if limits.output_bytes > compute.output_bytes {
            Some(Passed::Output { most_bytes: compute.output_bytes })
        } else if cost > self.cost_max {
            Some(Passed::Expensive { cost })
        } else if candidate.record == 0 {
            Some(Passed::Struck)
        } else {
            None
        }
    }

    /// How likely `candidate` is to be drawn, beside one that is free and costs `cheapest`: its record, 16 times as much with a free slot, and half as
    /// much at 1.4 times the price.
    fn weight(&self, candidate: &Candidate, cheapest: Amount) -> u128 {
        let Some(compute) = &candidate.compute else { return 0 };
        let cost = compute.prices.cost_max(self.work).0;
        let cheapness =
            (cheapest.0.saturating_mul(1000)).checked_div(cost).map_or(1000, |c| c.clamp(10, 1000));
        let free = if compute.free_slots > 0 { 16 } else { 1 };
        u128::from(candidate.record) * cheapness * cheapness * free
    }
}

fn are_neighbours(a: &Candidate, b: &Candidate) -> bool {
    a.operator == b.operator || a.subnet == b.subnet
}

/// Chooses providers for `wish` by a weighted draw from `seed`, none of which is a neighbour of another or of one in `taken`.
///
/// # Errors
/// [`TooFew`], with how many could be chosen.
pub fn choose(
    candidates: &[Candidate],
    taken: &[Candidate],
    wish: &Wish<'_>,
    seed: &[u8; 32],
) -> Result<Vec<Candidate>, TooFew> {
    let is_open = |c: &&Candidate| {
        wish.obstacle(c).is_none() && !taken.iter().any(|t| t.node == c.node || are_neighbours(t, c))
    };
    let mut open: Vec<&Candidate> = candidates.iter().filter(is_open).collect();
    open.sort_by_key(|c| c.node);
    let mut stream = blake3::Hasher::new_keyed(seed).finalize_xof();
    let mut chosen: Vec<Candidate> = Vec::new();
    while chosen.len() < wish.providers {
        let costs = open.iter().filter_map(|c| Some(c.compute.as_ref()?.prices.cost_max(wish.work)));
        let cheapest = costs.min().unwrap_or_default();
        let total: u128 = open.iter().map(|c| wish.weight(c, cheapest)).sum();
        if total == 0 {
            return Err(TooFew { needed: wish.providers, found: chosen.len(), known: candidates.len() });
        }
        let mut bytes = [0; 16];
        stream.fill(&mut bytes);
        let mut ticket = u128::from_le_bytes(bytes) % total;
        let is_hit = |c: &&Candidate| {
            let weight = wish.weight(c, cheapest);
            let hit = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            hit
        };
        let winner = open.iter().position(is_hit).expect("the ticket lies below the total weight");
        let winner = open[winner].clone();
        open.retain(|c| !are_neighbours(c, &winner));
        chosen.push(winner);
    }
    Ok(chosen)
}

/// Why `candidate` is not among `chosen`, or `None` if it is.
pub fn why_passed(candidate: &Candidate, chosen: &[Candidate], wish: &Wish<'_>) -> Option<Passed> {
    if chosen.iter().any(|c| c.node == candidate.node) {
        return None;
    }
    let neighbour =
        || chosen.iter().find(|c| are_neighbours(c, candidate)).map(|c| Passed::Neighbour(c.node));
    // Beside one that is alone, a neighbour is just not drawn.
    let neighbour = || neighbour().filter(|_| wish.providers > 1);
    Some(wish.obstacle(candidate).or_else(neighbour).unwrap_or(Passed::NotDrawn))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::{ComputePrices, JobLimits, Material};
    use crate::keys::SigningSecret;
    use spare_proofs::cipher::Secret;
    use std::collections::HashMap;

    fn work() -> Work {
        let limits = JobLimits {
            fuel: 1_000_000_000,
            memory_bytes: 1 << 30,
            output_bytes: 1 << 20,
            output_files: 1,
            log_bytes: 0,
        };
        Work {
            module: Material::of(b"module"),
            args: vec![],
            env: vec![],
            stdin: None,
            inputs: vec![],
            limits,
            seed: [0; 32],
            starts_at_s: 0,
            is_deterministic: true,
        }
    }

    fn candidate(tag: u8, gfuel: u64) -> Candidate {
        let compute = ComputeAsk {
            prices: ComputePrices { gfuel, ..ComputePrices::default() },
            configuration: [1; 32],
            arch: "x86_64".into(),
            slots: 2,
            free_slots: 1,
            memory_bytes: 2 << 30,
            output_bytes: 1 << 30,
            fuel_per_s: 1,
            gpus: vec![],
        };
        Candidate {
            node: SigningSecret::from_secret(&Secret::new([tag; 32])).public(),
            operator: format!("operator {tag}"),
            subnet: Subnet::V4([10, 0, tag]),
            record: 100,
            compute: Some(compute),
        }
    }

    fn wish(work: &Work, providers: usize) -> Wish<'_> {
        Wish { providers, work, cost_max: Amount(1000), configuration: Some([1; 32]) }
    }

    #[test]
    fn each_obstacle_is_named() {
        let work = work();
        let passed = |change: fn(&mut Candidate)| {
            let mut candidate = candidate(1, 1000);
            change(&mut candidate);
            why_passed(&candidate, &[], &wish(&work, 1))
        };
        let compute = |c: &mut Candidate| c.compute.take().unwrap();
        assert_eq!(passed(|_| ()), Some(Passed::NotDrawn));
        assert_eq!(passed(|c| c.compute = None), Some(Passed::NoCompute));
        let other = |c: &mut Candidate| c.compute.as_mut().unwrap().configuration = [2; 32];
        assert_eq!(passed(other), Some(Passed::OtherEngine));
        assert_eq!(
            passed(|c| c.compute.as_mut().unwrap().memory_bytes = 5),
            Some(Passed::Memory { needed_bytes: work.needed_bytes(), most_bytes: 5 })
        );
        assert_eq!(
            passed(|c| c.compute.as_mut().unwrap().output_bytes = 6),
            Some(Passed::Output { most_bytes: 6 })
        );
        let dear = |c: &mut Candidate| c.compute.as_mut().unwrap().prices.gfuel = 1001;
        assert_eq!(passed(dear), Some(Passed::Expensive { cost: Amount(1001) }));
        assert_eq!(passed(|c| c.record = 0), Some(Passed::Struck));
        let chosen = [candidate(1, 1)];
        assert_eq!(why_passed(&candidate(1, 1), &chosen, &wish(&work, 1)), None);
        let mut neighbour = candidate(2, 1);
        neighbour.operator = chosen[0].operator.clone();
        assert_eq!(why_passed(&neighbour, &chosen, &wish(&work, 1)), Some(Passed::NotDrawn));
        let expected = Passed::Neighbour(chosen[0].node);
        assert_eq!(why_passed(&neighbour, &chosen, &wish(&work, 2)), Some(expected));
        let mut any = wish(&work, 1);
        any.configuration = None;
        let mut other = candidate(3, 1);
        compute(&mut other);
        assert_eq!(any.obstacle(&other), Some(Passed::NoCompute));
    }

    #[test]
    fn copies_go_to_distinct_operators_and_networks() {
        let work = work();
        let mut candidates: Vec<Candidate> = (1..=6).map(|tag| candidate(tag, 500)).collect();
        candidates[1].operator = candidates[0].operator.clone();
        candidates[2].subnet = candidates[0].subnet;
        for seed in 0..50 {
            let chosen = choose(&candidates, &[], &wish(&work, 3), &[seed; 32]).unwrap();
            for (i, a) in chosen.iter().enumerate() {
                assert!(chosen[i + 1..].iter().all(|b| !are_neighbours(a, b)));
            }
            assert_eq!(choose(&candidates, &[], &wish(&work, 3), &[seed; 32]).unwrap(), chosen);
            let more = choose(&candidates, &chosen[..1], &wish(&work, 2), &[seed; 32]).unwrap();
            assert!(more.iter().all(|c| !are_neighbours(c, &chosen[0])));
        }
        let found = choose(&candidates, &[], &wish(&work, 7), &[0; 32]).unwrap_err().found;
        assert!((4..=5).contains(&found), "{found}");
    }

    #[test]
    fn the_cheaper_the_freer_and_the_more_reliable_are_likelier() {
        let work = work();
        let mut candidates = [candidate(1, 250), candidate(2, 500), candidate(3, 250), candidate(4, 250)];
        candidates[2].compute.as_mut().unwrap().free_slots = 0;
        candidates[3].record = 10;
        let mut drawn: HashMap<PublicKey, usize> = HashMap::new();
        for i in 0..4000_u32 {
            let seed = *blake3::hash(&i.to_le_bytes()).as_bytes();
            let chosen = choose(&candidates, &[], &wish(&work, 1), &seed).unwrap();
            *drawn.entry(chosen[0].node).or_default() += 1;
        }
        // Weights 1600 : 400 : 100 : 160.
        let share = |i: usize| drawn[&candidates[i].node];
        assert!((2700..2960).contains(&share(0)), "{drawn:?}");
        assert!((620..800).contains(&share(1)), "{drawn:?}");
        assert!((120..240).contains(&share(2)), "{drawn:?}");
        assert!((220..350).contains(&share(3)), "{drawn:?}");
        // Free of charge is no division by zero.
        let free = [candidate(1, 0), candidate(2, 1000)];
        choose(&free, &[], &wish(&work, 2), &[0; 32]).unwrap();
    }
}
