//! The walls around a worker, which it puts up itself before it reads a byte from anybody.
//!
//! **Assumption:** whoever wrote the guest may come to run native code in the worker, since engines and
//! compilers have holes. What such code can reach is then decided here, and nowhere else: its own memory, a
//! processor, and the socket to its parent.
//!
//! | wall | what it keeps away | when the machine lacks it |
//! |---|---|---|
//! | system calls ([`filter`]) | all of the kernel but about thirty calls | no worker starts |
//! | Landlock | every file, TCP, abstract sockets, signals to others (as far as the kernel knows each) | no worker starts |
//! | namespaces, empty root | network, other users' keys, names and existence of files | the worker goes without |
//! | resource limits | core dumps, files written, descriptors, addresses; memory and processor time are set by the parent for each task | no worker starts |
//!
//! Two walls stand before everything that matters, so that a hole in one is not a hole in the jail. What no
//! wall here keeps away: timing of the shared processor's caches.
//!
//! **Invariant:** [`apply`] either puts up all walls and has tried that they stand, or fails.

use std::fmt;
use std::io;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, Signal};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};
use serde::{Deserialize, Serialize};

mod filter;

/// Descriptors that a worker may have open at once: its socket, an artefact, and copies of both.
const OPEN_FILES: u64 = 16;

/// Addresses, in bytes: 4 GiB and guards for each of the memories that a program may have, and room beside.
/// Mapping nothing else still costs the kernel page tables, of which this allows 384 MiB.
const ADDRESSES_BYTES: u64 = 192 << 30;

/// Threads of a compiling worker, where the kernel counts them by namespace.
const THREADS: u64 = 64;

/// The newest interface of Landlock that is asked for; older kernels give less.
const NEWEST_LANDLOCK: ABI = ABI::V10;

/// A directory that is empty for all that matters: numbers of the worker's own descriptors.
const EMPTY_ROOT: &str = "/proc/self/fdinfo";

/// What the worker is for, which decides the system calls that it may make.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Profile {
    /// Compiles one program. May start threads.
    Compile,
    /// Runs one program. One thread.
    Run,
}

impl Profile {
    /// The word that starts a worker of this profile.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Compile => "compile",
            Self::Run => "run",
        }
    }
}

/// The walls that a worker has around it, beside those without which it would not have started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walls {
    /// Version of Landlock's interface that is enforced.
    pub landlock_abi: u32,
    /// Whether it is alone in namespaces of its own, with an empty root.
    pub namespaces: bool,
}

/// Why a jail could not be built. The worker ends then.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// More than one thread, of which walls would hold only one.
    #[error("{0} threads run already, and a jail holds only the thread that builds it")]
    NotAlone(usize),
    /// A step was refused by the kernel.
    #[error("{step}: {source}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no Landlock, or it is switched off.
    #[error("the kernel does not enforce Landlock: {0}")]
    NoLandlock(String),
    /// The system call filter was refused.
    #[error("system call filter: {0}")]
    Filter(seccompiler::Error),
    /// A wall was put up and does not stand.
    #[error("{0}, although the jail is built")]
    Leaks(&'static str),
}

/// Names the step in which an operation failed.
fn step<T>(step: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, JailError> {
    result.map_err(|e| JailError::Step { step, source: e.into() })
}

/// Builds the jail around this process, for good. Descriptors 0, 1 and 2 stay open, all others are closed.
///
/// # Errors
/// [`JailError`]: a wall is missing. The process must end, since it may be half jailed.
pub fn apply(profile: Profile) -> Result<Walls, JailError> {
    verify_alone()?;
    close_inherited()?;
    die_first();
    let namespaces = leave_namespaces();
    set_limits(profile, namespaces)?;
    renounce()?;
    let landlock_abi = shut_files()?;
    filter::install(profile).map_err(JailError::Filter)?;
    match std::fs::File::open("/") {
        Err(e) if e.raw_os_error() == Some(libc::EPERM) => Ok(Walls { landlock_abi, namespaces }),
        _ => Err(JailError::Leaks("the filter lets a file be opened")),
    }
}

fn verify_alone() -> Result<(), JailError> {
    match step("counting threads in /proc/self/task", std::fs::read_dir("/proc/self/task"))?.count() {
        1 => Ok(()),
        threads => Err(JailError::NotAlone(threads)),
    }
}

/// Closes what the parent, or whoever started it, left open by mistake.
fn close_inherited() -> Result<(), JailError> {
    let listed = step("listing /proc/self/fd", std::fs::read_dir("/proc/self/fd"))?;
    let open: Vec<i32> = listed.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    for descriptor in open.into_iter().filter(|descriptor| *descriptor > 2) {
        close(descriptor);
    }
    Ok(())
}

#[expect(unsafe_code, reason = "a descriptor that nobody in this process owns can be closed by number only")]
fn close(descriptor: i32) {
    // SAFETY: this process is at its start and has opened nothing that it keeps, so that no value owns the
    // descriptor. The one that listed the directory is closed already; closing it again, or one that never
    // was, is refused without effect.
    let _ = unsafe { libc::close(descriptor) };
}

/// Asks the kernel to end workers before anything else when memory runs out. Without effect where `/proc` is
/// read-only.
fn die_first() {
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
}

/// Leaves the machine's namespaces for empty ones, and its root for an empty one, where users may.
fn leave_namespaces() -> bool {
    let flags = UnshareFlags::NEWUSER
        | UnshareFlags::NEWNET
        | UnshareFlags::NEWIPC
        | UnshareFlags::NEWUTS
        | UnshareFlags::NEWNS
        | UnshareFlags::NEWCGROUP;
    unshare(flags).is_ok()
        && rustix::process::chroot(EMPTY_ROOT).is_ok()
        && rustix::process::chdir("/").is_ok()
}

#[expect(
    unsafe_code,
    reason = "unsharing the table of descriptors would be unsound, so the function is unsafe for all flags"
)]
fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: the flags do not contain `FILES`, and there is one thread only.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Sets what stays the same for every task.
fn set_limits(profile: Profile, namespaces: bool) -> Result<(), JailError> {
    let mut limits = vec![
        (Resource::Core, 0),
        (Resource::Fsize, 0),
        (Resource::Memlock, 0),
        (Resource::Msgqueue, 0),
        (Resource::Nofile, OPEN_FILES),
        (Resource::As, ADDRESSES_BYTES),
    ];
    // Outside a namespace of its own the limit counts all processes of the user, and would stop a compiler
    // beside busy neighbours.
    if namespaces && profile == Profile::Compile {
        limits.push((Resource::Nproc, THREADS));
    }
    for (resource, most) in limits {
        let limit = Rlimit { current: Some(most), maximum: Some(most) };
        step("setting a resource limit", rustix::process::setrlimit(resource, limit))?;
    }
    Ok(())
}

/// Gives up session, privileges and life after the parent's death.
fn renounce() -> Result<(), JailError> {
    let _ = rustix::process::setsid(); // Fails only if it leads a session already.
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step("dropping capabilities", rustix::thread::set_capabilities(None, none))?;
    step("forbidding new privileges", rustix::thread::set_no_new_privs(true))?;
    let hidden = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    step("hiding memory from other processes", hidden)?;
    // After all changes of credentials, which would undo it.
    let deadly = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    step("tying its life to the parent's", deadly)
}

/// Denies every file, TCP port, abstract socket and signal to others. Returns the version of the interface
/// that is enforced.
fn shut_files() -> Result<u32, JailError> {
    let refused = |e: landlock::RulesetError| JailError::NoLandlock(e.to_string());
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST_LANDLOCK))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(NEWEST_LANDLOCK)))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST_LANDLOCK)))
        // What the filter lets through does not come here, but for the trial below, of which no log needs to
        // hear.
        .and_then(|rules| rules.create()?.log_same_exec(false)?.restrict_self())
        .map_err(refused)?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(JailError::NoLandlock(format!("{:?}", status.landlock)));
    }
    match std::fs::File::open("/") {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => Ok(abi_of(&status.landlock)),
        _ => Err(JailError::Leaks("Landlock lets a file be opened")),
    }
}

fn abi_of(status: &LandlockStatus) -> u32 {
    match status {
        LandlockStatus::Available { effective_abi, .. } => *effective_abi as u32,
        _ => 0,
    }
}

/// What this machine has for building jails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Support {
    /// Whether processes can be killed for a forbidden system call.
    pub seccomp: bool,
    /// Whether Landlock is among the kernel's security modules.
    pub landlock: bool,
    /// Whether users may make namespaces, as far as settings tell. Only starting a worker shows it for certain.
    pub namespaces: bool,
}

/// Why strangers' programs should not run on this machine, in words for its owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsafe {
    /// No filter for system calls.
    #[error(
        "the kernel cannot filter system calls (seccomp); use a kernel with CONFIG_SECCOMP_FILTER, or a container that allows it"
    )]
    NoSeccomp,
    /// No Landlock.
    #[error(
        "the kernel does not enforce Landlock; use Linux 5.13 or newer, with landlock in the boot parameter lsm="
    )]
    NoLandlock,
}

impl Support {
    /// Checks that workers can be jailed here.
    ///
    /// # Errors
    /// [`Unsafe`], which says what is missing and what to do about it.
    pub fn verify(&self) -> Result<(), Unsafe> {
        match self {
            Self { seccomp: false, .. } => Err(Unsafe::NoSeccomp),
            Self { landlock: false, .. } => Err(Unsafe::NoLandlock),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |has: bool| if has { "yes" } else { "no" };
        write!(
            f,
            "seccomp {}, landlock {}, namespaces {}",
            word(self.seccomp),
            word(self.landlock),
            word(self.namespaces)
        )
    }
}

/// Looks at what this machine has for building jails. Changes nothing.
pub fn support() -> Support {
    let setting = |path: &str| std::fs::read_to_string(Path::new("/proc/sys").join(path)).unwrap_or_default();
    let is_off = |path: &str, off: &str| setting(path).trim() == off;
    Support {
        seccomp: setting("kernel/seccomp/actions_avail").contains("kill_process"),
        landlock: has_landlock(),
        namespaces: Path::new("/proc/self/ns/user").exists()
            && !is_off("user/max_user_namespaces", "0")
            && !is_off("kernel/unprivileged_userns_clone", "0")
            && !is_off("kernel/apparmor_restrict_unprivileged_userns", "1"),
    }
}

/// Creating rules, without applying them, fails where Landlock is not to be had.
fn has_landlock() -> bool {
    use landlock::{CompatLevel, Compatible};
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V1))
        .and_then(|rules| rules.create())
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        let all = Support { seccomp: true, landlock: true, namespaces: false };
        assert_eq!(all.verify(), Ok(()), "namespaces are a third wall, not one of the two");
        assert_eq!(Support { seccomp: false, ..all }.verify(), Err(Unsafe::NoSeccomp));
        assert_eq!(Support { landlock: false, ..all }.verify(), Err(Unsafe::NoLandlock));
    }

    /// Landlock holds a thread, so this one can be given up for it. In a worker the filter stands before it.
    #[test]
    fn landlock_alone_denies_files_and_ports() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let file = std::env::current_exe().unwrap();
        std::fs::File::open(&file).unwrap();
        std::net::TcpStream::connect(address).unwrap();
        std::thread::spawn(move || {
            let abi = shut_files().unwrap();
            let errno = |e: io::Error| e.raw_os_error().unwrap();
            assert_eq!(std::fs::File::open(&file).map_err(errno).unwrap_err(), libc::EACCES);
            assert_eq!(std::fs::write("/tmp/none", "").map_err(errno).unwrap_err(), libc::EACCES);
            let connected = std::net::TcpStream::connect(address);
            assert_eq!(connected.is_err(), abi >= 4, "ports are denied from the fourth interface on");
        })
        .join()
        .unwrap();
    }
}
