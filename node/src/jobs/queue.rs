//! Whose turn it is: the client with the fewest running jobs comes first, and of one client's jobs the oldest.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use spare_market::job::{JobId, Work};
use spare_market::keys::PublicKey;

use super::entry::Entry;
use crate::frames::JobPhase;
use crate::limits::JOB_OVERHEAD_BYTES;

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

/// Memory that a job may take up, in this process and its worker's.
pub(super) fn needed_bytes(work: &Work) -> u64 {
    let limits = &work.limits;
    let inputs = work.materials().map(|material| material.bytes);
    inputs
        .chain([limits.memory_bytes, limits.output_bytes, limits.log_bytes.saturating_mul(2)])
        .fold(JOB_OVERHEAD_BYTES, u64::saturating_add)
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

    fn running_of(&self, client: &PublicKey) -> usize {
        self.running.values().filter(|(entry, _)| entry.client == *client).count()
    }

    fn used_bytes(&self) -> u64 {
        self.running.values().map(|(entry, _)| needed_bytes(&entry.work)).sum()
    }

    /// What keeps a job from beginning now.
    fn obstacle(&self, entry: &Entry) -> Option<String> {
        if self.running.len() >= self.slots {
            return Some(format!("all {} places are taken", self.slots));
        }
        let needed = needed_bytes(&entry.work);
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

    /// The job whose turn it is, if it can begin.
    pub(super) fn next(&mut self) -> Option<Arc<Entry>> {
        // The first of those with the fewest running jobs of the same client.
        let at = (0..self.waiting.len()).min_by_key(|i| (self.running_of(&self.waiting[*i].client), *i))?;
        if self.obstacle(&self.waiting[at]).is_some() {
            return None;
        }
        let entry = self.waiting.remove(at)?;
        self.running.insert(entry.id, (entry.clone(), Instant::now()));
        Some(entry)
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
