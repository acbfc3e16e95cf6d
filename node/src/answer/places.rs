//! Places: how many sessions or reads there are at once, in all, for one peer and for one network.
//!
//! When all places are taken, somebody from a network that has fewer gets the place of somebody from the network that has most and made no progress for a
//! while. So whoever holds places only to hold them, from however many keys, gives way to whoever uses one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::limits::{GIVE_WAY_AFTER, count_down};

/// How many there are at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) total: usize,
    pub(super) per_peer: usize,
    pub(super) per_subnet: usize,
}

/// Places of one kind.
pub(super) struct Places {
    bounds: Bounds,
    taken: Mutex<Taken>,
    freed: Notify,
}

#[derive(Default)]
struct Taken {
    next_id: u64,
    rows: HashMap<u64, Row>,
    by_peer: HashMap<PublicKey, usize>,
    by_subnet: HashMap<Subnet, usize>,
}

struct Row {
    peer: PublicKey,
    subnet: Subnet,
    progressed_at: Instant,
    gives_way: Arc<Notify>,
}

impl Taken {
    fn insert(&mut self, row: Row) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        *self.by_peer.entry(row.peer).or_default() += 1;
        *self.by_subnet.entry(row.subnet).or_default() += 1;
        self.rows.insert(id, row);
        id
    }

    fn remove(&mut self, id: u64) -> Option<Row> {
        let row = self.rows.remove(&id)?;
        count_down(&mut self.by_peer, &row.peer);
        count_down(&mut self.by_subnet, &row.subnet);
        Some(row)
    }

    /// Who gives way to somebody from `subnet`: of the network that has most places, and more than that one will have, whoever made no progress for
    /// longest.
    fn who_gives_way(&self, subnet: Subnet, now: Instant) -> Option<u64> {
        let (heaviest, most) = self.by_subnet.iter().max_by_key(|(_, count)| **count)?;
        if *most <= self.by_subnet.get(&subnet).copied().unwrap_or(0) + 1 {
            return None;
        }
        let of_heaviest = self.rows.iter().filter(|(_, row)| row.subnet == *heaviest);
        let (id, row) = of_heaviest.min_by_key(|(id, row)| (row.progressed_at, **id))?;
        (now.saturating_duration_since(row.progressed_at) >= GIVE_WAY_AFTER).then_some(*id)
    }
}

/// A place, given back when dropped.
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    gives_way: Arc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.places.taken.lock().expect("no holder panics").remove(self.id).is_some() {
            self.places.freed.notify_one();
        }
    }
}

impl Place {
    /// Says that whoever has the place uses it.
    pub(super) fn progressed(&self) {
        if let Some(row) = self.places.taken.lock().expect("no holder panics").rows.get_mut(&self.id) {
            row.progressed_at = Instant::now();
        }
    }

    /// Resolves once the place is somebody else's.
    pub(super) async fn is_lost(&self) {
        self.gives_way.notified().await;
    }
}

impl Places {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, taken: Mutex::default(), freed: Notify::new() })
    }

    /// A place, if there is one now or somebody gives way.
    pub(super) fn take(self: &Arc<Self>, peer: PublicKey, subnet: Subnet, now: Instant) -> Option<Place> {
        let mut taken = self.taken.lock().expect("no holder panics");
        let by_peer = taken.by_peer.get(&peer).copied().unwrap_or(0);
        let by_subnet = taken.by_subnet.get(&subnet).copied().unwrap_or(0);
        if by_peer >= self.bounds.per_peer || by_subnet >= self.bounds.per_subnet {
            return None;
        }
        if taken.rows.len() >= self.bounds.total {
            let row = taken.who_gives_way(subnet, now).and_then(|id| taken.remove(id))?;
            tracing::debug!(peer = %row.peer, "somebody who made no progress gives way");
            row.gives_way.notify_one();
        }
        let gives_way = Arc::new(Notify::new());
        let id = taken.insert(Row { peer, subnet, progressed_at: now, gives_way: gives_way.clone() });
        Some(Place { places: self.clone(), id, gives_way })
    }

    /// A place, if there is one before long.
    pub(super) async fn take_soon(
        self: &Arc<Self>,
        peer: PublicKey,
        subnet: Subnet,
        within: Duration,
    ) -> Option<Place> {
        let taking = async {
            loop {
                if let Some(place) = self.take(peer, subnet, Instant::now()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(tag: u8) -> PublicKey {
        PublicKey::Ed25519([tag; 32])
    }

    fn subnet(tag: u8) -> Subnet {
        Subnet::V4([10, 0, tag])
    }

    #[test]
    fn every_bound_is_reached_and_a_place_is_given_back() {
        let places = Places::new(Bounds { total: 6, per_peer: 2, per_subnet: 3 });
        let now = Instant::now();
        let mut held: Vec<Place> = (0..2).map(|_| places.take(peer(1), subnet(1), now).unwrap()).collect();
        assert!(places.take(peer(1), subnet(2), now).is_none(), "per peer");
        held.push(places.take(peer(2), subnet(1), now).unwrap());
        assert!(places.take(peer(3), subnet(1), now).is_none(), "per network");
        held.extend((4..7).map(|tag| places.take(peer(tag), subnet(tag), now).unwrap()));
        assert!(places.take(peer(8), subnet(8), now).is_none(), "in all, and nobody has idled");
        held.pop();
        places.take(peer(8), subnet(8), now).unwrap();
        drop(held);
        let taken = places.taken.lock().unwrap();
        assert!(taken.rows.is_empty() && taken.by_peer.is_empty() && taken.by_subnet.is_empty());
    }

    #[tokio::test]
    async fn whoever_idles_in_the_heaviest_network_gives_way() {
        let places = Places::new(Bounds { total: 4, per_peer: 9, per_subnet: 9 });
        let now = Instant::now();
        let held: Vec<Place> = (0..3).map(|_| places.take(peer(1), subnet(1), now).unwrap()).collect();
        let lone = places.take(peer(2), subnet(2), now).unwrap();
        let later = now + GIVE_WAY_AFTER + Duration::from_secs(1);
        places.taken.lock().unwrap().rows.get_mut(&held[0].id).unwrap().progressed_at = later;
        assert!(places.take(peer(1), subnet(1), later).is_none(), "not to one of its own");
        let newcomer = places.take(peer(3), subnet(3), later).unwrap();
        timeout(GIVE_WAY_AFTER, held[1].is_lost())
            .await
            .expect("the one that idles for longest, and of several the first");
        assert_eq!(places.taken.lock().unwrap().rows.len(), 4);
        drop(held);
        assert_eq!(places.taken.lock().unwrap().rows.len(), 2, "and is not counted down twice");
        drop((lone, newcomer));
    }
}
