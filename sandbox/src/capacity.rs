//! What this machine can run, counted or measured, never assumed.
//!
//! | question | asked by | answered by |
//! |---|---|---|
//! | how many jobs at once | [`cores`] | the kernel: affinity and quotas |
//! | may one more job start | [`memory`] | the kernel, now: free memory, and the bounds of all control groups |
//! | how much does a job compute in a second | [`measure`] | a short program in a worker, as a job runs |
//! | which graphics processors are there | [`gpus`] | Vulkan, in a process of its own, and a trial of each |
//!
//! **Non-goal:** what a machine promises. Who rents it out may offer less than is found here.

use std::thread;

pub use fuel::{FuelRate, MeasureError, measure};
pub use gpus::{DetectionFailed, GPUS_MAX, Gpu, GpuKind, Gpus, SetAside, TEXT_MAX_BYTES, Why, gpus};
pub use memory::{Memory, MemoryError, memory};

pub(crate) use gpus::Candidate;

mod fuel;
mod gpus;
mod memory;
#[expect(unsafe_code, reason = "Vulkan is a C interface, and its loader is found when the program runs")]
pub(crate) mod vulkan;

/// Processors that this process can keep busy, at least one.
///
/// The standard library counts those that the process's affinity allows (which is where `cpuset` groups show),
/// and bounds them by the quotas of its control groups and all above them, of the first version (`cpu.cfs_quota_us`)
/// as of the second (`cpu.max`), where parts of a processor are left out. It asks anew each time.
///
/// # Errors
/// When the system does not tell.
pub fn cores() -> std::io::Result<usize> {
    Ok(thread::available_parallelism()?.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tests' other threads keep their affinity.
    #[test]
    fn a_thread_that_is_bound_to_one_processor_has_one() {
        let one = thread::spawn(|| {
            let mut allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let first = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
            allowed.clear();
            allowed.set(first);
            rustix::thread::sched_setaffinity(None, &allowed).unwrap();
            cores().unwrap()
        });
        assert_eq!(one.join().unwrap(), 1);
        assert!(cores().unwrap() >= 1);
    }
}
