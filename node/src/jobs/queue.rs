//! Whose turn it is: the client with the fewest running jobs comes first, and of one client's jobs the oldest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spare_market::job::JobId;
use spare_market::keys::PublicKey;

use super::entry::Entry;
use crate::frames::JobPhase;

/// Jobs by whose time the wait is told.
const TIMES_KEPT: usize = 32;

/// Jobs that wait, and those that run.
pub(super) struct Queue {
    slots: usize,
    /// Memory for all jobs at once.
    memory_bytes: u64,
    waiting: VecDeque<Arc<Entry>>,
    running: HashMap<JobId, (Arc<Entry>, Instant)>,
    /// How long the last jobs took.
    took: VecDeque<Duration>,
}

impl Queue {
    pub(super) fn new(slots: usize, memory_bytes: u64) -> Self {
        Self { slots, memory_bytes, waiting: VecDeque::new(), running: HashMap::new(), took: VecDeque::new() }
    }

    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        self.waiting.push_back(entry);
    }

    /// Takes a job out that has not begun. Returns whether it was there.
    pub(super) fn remove(&mut self, id: &JobId) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|entry| entry.id != *id);
        self.waiting.len() < before
    }

    /// Jobs of a client that wait, and of all.
    pub(super) fn waiting_of(&self, client: &PublicKey) -> (usize, usize) {
        (self.waiting.iter().filter(|entry| entry.client == *client).count(), self.waiting.len())
    }

    pub(super) fn free_slots(&self) -> usize {
        self.slots.saturating_sub(self.running.len() + self.waiting.len())
    }

    /// Jobs whose time to begin is over.
    pub(super) fn expired(&mut self, now_s: u64) -> Vec<Arc<Entry>> {
        let is_over = |entry: &Arc<Entry>| entry.order.v1().begin_by_s <= now_s;
        let expired: Vec<Arc<Entry>> = self.waiting.iter().filter(|entry| is_over(entry)).cloned().collect();
        self.waiting.retain(|entry| !is_over(entry));
        expired
    }

    pub(super) fn running(&self) -> Vec<Arc<Entry>> {
        self.running.values().map(|(entry, _)| entry.clone()).collect()
    }

    fn running_of(&self, client: &PublicKey) -> usize {
        self.running.values().filter(|(entry, _)| entry.client == *client).count()
    }

    fn used_bytes(&self) -> u64 {
        self.running.values().map(|(entry, _)| entry.work.needed_bytes()).sum()
    }

    /// What keeps a job from beginning now.
    fn obstacle(&self, entry: &Entry) -> Option<String> {
        if self.running.len() >= self.slots {
            return Some(format!("all {} places are taken", self.slots));
        }
        let needed = entry.work.needed_bytes();
        if self.used_bytes().saturating_add(needed) > self.memory_bytes {
            return Some(format!("other jobs have the {needed} bytes of memory that it needs"));
        }
        match spare_sandbox::capacity::memory() {
            Ok(memory) if memory.available_bytes < needed => Some(format!(
                "the machine has {} bytes of memory free, and it needs {needed}",
                memory.available_bytes
            )),
            _ => None,
        }
    }

    /// The job whose turn it is: of those that can begin, the first of a client with the fewest running ones.
    pub(super) fn next(&mut self) -> Option<Arc<Entry>> {
        if self.running.len() >= self.slots {
            return None;
        }
        let mut turns: Vec<usize> = (0..self.waiting.len()).collect();
        turns.sort_by_key(|i| (self.running_of(&self.waiting[*i].client), *i));
        let at = turns.into_iter().find(|i| self.obstacle(&self.waiting[*i]).is_none())?;
        let entry = self.waiting.remove(at)?;
        self.running.insert(entry.id, (entry.clone(), Instant::now()));
        Some(entry)
    }

    /// Puts a job that could not begin after all back where it was.
    pub(super) fn put_back(&mut self, entry: Arc<Entry>) {
        self.running.remove(&entry.id);
        self.waiting.push_front(entry);
    }

    pub(super) fn ended(&mut self, entry: &Entry) {
        if let Some((_, began)) = self.running.remove(&entry.id) {
            self.took.push_back(began.elapsed());
            if self.took.len() > TIMES_KEPT {
                self.took.pop_front();
            }
        }
    }

    /// How a job waits.
    pub(super) fn waiting(&self, id: &JobId) -> JobPhase {
        let Some(at) = self.waiting.iter().position(|entry| entry.id == *id) else {
            return JobPhase::Waiting { ahead: 0, wait_s: Some(0), why: "it begins".to_owned() };
        };
        let ahead = u32::try_from(at).unwrap_or(u32::MAX);
        let mean = self.took.iter().sum::<Duration>().checked_div(self.took.len() as u32);
        // The place comes free after about half of what is running, on average.
        let rounds = (at as f64 + 0.5) / self.slots.max(1) as f64;
        let wait_s = mean.map(|mean| mean.mul_f64(rounds).as_secs() as u32);
        let why = self.obstacle(&self.waiting[at]).unwrap_or_else(|| "others are before it".to_owned());
        JobPhase::Waiting { ahead, wait_s, why }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_market::amount::Amount;
    use spare_market::deal::DealId;
    use spare_market::job::{JobLimits, Material, Order, OrderV1, Work};
    use spare_market::keys::SigningSecret;
    use spare_market::signed::{NetworkId, Signed};
    use spare_proofs::cipher::Secret;

    const ANN: PublicKey = PublicKey::Ed25519([1; 32]);
    const BOB: PublicKey = PublicKey::Ed25519([2; 32]);

    fn entry(client: PublicKey, tag: u8, memory_bytes: u64, begin_by_s: u64) -> Arc<Entry> {
        let limits = JobLimits { fuel: 1, memory_bytes, output_bytes: 0, output_files: 0, log_bytes: 0 };
        let work = Work {
            module: Material::of(b""),
            args: vec![],
            env: vec![],
            stdin: None,
            inputs: vec![],
            limits,
            seed: [0; 32],
            starts_at_s: 0,
            is_deterministic: true,
        };
        let (deal, verifiers, penalty) = (DealId([0; 32]), vec![], Amount::ZERO);
        let order = OrderV1 { deal, work: work.id(), verifiers, penalty, begin_by_s, salt: [tag; 16] };
        let key = SigningSecret::from_secret(&Secret::new([1; 32]));
        Entry::new(client, Signed::new(Order::V1(order), NetworkId([0; 32]), &key), work, 0, None)
    }

    fn ids(queue: &mut Queue) -> Vec<JobId> {
        std::iter::from_fn(|| queue.next()).map(|entry| entry.id).collect()
    }

    #[test]
    fn turns_go_round_clients_and_over_what_cannot_begin() {
        let mut queue = Queue::new(3, 1 << 30);
        let of_ann: Vec<_> = (0..3).map(|tag| entry(ANN, tag, 1 << 20, 10)).collect();
        let large = entry(BOB, 3, 1 << 40, 10);
        let of_bob = entry(BOB, 4, 1 << 20, 10);
        for entry in of_ann.iter().chain([&large, &of_bob]) {
            queue.push(entry.clone());
        }
        assert_eq!(queue.free_slots(), 0);
        assert_eq!(ids(&mut queue), [of_ann[0].id, of_bob.id, of_ann[1].id]);
        let JobPhase::Waiting { ahead, wait_s, why } = queue.waiting(&of_ann[2].id) else {
            panic!("it waits")
        };
        assert_eq!((ahead, wait_s), (0, None));
        assert!(why.contains("all 3 places"), "{why}");
        queue.ended(&of_ann[0]);
        assert_eq!(ids(&mut queue), [of_ann[2].id]);
        queue.ended(&of_bob);
        assert_eq!(ids(&mut queue), [], "it never fits");
        assert_eq!(queue.expired(9).len(), 0);
        assert_eq!(queue.expired(10).len(), 1);
        queue.put_back(of_ann[1].clone());
        assert_eq!((ids(&mut queue), queue.waiting_of(&ANN)), (vec![of_ann[1].id], (0, 0)));
    }

    #[test]
    fn memory_of_all_jobs_is_bounded() {
        let mut queue = Queue::new(9, 300 << 20);
        let two = [entry(ANN, 0, 100 << 20, 10), entry(ANN, 1, 100 << 20, 10)];
        two.iter().for_each(|entry| queue.push(entry.clone()));
        assert_eq!(ids(&mut queue), [two[0].id]);
        let JobPhase::Waiting { why, .. } = queue.waiting(&two[1].id) else { panic!("it waits") };
        assert!(why.contains("other jobs have"), "{why}");
        assert!(queue.remove(&two[1].id) && !queue.remove(&two[1].id));
    }
}
