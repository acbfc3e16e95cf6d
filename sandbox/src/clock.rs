//! What time it is for a program.
//!
//! Deterministically, time is start + 1 ns for each fuel used + what was slept, and a sleep takes no time at all:
//! the clock is a function of the task and of what the program did. A program that polls the clock until some
//! time has passed gets there, since polling burns fuel.
//!
//! In freedom it is the machine's clock, and a sleep is a sleep. It costs a fuel for each nanosecond, since it
//! occupies the machine.

use std::time::{Duration, Instant, SystemTime};

use crate::task::{Determinism, Task};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// A program's clock. Times are in nanoseconds, and end in the year 2554.
pub(crate) enum Clock {
    /// A function of the task and the fuel.
    Virtual {
        /// What the clock said at the start, in Unix time.
        starts_at_ns: u64,
        /// How long the program slept.
        slept_ns: u64,
    },
    /// The machine's.
    Real {
        /// When the program started.
        start: Instant,
    },
}

impl Clock {
    /// The clock of a task that starts now.
    pub(crate) fn new(task: &Task) -> Self {
        match task.determinism {
            Determinism::Deterministic => {
                Self::Virtual { starts_at_ns: task.starts_at_s.saturating_mul(NANOS_PER_SECOND), slept_ns: 0 }
            }
            Determinism::Free => Self::Real { start: Instant::now() },
        }
    }

    /// Nanoseconds since the start, when so much fuel is used.
    pub(crate) fn elapsed_ns(&self, fuel_used: u64) -> u64 {
        match self {
            Self::Virtual { slept_ns, .. } => fuel_used.saturating_add(*slept_ns),
            Self::Real { start } => nanos(start.elapsed()),
        }
    }

    /// Nanoseconds of Unix time, when so much fuel is used.
    pub(crate) fn unix_ns(&self, fuel_used: u64) -> u64 {
        match self {
            Self::Virtual { starts_at_ns, .. } => starts_at_ns.saturating_add(self.elapsed_ns(fuel_used)),
            Self::Real { .. } => {
                nanos(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
            }
        }
    }

    /// What sleeping so long costs.
    pub(crate) fn price_of_sleep(&self, ns: u64) -> u64 {
        match self {
            Self::Virtual { .. } => 0,
            Self::Real { .. } => ns,
        }
    }

    /// Sleeps.
    pub(crate) fn sleep(&mut self, ns: u64) {
        match self {
            Self::Virtual { slept_ns, .. } => *slept_ns = slept_ns.saturating_add(ns),
            Self::Real { .. } => std::thread::sleep(Duration::from_nanos(ns)),
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtual_time_is_fuel_and_sleep_and_never_overflows() {
        let mut clock = Clock::Virtual { starts_at_ns: 1_000, slept_ns: 0 };
        assert_eq!((clock.elapsed_ns(7), clock.unix_ns(7)), (7, 1_007));
        clock.sleep(100);
        assert_eq!((clock.elapsed_ns(7), clock.unix_ns(7)), (107, 1_107));
        clock.sleep(u64::MAX);
        assert_eq!((clock.elapsed_ns(7), clock.unix_ns(7)), (u64::MAX, u64::MAX));
    }
}
