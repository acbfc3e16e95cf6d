//! Looking for graphics processors, in a process that a driver may crash.

use std::env;
use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::process::Resource;

use super::pool::Worker;
use super::talk::Trouble;
use super::{Bounds, Stop, WorkerCommand, WorkerError, after, conclude};
use crate::capacity::Candidate;
use crate::wire;

/// What starts such a process.
const ROLE: &str = "devices";

/// Memory of such a process, in bytes: a dozen times of what one took whose driver renders in software.
const MEMORY_BYTES: u64 = 1 << 30;

/// What the owner of the machine may have set to say where drivers are. Nothing else of the environment is
/// handed on.
const FOR_DRIVERS: [&str; 4] = ["LD_LIBRARY_PATH", "VK_DRIVER_FILES", "VK_ICD_FILENAMES", "XDG_DATA_DIRS"];

/// Layers that desktop programs install into every Vulkan process (overlays, recorders) have no business here.
const WITHOUT_LAYERS: (&str, &str) = ("VK_LOADER_LAYERS_DISABLE", "~implicit~");

/// What Vulkan names, and how each device did in a trial.
pub(crate) fn candidates(command: &WorkerCommand, wall: Duration) -> Result<Vec<Candidate>, WorkerError> {
    let mut worker = Worker::start(command, ROLE, &environment())
        .map_err(|e: io::Error| WorkerError::NotStarted(e.to_string()))?;
    worker.line.bound(after(wall), MEMORY_BYTES);
    let found = receive(&mut worker, wall).map_err(|trouble| {
        let bounds = Bounds { wall, memory_bytes: MEMORY_BYTES, processors: 1 };
        conclude(&mut worker, trouble, &bounds, &Stop::new())
    });
    // Drivers clean up when a process ends, and some crash in that. Nobody needs it.
    worker.end(Duration::ZERO);
    found
}

fn receive(worker: &mut Worker, wall: Duration) -> Result<Vec<Candidate>, Trouble> {
    worker.child.limit(Resource::Core, 0)?;
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get() as u64);
    worker.child.limit(Resource::Cpu, wall.as_secs().saturating_add(1).saturating_mul(threads))?;
    Ok(wire::receive(&mut worker.line)?)
}

fn environment() -> Vec<(&'static str, OsString)> {
    let handed_on = FOR_DRIVERS.into_iter().filter_map(|name| Some((name, env::var_os(name)?)));
    handed_on.chain([(WITHOUT_LAYERS.0, WITHOUT_LAYERS.1.into())]).collect()
}
