//! Capacity: what a provider runs jobs on, as it was counted and measured here. Nothing is advertised before that.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use spare_market::ask::{ComputeAsk, Gpu};
use spare_sandbox::capacity;
use spare_sandbox::engine::configuration;

use crate::config::ComputeConfig;
use crate::jobs::Jobs;
use crate::work::Workshop;

/// How long graphics processors are looked for.
const GPUS_WITHIN: Duration = Duration::from_secs(20);

/// Why a graphics processor is not offered, for people.
fn reason(why: &capacity::Why) -> String {
    match why {
        capacity::Why::Software => "it is software".to_owned(),
        capacity::Why::Failed(how) => format!("it did not work: {how}"),
        capacity::Why::Twice => "it is named twice".to_owned(),
        capacity::Why::Beyond => "there are more than are told of".to_owned(),
    }
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Measured {
    /// Fuel that one job uses in a second.
    pub fuel_per_s: u64,
    /// Graphics processors. Jobs cannot use them yet.
    pub gpus: Vec<Gpu>,
    /// Why others that were found are not among them.
    pub set_aside: Vec<String>,
}

/// How far measuring is.
#[derive(Debug, Clone)]
pub enum State {
    /// It goes on.
    Measuring,
    /// It is done.
    Measured(Measured),
    /// It failed, and why: no jobs are offered.
    Failed(String),
}

/// Jobs at once that a machine is set up for.
pub fn slots(config: &ComputeConfig) -> usize {
    match config.slots {
        0 => capacity::cores().unwrap_or(1),
        slots => slots.into(),
    }
}

/// Memory for all jobs at once.
pub fn memory_bytes(config: &ComputeConfig) -> u64 {
    match config.memory.0 {
        0 => capacity::memory().map_or(0, |memory| memory.total_bytes / 2),
        bytes => bytes,
    }
}

/// What a provider says that it runs jobs on.
pub struct Capacity {
    jobs: Arc<Jobs>,
    state: Mutex<State>,
}

impl Capacity {
    /// Nothing is measured yet.
    pub fn new(jobs: Arc<Jobs>) -> Self {
        Self { jobs, state: Mutex::new(State::Measuring) }
    }

    /// How far measuring is.
    pub fn state(&self) -> State {
        self.state.lock().expect("no holder panics").clone()
    }

    /// Measures, which takes some seconds. Blocks.
    pub fn measure(&self, workshop: &Workshop) {
        let state = match workshop.measure() {
            Err(error) => State::Failed(error.to_string()),
            Ok(rate) => {
                let (gpus, set_aside) = match workshop.gpus(GPUS_WITHIN) {
                    Ok(found) => {
                        let words = |aside: &capacity::SetAside| {
                            format!("{}: {}", aside.gpu.name, reason(&aside.why))
                        };
                        (found.gpus, found.set_aside.iter().map(words).collect())
                    }
                    Err(error) => (Vec::new(), vec![error.to_string()]),
                };
                let gpu = |gpu: capacity::Gpu| Gpu {
                    name: gpu.name,
                    driver: gpu.driver,
                    memory_bytes: gpu.memory_bytes,
                };
                let gpus = gpus.into_iter().map(gpu).collect();
                State::Measured(Measured { fuel_per_s: rate.fuel_per_s, gpus, set_aside })
            }
        };
        match &state {
            State::Failed(why) => tracing::error!(why, "no jobs are offered"),
            State::Measured(measured) => {
                tracing::info!(
                    fuel_per_s = measured.fuel_per_s,
                    gpus = measured.gpus.len(),
                    "jobs are offered"
                );
            }
            State::Measuring => {}
        }
        *self.state.lock().expect("no holder panics") = state;
    }

    /// What is advertised.
    pub fn ask(&self) -> Option<ComputeAsk> {
        let State::Measured(measured) = self.state() else { return None };
        let offer = self.jobs.offer();
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX);
        Some(ComputeAsk {
            prices: offer.prices,
            configuration: configuration(),
            arch: std::env::consts::ARCH.to_owned(),
            slots: count(offer.slots),
            free_slots: count(self.jobs.free_slots().min(offer.slots)),
            memory_bytes: offer.memory_bytes,
            output_bytes: offer.output_bytes,
            fuel_per_s: measured.fuel_per_s,
            gpus: measured.gpus,
        })
    }
}
