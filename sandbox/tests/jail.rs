//! Native code in the worker's jail, as if a guest had taken the worker over, gets nowhere.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends there")]

mod common;

use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use common::{Marked, worker};
use spare_sandbox::jail;

/// What came of an attempt.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// It worked.
    Done,
    /// The kernel refused it, with this error.
    Refused(i32),
    /// The kernel killed the process for it.
    Killed,
}

use End::{Done, Killed, Refused};

const EPERM: End = Refused(libc::EPERM);
const ENOSYS: End = Refused(libc::ENOSYS);

fn attempt(words: &[&str]) -> End {
    let child =
        Command::new(worker()).args(words).stdin(Stdio::null()).stderr(Stdio::inherit()).output().unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    match (child.status.signal(), said.lines().next()) {
        (Some(libc::SIGSYS), None) => Killed,
        (None, Some("done")) => Done,
        (None, Some(errno)) => Refused(errno.parse().unwrap()),
        other => panic!("{words:?} ended as {other:?}"),
    }
}

/// Files as a node has them, readable for all, so that only the jail protects them.
struct Node {
    directory: tempfile::TempDir,
    listener: TcpListener,
}

impl Node {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("node.key"), "secret").unwrap();
        std::fs::create_dir(directory.path().join("other-client")).unwrap();
        std::fs::write(directory.path().join("other-client/artefact"), "code").unwrap();
        Self { directory, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    fn port(&self) -> String {
        self.listener.local_addr().unwrap().port().to_string()
    }
}

#[test]
fn native_code_in_either_jail_gets_nowhere() {
    let node = Node::new();
    let (key, artefact, new) = (node.path("node.key"), node.path("other-client/artefact"), node.path("new"));
    let port = node.port();
    let attempts: &[(&str, &str, End)] = &[
        ("read", &key, EPERM),
        ("read", &artefact, EPERM),
        ("read", "/proc/self/environ", EPERM),
        ("read", "/proc/self/mem", EPERM),
        ("read", "/etc/passwd", EPERM),
        ("read-by-socket", "etc/passwd", EPERM),
        ("write", &new, EPERM),
        ("write", &key, EPERM),
        ("unlink", &key, EPERM),
        ("mkdir", &new, EPERM),
        ("chmod", &key, EPERM),
        ("stat", &key, EPERM),
        ("handle", "", Killed),
        ("inet", "", Killed),
        ("inet6", "", Killed),
        ("unix", "", Killed),
        ("netlink", "", Killed),
        ("socketpair", "", Killed),
        ("connect", &port, Killed),
        ("exec", "", Killed),
        ("fork", "", Killed),
        ("clone3", "", ENOSYS),
        ("ptrace", "", Killed),
        ("kill", "", Killed),
        ("kill-all", "", Killed),
        ("tgkill", "", Killed),
        ("pidfd", "", Killed),
        ("read-parent", "", Killed),
        ("limit-parent", "", EPERM),
        ("raise-limit", "", EPERM),
        ("bpf", "", Killed),
        ("io_uring", "", Killed),
        ("userfaultfd", "", Killed),
        ("perf", "", Killed),
        ("keyctl", "", Killed),
        ("mount", "", Killed),
        ("unshare", "", Killed),
        ("setns", "", Killed),
        ("setuid", "", Killed),
        ("shared-memory", "", EPERM),
        ("memfd", "", ENOSYS),
        ("dumpable", "", EPERM),
        ("outlive-parent", "", EPERM),
        ("ioctl", "", EPERM),
        ("send-descriptor", "", EPERM),
    ];
    for (name, argument, end) in attempts {
        for profile in ["run", "compile"] {
            assert_eq!(
                attempt(&["attempt", profile, name, argument]),
                *end,
                "{name} {argument} in the jail to {profile}"
            );
        }
    }
    assert!(!std::path::Path::new(&new).exists());
    assert_eq!(std::fs::read_to_string(key).unwrap(), "secret");
}

#[test]
fn only_a_compiler_starts_threads_and_none_of_them_is_more_than_a_thread() {
    assert_eq!(attempt(&["attempt", "compile", "thread"]), Done);
    assert_eq!(attempt(&["attempt", "run", "thread"]), Killed);
    assert_eq!(attempt(&["attempt", "compile", "thread-with-network"]), EPERM);
    assert_eq!(attempt(&["attempt", "compile", "fork-vm"]), EPERM);
    assert_eq!(attempt(&["attempt", "run", "fork-vm"]), Killed);
}

#[test]
fn a_worker_cannot_even_see_which_files_exist_where_it_has_namespaces() {
    let node = Node::new();
    let walls = Marked::start().workers.walls().unwrap();
    let expected = if walls.namespaces { Refused(libc::ENOENT) } else { Done };
    assert_eq!(attempt(&["attempt", "run", "stat-as-descriptor", &node.path("node.key")]), expected);
}

/// So that the tests above can fail.
#[test]
fn without_the_jail_the_same_attempts_work() {
    let node = Node::new();
    let (key, artefact, new) = (node.path("node.key"), node.path("other-client/artefact"), node.path("new"));
    let port = node.port();
    let attempts: &[(&str, &str)] = &[
        ("read", &key),
        ("read", &artefact),
        ("read", "/proc/self/environ"),
        ("read", "/etc/passwd"),
        ("write", &new),
        ("stat", &key),
        ("stat-as-descriptor", &key),
        ("chmod", &key),
        ("unlink", &key),
        ("inet", ""),
        ("unix", ""),
        ("netlink", ""),
        ("socketpair", ""),
        ("connect", &port),
        ("exec", ""),
        ("fork", ""),
        ("thread", ""),
        ("kill", ""),
        ("tgkill", ""),
        ("pidfd", ""),
        ("limit-parent", ""),
        ("shared-memory", ""),
        ("memfd", ""),
        ("dumpable", ""),
        ("outlive-parent", ""),
        ("random", ""),
    ];
    for (name, argument) in attempts {
        assert_eq!(attempt(&["free", name, argument]), Done, "{name} {argument} without a jail");
    }
    assert_eq!(attempt(&["attempt", "run", "random"]), Done, "what a worker may do, it can do");
}

#[test]
fn a_warm_worker_is_as_jailed_as_it_says() {
    let marked = Marked::start();
    let walls = marked.workers.walls().unwrap();
    assert!(walls.landlock_abi >= 1, "{walls:?}");
    assert_eq!(jail::support().verify(), Ok(()));
    let read =
        |pid: i32, name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let mut jailed = 0;
    common::wait_until("the next worker is warm and jailed", || {
        let before = jailed;
        jailed = common::processes(&marked.mark)
            .into_iter()
            .find(|pid| read(*pid, "status").lines().any(|line| line == "Seccomp_filters:\t3"))
            .unwrap_or(0);
        // The one that was asked for its walls may still be on its way out.
        jailed != 0 && jailed == before
    });
    let status = read(jailed, "status");
    let says =
        |line: &str| assert!(status.lines().any(|other| other == line), "{line:?} is not in\n{status}");
    says("Seccomp:\t2");
    says("NoNewPrivs:\t1");
    says("CapPrm:\t0000000000000000");
    says("CapEff:\t0000000000000000");
    says("Threads:\t1");
    let limits = read(jailed, "limits");
    for (limit, most) in [
        ("Max core file size", "0"),
        ("Max file size", "0"),
        ("Max open files", "16"),
        ("Max address space", "206158430208"),
    ] {
        let line = limits.lines().find(|line| line.starts_with(limit)).unwrap();
        assert_eq!(line[limit.len()..].split_whitespace().next(), Some(most), "{line}");
    }
    let names = |pid: &str, kind: &str| std::fs::read_link(format!("/proc/{pid}/ns/{kind}"));
    for kind in ["user", "net", "ipc", "uts", "mnt", "cgroup"].into_iter().filter(|_| walls.namespaces) {
        match names(&jailed.to_string(), kind) {
            Ok(name) => assert_ne!(name, names("self", kind).unwrap(), "{kind}"),
            Err(e) => {
                assert_eq!(e.kind(), std::io::ErrorKind::PermissionDenied, "only root sees into a worker")
            }
        }
    }
}

#[test]
fn descriptors_that_leak_into_a_worker_are_closed() {
    // A shell gives its child descriptor 7, as careless parents do.
    let leaks = format!("exec 7</etc/passwd; exec {} attempt run fstat-7", worker().display());
    let child = Command::new("sh").args(["-c", &leaks]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&child.stdout).trim(), libc::EBADF.to_string());
    let open = format!("exec 7</etc/passwd; exec {} free fstat-7", worker().display());
    let child = Command::new("sh").args(["-c", &open]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&child.stdout).trim(), "done", "without the jail it is there");
}
