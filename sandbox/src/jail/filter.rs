//! Which system calls a worker may make.
//!
//! Three answers. What the engine and Rust's library truly need is **allowed**, in the narrow form in which
//! they need it. What only an attacker would ask for **kills** the worker, so that its owner hears of it.
//! Everything else is **refused**, as an honest library must expect.
//!
//! | kept out | by |
//! |---|---|
//! | memory shared with others, or beyond the limit on private memory | `mmap` is for private memory only |
//! | new processes | `clone` makes threads only, and only for a compiler; its newer form, whose arguments a filter cannot see, does not exist |
//! | looking up paths | `statx` and `newfstatat` are for open descriptors; with an empty root no name leads anywhere in any case |
//! | signals to others | `tgkill` is for this process only, where `abort` needs it |

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, Error, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

use super::Profile;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Allowed, whatever the arguments.
const ALLOWED: [i64; 33] = [
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_recvmsg,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_fstat,
    libc::SYS_munmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_restart_syscall,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What the engine tries and does without where a kernel does not have it.
const UNKNOWN: [i64; 2] = [libc::SYS_clone3, libc::SYS_memfd_create];

/// What nothing honest in a worker ever asks for.
const ALARMS: [i64; 63] = [
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_ptrace,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_bpf,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_userfaultfd,
    libc::SYS_perf_event_open,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capset,
    libc::SYS_personality,
    libc::SYS_shmget,
    libc::SYS_shmat,
    libc::SYS_msgget,
    libc::SYS_semget,
    libc::SYS_mq_open,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
];

/// Flags of `clone` that every thread has, and no process.
const THREAD: u64 = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FILES) as u64;

/// Flags of `clone` that make namespaces.
const NAMESPACES: u64 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET) as u64;

/// The bits of `mmap`'s flags that say who sees what is written.
const SHARING: u64 = 0xf;

/// Puts the filter around this thread and all that it will start.
pub(super) fn install(profile: Profile) -> Result<(), Error> {
    // The kernel takes the strictest of the answers. The allow list comes last, since it forbids to install
    // more.
    for program in [unknown()?, alarms(profile)?, allowed(profile)?] {
        seccompiler::apply_filter(&program)?;
    }
    Ok(())
}

fn unknown() -> Result<BpfProgram, BackendError> {
    compiled(whatever(&UNKNOWN), SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn alarms(profile: Profile) -> Result<BpfProgram, BackendError> {
    let mut rules = whatever(&ALARMS);
    rules.insert(libc::SYS_tgkill, vec![SeccompRule::new(vec![argument(0, SeccompCmpOp::Ne, own_pid())?])?]);
    match profile {
        Profile::Run => rules.insert(libc::SYS_clone, vec![]),
        Profile::Compile => rules.insert(libc::SYS_clone, one_rule(0, SeccompCmpOp::MaskedEq(THREAD), 0)?),
    };
    #[cfg(target_arch = "x86_64")]
    rules.extend(whatever(&[
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_iopl,
        libc::SYS_ioperm,
        libc::SYS_modify_ldt,
    ]));
    compiled(rules, SeccompAction::Allow, SeccompAction::KillProcess)
}

fn allowed(profile: Profile) -> Result<BpfProgram, BackendError> {
    let mut rules = whatever(&ALLOWED);
    rules.extend(whatever(&UNKNOWN)); // Of two refusals the later one would win; theirs is the earlier.
    rules.insert(libc::SYS_mmap, one_rule(3, SeccompCmpOp::MaskedEq(SHARING), libc::MAP_PRIVATE as u64)?);
    rules.insert(libc::SYS_tgkill, one_rule(0, SeccompCmpOp::Eq, own_pid())?);
    rules.insert(
        libc::SYS_prlimit64,
        vec![SeccompRule::new(vec![
            argument(0, SeccompCmpOp::Eq, 0)?,
            SeccompCondition::new(2, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?,
        ])?],
    );
    let by_descriptor = SeccompCmpOp::MaskedEq(libc::AT_EMPTY_PATH as u64);
    rules.insert(libc::SYS_newfstatat, one_rule(3, by_descriptor.clone(), libc::AT_EMPTY_PATH as u64)?);
    rules.insert(libc::SYS_statx, one_rule(2, by_descriptor, libc::AT_EMPTY_PATH as u64)?);
    rules.insert(
        libc::SYS_fcntl,
        any_of(1, &[libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC])?,
    );
    if profile == Profile::Compile {
        rules.insert(libc::SYS_clone, one_rule(0, SeccompCmpOp::MaskedEq(THREAD | NAMESPACES), THREAD)?);
    }
    compiled(rules, SeccompAction::Errno(libc::EPERM as u32), SeccompAction::Allow)
}

fn own_pid() -> u64 {
    u64::from(std::process::id())
}

fn whatever(calls: &[i64]) -> Rules {
    calls.iter().map(|call| (*call, vec![])).collect()
}

/// Looks at the lower half of an argument, which is all that the kernel looks at for one of 32 bits.
fn argument(index: u8, comparison: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, comparison, value)
}

fn one_rule(index: u8, comparison: SeccompCmpOp, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    Ok(vec![SeccompRule::new(vec![argument(index, comparison, value)?])?])
}

fn any_of(index: u8, values: &[i32]) -> Result<Vec<SeccompRule>, BackendError> {
    values
        .iter()
        .map(|value| SeccompRule::new(vec![argument(index, SeccompCmpOp::Eq, *value as u64)?]))
        .collect()
}

/// A program that gives `on_match` to the calls in `rules`, and `otherwise` to all others. Calls of a foreign
/// architecture kill.
fn compiled(
    rules: Rules,
    otherwise: SeccompAction,
    on_match: SeccompAction,
) -> Result<BpfProgram, BackendError> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH)?;
    SeccompFilter::new(rules, otherwise, on_match, architecture)?.try_into()
}
