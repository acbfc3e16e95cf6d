//! Graphics processors: what Vulkan names, and what of it can be rented out.
//!
//! Vulkan is asked for, since all vendors' drivers have it and none of their own libraries is needed. A driver is a
//! large C program that may crash or hang, so it is loaded in a process of its own ([`worker::devices`](crate::worker::devices)),
//! which has a deadline and a bound on memory, and says what it found in one bounded message.
//!
//! **What "found" means.** Each device was opened, and has filled a buffer by itself, within a deadline, in which the
//! expected bytes were seen then. What was *not* tried: whether all of its memory works, how fast it is, and whether
//! its compiler of shaders works.
//!
//! **Why not wgpu**, on which jobs will run: it names no memory, and its fifty crates would double the time in which
//! this crate is compiled. What is used instead is `ash`, Vulkan's bare functions, which wgpu uses, too.
//!
//! **Invariant:** a renderer in software is never among the graphics processors, nor is one device there twice.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::host::{self, WorkerCommand, WorkerError};

/// Most graphics processors that are named; others are set aside.
pub const GPUS_MAX: usize = 8;

/// Longest text about one, in bytes.
pub const TEXT_MAX_BYTES: usize = 64;

/// Drivers that compute on the processor, by what their devices are called, in lower case. A virtual machine may show
/// one that its host has as a device of its own.
const SOFTWARE: [&str; 4] = ["llvmpipe", "lavapipe", "swiftshader", "softpipe"];

/// How a graphics processor is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GpuKind {
    /// It has a memory of its own.
    Discrete,
    /// It uses the machine's memory.
    Integrated,
    /// It is shown by the host of a virtual machine.
    Virtual,
    /// It is the processor that runs everything else.
    Software,
    /// Its driver does not say.
    Other,
}

/// A graphics processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its name, as its driver says.
    pub name: String,
    /// The driver and its version.
    pub driver: String,
    /// Bytes of the largest heap that its driver calls the device's own. An integrated one's is a part of the
    /// machine's memory. 0 if the driver names none.
    pub memory_bytes: u64,
    /// How it is attached.
    pub kind: GpuKind,
}

/// Why a device that was found is not among the graphics processors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// It failed its trial; how.
    Failed(String),
    /// It is software.
    Software,
    /// Another driver has shown it already.
    Twice,
    /// There are [`GPUS_MAX`] others.
    Beyond,
}

/// A device that was found, but is not to be rented out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAside {
    /// What it says it is.
    pub gpu: Gpu,
    /// Why.
    pub why: Why,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gpus {
    /// Graphics processors, in Vulkan's order.
    pub gpus: Vec<Gpu>,
    /// What else Vulkan named.
    pub set_aside: Vec<SetAside>,
}

/// Nothing is known, since the process that looked did not come to an end.
#[derive(Debug, thiserror::Error)]
#[error("detection failed: {0}")]
pub struct DetectionFailed(#[from] pub WorkerError);

/// A device as the process that looked describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) driver: String,
    pub(crate) memory_bytes: u64,
    pub(crate) kind: GpuKind,
    /// Domain, bus, device and function, where the driver tells.
    pub(crate) pci: Option<[u32; 4]>,
    /// How its trial ended.
    pub(crate) trial: Result<(), String>,
}

/// Looks for graphics processors for at most `wall`, in a process that `command` starts. None are found where
/// there is no Vulkan.
///
/// # Errors
/// [`DetectionFailed`] when the process could not be started, crashed (which drivers do), was late, or said what
/// cannot be.
pub fn gpus(command: &WorkerCommand, wall: Duration) -> Result<Gpus, DetectionFailed> {
    Ok(sorted(host::devices::candidates(command, wall)?))
}

/// Tells what can be rented out from what cannot.
fn sorted(candidates: Vec<Candidate>) -> Gpus {
    let mut found = Gpus::default();
    let mut taken = Vec::new();
    for candidate in candidates {
        let why = match &candidate.trial {
            Err(how) => Some(Why::Failed(printable(how))),
            Ok(()) if is_software(&candidate) => Some(Why::Software),
            Ok(()) if candidate.pci.is_some_and(|pci| taken.contains(&pci)) => Some(Why::Twice),
            Ok(()) if found.gpus.len() >= GPUS_MAX => Some(Why::Beyond),
            Ok(()) => None,
        };
        let Candidate { name, driver, memory_bytes, kind, pci, .. } = candidate;
        let gpu = Gpu { name: printable(&name), driver: printable(&driver), memory_bytes, kind };
        match why {
            Some(why) => found.set_aside.push(SetAside { gpu, why }),
            None => {
                taken.extend(pci);
                found.gpus.push(gpu);
            }
        }
    }
    found
}

fn is_software(candidate: &Candidate) -> bool {
    let names = format!("{} {}", candidate.name, candidate.driver).to_lowercase();
    candidate.kind == GpuKind::Software || SOFTWARE.iter().any(|software| names.contains(software))
}

/// A driver's text, fit to be shown and sent.
fn printable(text: &str) -> String {
    let text: String = text.chars().filter(|char| !char.is_control()).collect();
    let text = text.trim();
    text[..text.floor_char_boundary(TEXT_MAX_BYTES)].trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, pci: Option<[u32; 4]>) -> Candidate {
        let driver = "radv Mesa 25.0.7".into();
        Candidate {
            name: name.into(),
            driver,
            memory_bytes: 16 << 30,
            kind: GpuKind::Discrete,
            pci,
            trial: Ok(()),
        }
    }

    fn names(found: &Gpus) -> Vec<&str> {
        found.gpus.iter().map(|gpu| gpu.name.as_str()).collect()
    }

    #[test]
    fn software_is_never_rented_out_whatever_it_calls_itself() {
        let of_kind = |kind| Candidate { kind, ..candidate("plain", None) };
        let named = |name: &str| candidate(name, None);
        let by = |driver: &str| Candidate { driver: driver.into(), ..named("plain") };
        for software in [
            of_kind(GpuKind::Software),
            named("llvmpipe (LLVM 15.0.6, 256 bits)"),
            named("Virtio-GPU Venus (llvmpipe (LLVM 15.0.6, 256 bits))"),
            named("SwiftShader Device (Subzero)"),
            by("Lavapipe"),
        ] {
            let found = sorted(vec![software.clone()]);
            assert_eq!(names(&found), [""; 0], "{software:?}");
            assert_eq!(found.set_aside[0].why, Why::Software);
        }
        assert_eq!(names(&sorted(vec![of_kind(GpuKind::Other), of_kind(GpuKind::Virtual)])), ["plain"; 2]);
    }

    #[test]
    fn a_card_that_two_drivers_show_is_one_unless_the_first_fails() {
        let (slot, other_slot) = (Some([0, 1, 0, 0]), Some([0, 2, 0, 0]));
        let found = sorted(vec![candidate("a", slot), candidate("b", slot), candidate("c", other_slot)]);
        assert_eq!(names(&found), ["a", "c"]);
        assert_eq!(found.set_aside[0].why, Why::Twice);
        let broken = Candidate { trial: Err("lost".into()), ..candidate("a", slot) };
        let found = sorted(vec![broken, candidate("b", slot)]);
        assert_eq!(names(&found), ["b"]);
        assert_eq!(found.set_aside[0].why, Why::Failed("lost".into()));
        let without_slots = sorted(vec![candidate("a", None), candidate("a", None)]);
        assert_eq!(names(&without_slots), ["a", "a"], "two of a kind");
    }

    #[test]
    fn what_an_ask_has_no_room_for_is_set_aside_or_cut() {
        let found = sorted((0..10).map(|slot| candidate("a", Some([0, slot, 0, 0]))).collect());
        assert_eq!((found.gpus.len(), found.set_aside.len()), (GPUS_MAX, 2));
        assert_eq!(found.set_aside[0].why, Why::Beyond);
        let long = format!("\u{1b}[31m\n{}", "ö".repeat(40));
        let found = sorted(vec![candidate(&long, None)]);
        assert_eq!(found.gpus[0].name, format!("[31m{}", "ö".repeat(30)));
    }
}
