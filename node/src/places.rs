//! Places: how many connections, sessions or reads there are at once, in all, for one holder (an address or a node key) and for one network.
//!
//! When all places are taken, somebody from a network that has fewer gets one of the network that has most: at once if that has more than twice as many,
//! and otherwise if whoever holds it made no progress for a while. So whoever holds places only to hold them, from however many keys, gives way to whoever
//! uses one, and nobody's few networks keep out all others. Networks that have about the same leave each other alone.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spare_market::placement::Subnet;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::limits::{GIVE_WAY_AFTER, count_down};

/// How many there are at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) total: usize,
    pub(crate) per_holder: usize,
    pub(crate) per_subnet: usize,
}

/// Places of one kind, held by holders `K`.
pub(crate) struct Places<K> {
    bounds: Bounds,
    taken: Mutex<Taken<K>>,
    freed: Notify,
    started: Instant,
}

struct Taken<K> {
    next_id: u64,
    rows: HashMap<u64, Row<K>>,
    by_holder: HashMap<K, usize>,
    by_subnet: HashMap<Subnet, usize>,
}

struct Row<K> {
    holder: K,
    subnet: Subnet,
    /// Milliseconds since the places were made.
    progressed_ms: Arc<AtomicU64>,
    gives_way: Arc<Notify>,
}

impl<K: Hash + Eq + Copy> Taken<K> {
    fn insert(&mut self, row: Row<K>) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        *self.by_holder.entry(row.holder).or_default() += 1;
        *self.by_subnet.entry(row.subnet).or_default() += 1;
        self.rows.insert(id, row);
        id
    }

    fn remove(&mut self, id: u64) -> Option<Row<K>> {
        let row = self.rows.remove(&id)?;
        count_down(&mut self.by_holder, &row.holder);
        count_down(&mut self.by_subnet, &row.subnet);
        Some(row)
    }

    /// Who gives way to somebody from `subnet`: of the network that has most places, and more than that one will have, whoever made no progress for
    /// longest.
    fn who_gives_way(&self, subnet: Subnet, now_ms: u64) -> Option<u64> {
        let (heaviest, most) = self.by_subnet.iter().max_by_key(|(_, count)| **count)?;
        let will_have = self.by_subnet.get(&subnet).copied().unwrap_or(0) + 1;
        if *most <= will_have {
            return None;
        }
        let of_heaviest = self.rows.iter().filter(|(_, row)| row.subnet == *heaviest);
        let (progressed_ms, id) =
            of_heaviest.map(|(id, row)| (row.progressed_ms.load(Ordering::Relaxed), *id)).min()?;
        let is_idle = now_ms.saturating_sub(progressed_ms) >= GIVE_WAY_AFTER.as_millis() as u64;
        (is_idle || *most > 2 * will_have).then_some(id)
    }
}

/// A place, given back when dropped.
pub(crate) struct Place<K: Hash + Eq + Copy> {
    places: Arc<Places<K>>,
    id: u64,
    progressed_ms: Arc<AtomicU64>,
    gives_way: Arc<Notify>,
}

impl<K: Hash + Eq + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        if self.places.taken.lock().expect("no holder panics").remove(self.id).is_some() {
            self.places.freed.notify_one();
        }
    }
}

impl<K: Hash + Eq + Copy> Place<K> {
    /// Says that whoever has the place uses it.
    pub(crate) fn progressed(&self) {
        self.progressed_ms.store(self.places.ms(Instant::now()), Ordering::Relaxed);
    }

    /// Resolves once the place is somebody else's.
    pub(crate) async fn is_lost(&self) {
        self.gives_way.notified().await;
    }
}

impl<K: Hash + Eq + Copy + Display> Places<K> {
    pub(crate) fn new(bounds: Bounds) -> Arc<Self> {
        let (by_holder, by_subnet) = (HashMap::new(), HashMap::new());
        let taken = Mutex::new(Taken { next_id: 0, rows: HashMap::new(), by_holder, by_subnet });
        Arc::new(Self { bounds, taken, freed: Notify::new(), started: Instant::now() })
    }

    /// How many are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.lock().expect("no holder panics").rows.len()
    }

    /// How many `holder` has.
    pub(crate) fn held_by(&self, holder: &K) -> usize {
        self.taken.lock().expect("no holder panics").by_holder.get(holder).copied().unwrap_or(0)
    }

    /// How many are held in `subnet`.
    pub(crate) fn held_in(&self, subnet: &Subnet) -> usize {
        self.taken.lock().expect("no holder panics").by_subnet.get(subnet).copied().unwrap_or(0)
    }

    /// A place, if there is one now or somebody gives way.
    pub(crate) fn take(self: &Arc<Self>, holder: K, subnet: Subnet, now: Instant) -> Option<Place<K>> {
        let now_ms = self.ms(now);
        let mut taken = self.taken.lock().expect("no holder panics");
        let by_holder = taken.by_holder.get(&holder).copied().unwrap_or(0);
        let by_subnet = taken.by_subnet.get(&subnet).copied().unwrap_or(0);
        if by_holder >= self.bounds.per_holder || by_subnet >= self.bounds.per_subnet {
            return None;
        }
        if taken.rows.len() >= self.bounds.total {
            let row = taken.who_gives_way(subnet, now_ms).and_then(|id| taken.remove(id))?;
            tracing::debug!(holder = %row.holder, "all places are taken, and the network that has most gives way");
            row.gives_way.notify_one();
        }
        let (progressed_ms, gives_way) = (Arc::new(AtomicU64::new(now_ms)), Arc::new(Notify::new()));
        let row = Row { holder, subnet, progressed_ms: progressed_ms.clone(), gives_way: gives_way.clone() };
        let id = taken.insert(row);
        Some(Place { places: self.clone(), id, progressed_ms, gives_way })
    }

    /// A place, if there is one before long.
    pub(crate) async fn take_soon(
        self: &Arc<Self>,
        holder: K,
        subnet: Subnet,
        within: Duration,
    ) -> Option<Place<K>> {
        let taking = async {
            loop {
                if let Some(place) = self.take(holder, subnet, Instant::now()) {
                    // Whoever else waits may find another one free.
                    self.freed.notify_one();
                    return place;
                }
                // Somebody may come to give way without a place being given back.
                let _ = timeout(GIVE_WAY_AFTER / 4, self.freed.notified()).await;
            }
        };
        timeout(within, taking).await.ok()
    }
}

impl<K> Places<K> {
    fn ms(&self, at: Instant) -> u64 {
        at.saturating_duration_since(self.started).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Held = Vec<Place<u8>>;

    fn subnet(tag: u8) -> Subnet {
        Subnet::V4([10, 0, tag])
    }

    #[test]
    fn every_bound_is_reached_and_a_place_is_given_back() {
        let places = Places::new(Bounds { total: 6, per_holder: 2, per_subnet: 3 });
        let now = Instant::now();
        let mut held: Held = (0..2).map(|_| places.take(1, subnet(1), now).unwrap()).collect();
        assert!(places.take(1, subnet(2), now).is_none(), "per holder");
        held.push(places.take(2, subnet(1), now).unwrap());
        assert!(places.take(3, subnet(1), now).is_none(), "per network");
        held.push(places.take(4, subnet(4), now).unwrap());
        held.extend((5..7).map(|tag| places.take(tag, subnet(5), now).unwrap()));
        assert!(
            places.take(8, subnet(4), now).is_none(),
            "in all, and nobody has idled or has twice as much"
        );
        assert_eq!((places.taken(), places.held_by(&1), places.held_by(&8)), (6, 2, 0));
        held.pop();
        places.take(8, subnet(8), now).unwrap();
        drop(held);
        let taken = places.taken.lock().unwrap();
        assert!(taken.rows.is_empty() && taken.by_holder.is_empty() && taken.by_subnet.is_empty());
    }

    #[tokio::test]
    async fn whoever_idles_in_the_heaviest_network_gives_way() {
        let places = Places::new(Bounds { total: 3, per_holder: 9, per_subnet: 9 });
        let now = Instant::now();
        let held: Held = (0..2).map(|_| places.take(1, subnet(1), now).unwrap()).collect();
        let lone = places.take(2, subnet(2), now).unwrap();
        assert!(places.take(3, subnet(3), now).is_none(), "nobody idles");
        let later = now + GIVE_WAY_AFTER + Duration::from_secs(1);
        held[0].progressed_ms.store(places.ms(later), Ordering::Relaxed);
        assert!(places.take(1, subnet(1), later).is_none(), "not to one of its own");
        let newcomer = places.take(3, subnet(3), later).unwrap();
        timeout(GIVE_WAY_AFTER, held[1].is_lost())
            .await
            .expect("the one that idles for longest, and of several the first");
        assert_eq!(places.taken(), 3);
        drop(held);
        assert_eq!(places.taken(), 2, "and is not counted down twice");
        drop((lone, newcomer));
    }

    #[tokio::test]
    async fn a_network_with_more_than_twice_as_much_gives_way_at_once() {
        let places = Places::new(Bounds { total: 7, per_holder: 9, per_subnet: 9 });
        let now = Instant::now();
        let held: Held = (0..7).map(|_| places.take(1, subnet(1), now).unwrap()).collect();
        let newcomers: Held = (0..2).map(|_| places.take(2, subnet(2), now).unwrap()).collect();
        for place in &held[..2] {
            timeout(GIVE_WAY_AFTER, place.is_lost()).await.expect("the first ones");
        }
        assert!(places.take(2, subnet(2), now).is_none(), "5 against 3 is left alone");
        places.take(3, subnet(3), now).unwrap();
        drop((held, newcomers));
        assert_eq!(places.taken(), 0);
    }
}
