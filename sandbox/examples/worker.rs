//! The worker as an executable, for this crate's tests; and what hostile code in its place would do.
//!
//! ```text
//! worker [MARK] compile | run            a worker
//! worker attempt PROFILE NAME [ARGUMENT]  builds the jail, then tries one thing as native code, and says what came of it
//! worker free NAME [ARGUMENT]             tries the same without a jail
//! worker scarce ARTEFACT                  runs a program where the kernel soon refuses memory
//! worker lie HOW [MARK] compile | run     passes as a worker, and then misbehaves
//! worker [MARK] devices                   looks for graphics processors
//! worker driver HOW [MARK] devices        does as if a driver misbehaved in that
//! worker parent MODULE CACHE ARGUMENTS    a parent with a busy worker and a warm one, until it is killed
//! ```

use std::env;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use rustix::process::{Resource, Rlimit};
use spare_sandbox::cache::{Cache, Found, Key};
use spare_sandbox::engine;
use spare_sandbox::host::{PoolSize, Settings, Stop, WorkerCommand, Workers};
use spare_sandbox::jail::{self, Profile};
use spare_sandbox::run::{self, Go};
use spare_sandbox::task::{Determinism, Limits, Task};
use spare_sandbox::worker;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["attempt", profile, name, ref rest @ ..] => {
            let target = Target::of(rest);
            jail::apply(profile_named(profile)).expect("this machine can build the jail");
            say(attempt(name, &target))
        }
        ["free", name, ref rest @ ..] => say(attempt(name, &Target::of(rest))),
        ["scarce", artefact] => scarce(Path::new(artefact)),
        ["lie", how, ..] => lie(how),
        ["parent", module, cache, ref arguments @ ..] => {
            parent(Path::new(module), Path::new(cache), arguments)
        }
        ["driver", how, ..] => driver(how),
        [.., "devices"] => worker::devices(),
        [.., profile] => worker::main(profile_named(profile)),
        [] => ExitCode::FAILURE,
    }
}

fn profile_named(name: &str) -> Profile {
    match name {
        "compile" => Profile::Compile,
        "run" => Profile::Run,
        other => panic!("no profile {other}"),
    }
}

/// What is attacked; looked up before the jail stands, as an attacker would know it.
struct Target {
    path: std::ffi::CString,
    port: u16,
    parent: usize,
}

impl Target {
    fn of(rest: &[&str]) -> Self {
        let argument = rest.first().copied().unwrap_or_default();
        Self {
            path: std::ffi::CString::new(argument).expect("an argument has no NUL"),
            port: argument.parse().unwrap_or(0),
            parent: std::os::unix::process::parent_id() as usize,
        }
    }
}

fn say(came_of_it: Result<i64, i32>) -> ExitCode {
    match came_of_it {
        Ok(_) => println!("done"),
        Err(errno) => println!("{errno}"),
    }
    ExitCode::SUCCESS
}

/// One thing that hostile code would try.
fn attempt(name: &str, target: &Target) -> Result<i64, i32> {
    let path = target.path.as_ptr() as usize;
    let here = libc::AT_FDCWD as usize;
    let flags = |flags: i32| flags as usize;
    let space = [0u8; 256];
    let space = space.as_ptr() as usize;
    match name {
        "read" => call(libc::SYS_openat, &[here, path, flags(libc::O_RDONLY)]),
        "read-by-socket" => call(libc::SYS_openat, &[0, path, flags(libc::O_RDONLY)]),
        "write" => call(libc::SYS_openat, &[here, path, flags(libc::O_CREAT | libc::O_WRONLY), 0o600]),
        "unlink" => call(libc::SYS_unlinkat, &[here, path, 0]),
        "mkdir" => call(libc::SYS_mkdirat, &[here, path, 0o700]),
        "chmod" => call(libc::SYS_fchmodat, &[here, path, 0o777]),
        "stat" => call(libc::SYS_newfstatat, &[here, path, space, 0]),
        "stat-as-descriptor" => call(libc::SYS_newfstatat, &[here, path, space, flags(libc::AT_EMPTY_PATH)]),
        "handle" => call(libc::SYS_open_by_handle_at, &[here, space, 0]),
        "inet" => call(libc::SYS_socket, &[flags(libc::AF_INET), flags(libc::SOCK_STREAM), 0]),
        "inet6" => call(libc::SYS_socket, &[flags(libc::AF_INET6), flags(libc::SOCK_DGRAM), 0]),
        "unix" => call(libc::SYS_socket, &[flags(libc::AF_UNIX), flags(libc::SOCK_STREAM), 0]),
        "netlink" => call(libc::SYS_socket, &[flags(libc::AF_NETLINK), flags(libc::SOCK_RAW), 0]),
        "socketpair" => {
            call(libc::SYS_socketpair, &[flags(libc::AF_UNIX), flags(libc::SOCK_STREAM), 0, space])
        }
        "connect" => connect(target.port),
        "exec" => {
            let echo = [c"/bin/echo".as_ptr(), c"done".as_ptr(), std::ptr::null()];
            call(libc::SYS_execve, &[echo[0] as usize, echo.as_ptr() as usize, 0])
        }
        "fork" => call(libc::SYS_clone, &[flags(libc::SIGCHLD), 0, 0, 0, 0]),
        "fork-vm" => {
            call(libc::SYS_clone, &[flags(libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD), 0, 0, 0, 0])
        }
        "clone3" => call(libc::SYS_clone3, &[space, 88]),
        "thread" => {
            std::thread::Builder::new().spawn(|| ()).map(|_| 0).map_err(|e| e.raw_os_error().unwrap_or(-1))
        }
        "thread-with-network" => {
            let thread = libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND | libc::CLONE_FILES;
            call(libc::SYS_clone, &[flags(thread | libc::CLONE_NEWNET), 0, 0, 0, 0])
        }
        "ptrace" => call(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, target.parent, 0, 0]),
        "kill" => call(libc::SYS_kill, &[target.parent, 0]),
        "kill-all" => call(libc::SYS_kill, &[usize::MAX, 0]),
        "tgkill" => call(libc::SYS_tgkill, &[target.parent, target.parent, 0]),
        "pidfd" => call(libc::SYS_pidfd_open, &[target.parent, 0]),
        "read-parent" => call(libc::SYS_process_vm_readv, &[target.parent, space, 1, space, 1, 0]),
        "limit-parent" => call(libc::SYS_prlimit64, &[target.parent, libc::RLIMIT_NOFILE as usize, 0, space]),
        "raise-limit" => {
            let unlimited = [u64::MAX; 2];
            call(libc::SYS_prlimit64, &[0, libc::RLIMIT_DATA as usize, unlimited.as_ptr() as usize, 0])
        }
        "bpf" => call(libc::SYS_bpf, &[0, space, 72]),
        "io_uring" => call(libc::SYS_io_uring_setup, &[8, space]),
        "userfaultfd" => call(libc::SYS_userfaultfd, &[0]),
        "perf" => call(libc::SYS_perf_event_open, &[space, 0, 0, 0, 0]),
        "keyctl" => call(libc::SYS_keyctl, &[0, -3i32 as usize, 0]),
        "mount" => call(
            libc::SYS_mount,
            &[c"none".as_ptr() as usize, c"/".as_ptr() as usize, c"tmpfs".as_ptr() as usize, 0, 0],
        ),
        "unshare" => call(libc::SYS_unshare, &[flags(libc::CLONE_NEWUSER)]),
        "setns" => call(libc::SYS_setns, &[0, 0]),
        "setuid" => call(libc::SYS_setuid, &[0]),
        "shared-memory" => {
            let sharing = flags(libc::MAP_SHARED | libc::MAP_ANONYMOUS);
            call(libc::SYS_mmap, &[0, 4096, flags(libc::PROT_READ), sharing, usize::MAX, 0])
        }
        "memfd" => call(libc::SYS_memfd_create, &[c"x".as_ptr() as usize, 0]),
        "dumpable" => call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as usize, 1, 0, 0, 0]),
        "outlive-parent" => call(libc::SYS_prctl, &[libc::PR_SET_PDEATHSIG as usize, 0, 0, 0, 0]),
        "ioctl" => call(libc::SYS_ioctl, &[0, libc::FIONREAD as usize, space]),
        "send-descriptor" => call(libc::SYS_sendmsg, &[0, space, 0]),
        "fstat-7" => call(libc::SYS_fstat, &[7, space]),
        "random" => call(libc::SYS_getrandom, &[space, 16, 0]),
        other => panic!("no attempt {other}"),
    }
}

fn connect(port: u16) -> Result<i64, i32> {
    let socket = call(libc::SYS_socket, &[libc::AF_INET as usize, libc::SOCK_STREAM as usize, 0])?;
    let [high, low] = port.to_be_bytes();
    let address = [libc::AF_INET as u8, 0, high, low, 127, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
    call(libc::SYS_connect, &[socket as usize, address.as_ptr() as usize, address.len()])
}

#[expect(unsafe_code, reason = "hostile code asks the kernel directly")]
fn call(number: i64, arguments: &[usize]) -> Result<i64, i32> {
    let at = |index: usize| arguments.get(index).copied().unwrap_or(0);
    // SAFETY: pointers among the arguments point to arrays that outlive the call, and the kernel checks them.
    // What comes of a successful `fork` is two processes that print and end.
    match unsafe { libc::syscall(number, at(0), at(1), at(2), at(3), at(4), at(5)) } {
        -1 => Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(-1)),
        result => Ok(result),
    }
}

/// Says that it is ready, and then what no worker would. The bytes are written out by hand, as an attacker
/// would.
fn lie(how: &str) -> ExitCode {
    if how == "entrenched" {
        jail::apply(Profile::Run).expect("this machine can build the jail");
    }
    let mut parent = File::from(std::io::stdin().as_fd().try_clone_to_owned().expect("there is a socket"));
    let tell = |parent: &mut File, bytes: &[u8]| {
        let _ = parent.write_all(bytes);
    };
    let frame = |head: &[u8]| [&(head.len() as u32).to_le_bytes()[..], head].concat();
    if how == "early" {
        tell(&mut parent, &[0xff; 64]);
        std::thread::sleep(Duration::from_secs(600));
    }
    let configuration = if how == "other-build" { [9; 32] } else { engine::configuration() };
    tell(&mut parent, &frame(&[&[0][..], &configuration, &[7, 1]].concat()));
    // Whatever the order is, it has arrived when something has.
    if !matches!(parent.read(&mut [0; 1]), Ok(1)) {
        return ExitCode::SUCCESS; // Nobody wants it; and who gets no order has no guest that could take it over.
    }
    match how {
        "silent" => {}
        "entrenched" => tell(&mut parent, &frame(&step_head(1))),
        "garbage" => tell(&mut parent, &[0xff; 100_000]),
        "zeroes" => tell(&mut parent, &[0; 100_000]),
        "long-head" => tell(&mut parent, &[0xff, 0xff, 0xff, 0x7f, 1, 2, 3]),
        "stuck" => (0..1000).for_each(|_| tell(&mut parent, &frame(&[3, 5, 0, 0]))),
        "flood" => (1..u64::MAX).for_each(|fuel| tell(&mut parent, &frame(&step_head(fuel)))),
        "much-printed" => {
            tell(&mut parent, &frame(&[3, 5, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0]))
        }
        // An outcome: code 0, 7 fuel, no memory, nothing refused, no logs, one output.
        "escape" => {
            tell(&mut parent, &frame(&[&[4, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 6][..], b"../key", &[0]].concat()))
        }
        "huge-output" => tell(
            &mut parent,
            &frame(
                &[&[4, 0, 0, 7, 0, 0, 0, 0, 0, 0, 1, 1][..], b"x", &[0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]]
                    .concat(),
            ),
        ),
        "failed" => tell(&mut parent, &frame(&[&[5, 7][..], b"no room"].concat())),
        "artefact" => tell(&mut parent, &frame(&[1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        "fat" => grow(),
        "page-tables" => touch_much(),
        "break-out" => {
            jail::apply(Profile::Run).expect("this machine can build the jail");
            let _ = attempt("inet", &Target::of(&[]));
        }
        "crash" => std::process::abort(),
        "panic" => panic!("so sorry"),
        "hang-up" => {
            drop(parent);
            close_socket();
        }
        other => panic!("no lie {other}"),
    }
    std::thread::sleep(Duration::from_secs(600));
    ExitCode::SUCCESS
}

/// What drivers do to the process that has loaded them.
fn driver(how: &str) -> ExitCode {
    let mut parent = File::from(std::io::stdin().as_fd().try_clone_to_owned().expect("there is a socket"));
    match how {
        "crash" => {
            eprintln!("trying Some Card");
            std::process::abort()
        }
        "hang" => std::thread::sleep(Duration::from_secs(600)),
        "chatter" => while parent.write_all(&[0xff; 1 << 16]).is_ok() {},
        "fat" => grow(),
        "exit" => {
            eprintln!("no licence");
            return ExitCode::from(3);
        }
        other => panic!("no driver does {other}"),
    }
    ExitCode::SUCCESS
}

/// Runs a program on a task that may have more memory than the kernel gives this process, and says what came of it.
fn scarce(artefact: &Path) -> ExitCode {
    const LEFT_BYTES: u64 = 64 << 20;
    let program = run::load(File::open(artefact).expect("the test wrote it")).expect("the test compiled it");
    let status = std::fs::read_to_string("/proc/self/status").expect("it is there");
    let data_kib = status.lines().find_map(|line| line.strip_prefix("VmData:")?.trim().strip_suffix(" kB"));
    let data_bytes = data_kib.and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10;
    let most = Some(data_bytes + LEFT_BYTES);
    rustix::process::setrlimit(Resource::Data, Rlimit { current: most, maximum: most }).expect("it is lower");
    println!(
        "{:?}",
        run::run(&program, task(1 << 30, u64::MAX), &mut |_| Go::On).map(|outcome| outcome.exit)
    );
    ExitCode::SUCCESS
}

fn step_head(mut fuel: u64) -> Vec<u8> {
    let mut head = vec![3];
    while fuel > 0x7f {
        head.push(fuel as u8 | 0x80);
        fuel >>= 7;
    }
    head.extend([fuel as u8, 0, 0]);
    head
}

/// Takes memory until somebody minds.
fn grow() {
    let mut taken = Vec::new();
    loop {
        taken.push(vec![1u8; 1 << 20]);
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Reads a byte in each of very many places, which takes no memory but the kernel's, for page tables.
#[expect(unsafe_code, reason = "hostile code maps what it likes")]
fn touch_much() {
    const PLACES: usize = 100_000;
    const APART_BYTES: usize = 2 << 20;
    let sharing = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE) as usize;
    let protection = libc::PROT_READ as usize;
    let start = call(libc::SYS_mmap, &[0, PLACES * APART_BYTES, protection, sharing, usize::MAX, 0]);
    let start = start.expect("addresses are free") as usize as *const u8;
    for place in 0..PLACES {
        // SAFETY: it lies within the mapping.
        unsafe { start.add(place * APART_BYTES).read_volatile() };
    }
}

#[expect(unsafe_code, reason = "standard input cannot be closed otherwise")]
fn close_socket() {
    // SAFETY: nothing here uses standard input any more.
    unsafe { libc::close(0) };
}

/// Keeps one worker busy and one warm until it is killed.
fn parent(module: &Path, cache: &Path, arguments: &[&str]) -> ExitCode {
    let program = env::current_exe().expect("this is an executable");
    let size = PoolSize { busy_max: 1, warm: 1 };
    let settings =
        Settings { compilers: PoolSize { warm: 0, ..size }, runners: size, place_wait: Duration::ZERO };
    let workers = Workers::new(
        WorkerCommand { program, arguments: arguments.iter().map(Into::into).collect(), environment: vec![] },
        settings,
    )
    .expect("a thread starts");
    let module = std::fs::read(module).expect("the test wrote it");
    let cache = Cache::open(cache, u64::MAX).expect("the test made it");
    let Ok(Found::Artefact(artefact)) = cache.get(&[0; 32], Key::of(&module)) else {
        panic!("the test compiled it")
    };
    let mut said = false;
    let outcome = workers.run(
        &artefact,
        &task(1 << 20, u64::MAX / 2),
        Duration::from_secs(600),
        &Stop::new(),
        &mut |_| {
            if !said {
                said = true;
                println!("busy");
            }
            Go::On
        },
    );
    panic!("it should have been killed, and not have come to {outcome:?}")
}

fn task(memory_bytes: u64, fuel: u64) -> Task {
    Task {
        args: vec![],
        env: vec![],
        stdin: vec![],
        inputs: vec![],
        limits: Limits { fuel, memory_bytes, output_bytes: 0, output_files: 0, log_bytes: 0 },
        seed: [0; 32],
        starts_at_s: 0,
        determinism: Determinism::Deterministic,
    }
}
