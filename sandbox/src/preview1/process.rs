//! The functions that have nothing to do with files: arguments, clocks, polling, random bytes, the end. And the
//! sockets that there are not.

use wasmtime::Caller;

use super::descriptors::Descriptor;
use super::errno::{Answer, Errno};
use super::memory::{Memory, u32_at, u64_at};
use crate::guest::{ExitCode, Guest};
use crate::{limits, price};

/// `clockid`.
const REALTIME: u32 = 0;
const MONOTONIC: u32 = 1;
const PROCESS_CPU_TIME: u32 = 2;
const THREAD_CPU_TIME: u32 = 3;

/// Layout of `subscription` and `event`.
const SUBSCRIPTION_BYTES: u32 = 48;
const EVENT_BYTES: u32 = 32;

/// `eventtype`.
const CLOCK_EVENT: u8 = 0;
const READ_EVENT: u8 = 1;
const WRITE_EVENT: u8 = 2;

/// `subclockflags`: the timeout is a time, not a duration.
const ABSOLUTE: u16 = 1;

/// Random bytes are paid for and drawn in pieces, so that who cannot pay for all of them does not get them first.
const RANDOM_PIECE_BYTES: usize = 64 << 10;

pub(super) fn args_get(guest: &mut Guest, memory: &mut Memory<'_>, pointers: u32, bytes: u32) -> Answer {
    let args = std::mem::take(&mut guest.args);
    let answer = write_strings(guest, memory, pointers, bytes, args.iter().map(|arg| [arg, "", ""]));
    guest.args = args;
    answer
}

pub(super) fn args_sizes_get(guest: &mut Guest, memory: &mut Memory<'_>, count: u32, bytes: u32) -> Answer {
    let length: usize = guest.args.iter().map(|arg| arg.len() + 1).sum();
    write_sizes(memory, count, bytes, guest.args.len(), length)
}

pub(super) fn environ_get(guest: &mut Guest, memory: &mut Memory<'_>, pointers: u32, bytes: u32) -> Answer {
    let env = std::mem::take(&mut guest.env);
    let answer =
        write_strings(guest, memory, pointers, bytes, env.iter().map(|(name, value)| [name, "=", value]));
    guest.env = env;
    answer
}

pub(super) fn environ_sizes_get(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    count: u32,
    bytes: u32,
) -> Answer {
    let length: usize = guest.env.iter().map(|(name, value)| name.len() + value.len() + 2).sum();
    write_sizes(memory, count, bytes, guest.env.len(), length)
}

fn write_sizes(
    memory: &mut Memory<'_>,
    count_out: u32,
    bytes_out: u32,
    count: usize,
    bytes: usize,
) -> Answer {
    memory.write_u32(count_out, u32::try_from(count).map_err(|_| Errno::FAULT)?)?;
    Ok(memory.write_u32(bytes_out, u32::try_from(bytes).map_err(|_| Errno::FAULT)?)?)
}

/// Writes strings, each of three parts and a zero, and pointers to them.
fn write_strings<'a>(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    mut pointers: u32,
    mut at: u32,
    strings: impl Iterator<Item = [&'a str; 3]>,
) -> Answer {
    for parts in strings {
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        guest.fuel.pay(price::ITEM + price::copied(bytes))?;
        memory.write_u32(pointers, at)?;
        pointers = pointers.checked_add(4).ok_or(Errno::FAULT)?;
        for part in parts.iter().map(|part| part.as_bytes()).chain([&[0][..]]) {
            memory.write(at, part)?;
            at = at.checked_add(part.len() as u32).ok_or(Errno::FAULT)?;
        }
    }
    Ok(())
}

pub(super) fn clock_res_get(_: &mut Guest, memory: &mut Memory<'_>, clock: u32, out: u32) -> Answer {
    match clock {
        REALTIME | MONOTONIC | PROCESS_CPU_TIME | THREAD_CPU_TIME => Ok(memory.write_u64(out, 1)?),
        _ => Err(Errno::INVAL.into()),
    }
}

pub(super) fn clock_time_get(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    clock: u32,
    _precision: u64,
    out: u32,
) -> Answer {
    let ns = time(guest, clock)?;
    Ok(memory.write_u64(out, ns)?)
}

/// What a clock says, in nanoseconds. Processor time is fuel.
fn time(guest: &Guest, clock: u32) -> Answer<u64> {
    match clock {
        REALTIME => Ok(guest.unix_ns()),
        MONOTONIC => Ok(guest.elapsed_ns()),
        PROCESS_CPU_TIME | THREAD_CPU_TIME => Ok(guest.fuel.used()),
        _ => Err(Errno::INVAL.into()),
    }
}

/// One subscription of a poll, as far as it can be waited for.
struct Wanted {
    user_data: [u8; 8],
    kind: u8,
    when: Result<When, Errno>,
}

/// When something is ready.
enum When {
    /// Always, as all descriptors are, and so many bytes can be read.
    Now(u64),
    /// So many nanoseconds after the start.
    At(u64),
}

/// Waits until at least one of the subscriptions is ready, and writes events for all that are.
///
/// Descriptors always are. So the program sleeps only if it asks for nothing but clocks, and then until the first
/// of them.
pub(super) fn poll_oneoff(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    subscriptions: u32,
    events: u32,
    count: u32,
    out: u32,
) -> Answer {
    if count == 0 || count > limits::ITEMS {
        return Err(Errno::INVAL.into());
    }
    guest.fuel.pay(u64::from(count) * price::ITEM)?;
    let wanted: Vec<Wanted> =
        (0..count).map(|index| subscription(guest, memory, subscriptions, index)).collect::<Answer<_>>()?;
    let first = wanted.iter().map(|wanted| match wanted.when {
        Ok(When::At(ns)) => ns,
        Ok(When::Now(_)) | Err(_) => 0,
    });
    guest.sleep_until(first.min().unwrap_or(0))?;
    let now_ns = guest.elapsed_ns();
    let mut written = 0;
    for wanted in &wanted {
        let (errno, bytes) = match wanted.when {
            Err(errno) => (errno, 0),
            Ok(When::Now(bytes)) => (Errno::SUCCESS, bytes),
            Ok(When::At(ns)) if ns <= now_ns => (Errno::SUCCESS, 0),
            Ok(When::At(_)) => continue,
        };
        let mut event = [0; EVENT_BYTES as usize];
        event[..8].copy_from_slice(&wanted.user_data);
        event[8..10].copy_from_slice(&errno.0.to_le_bytes()[..2]);
        event[10] = wanted.kind;
        event[16..24].copy_from_slice(&bytes.to_le_bytes());
        let at = events.checked_add(written * EVENT_BYTES).ok_or(Errno::FAULT)?;
        memory.write(at, &event)?;
        written += 1;
    }
    Ok(memory.write_u32(out, written)?)
}

fn subscription(guest: &Guest, memory: &Memory<'_>, subscriptions: u32, index: u32) -> Answer<Wanted> {
    let at = subscriptions.checked_add(index * SUBSCRIPTION_BYTES).ok_or(Errno::FAULT)?;
    let bytes = memory.bytes(at, SUBSCRIPTION_BYTES)?;
    let user_data = bytes[..8].try_into().expect("eight bytes");
    let kind = bytes[8];
    let when = match kind {
        CLOCK_EVENT => deadline(guest, bytes),
        READ_EVENT => readable_bytes(guest, u32_at(bytes, 16)).map(When::Now),
        WRITE_EVENT => guest
            .descriptors
            .get(u32_at(bytes, 16))
            .map(|_| When::Now(limits::STREAM_BYTES))
            .map_err(Errno::from),
        _ => return Err(Errno::INVAL.into()),
    };
    Ok(Wanted { user_data, kind, when })
}

/// How much can be read from a descriptor.
fn readable_bytes(guest: &Guest, fd: u32) -> Result<u64, Errno> {
    Ok(match guest.descriptors.get(fd)? {
        Descriptor::Stdin => guest.stdin_left().len() as u64,
        Descriptor::File(file) => guest.files.stat(file.inode).bytes.saturating_sub(file.position),
        Descriptor::Directory { .. } | Descriptor::Print(_) => 0,
    })
}

/// When a clock subscription is ready. Processor time is waited for like any other.
fn deadline(guest: &Guest, bytes: &[u8]) -> Result<When, Errno> {
    let (clock, timeout) = (u32_at(bytes, 16), u64_at(bytes, 24));
    let is_absolute = u16::from_le_bytes([bytes[40], bytes[41]]) & ABSOLUTE != 0;
    let Ok(now) = time(guest, clock) else { return Err(Errno::INVAL) };
    let wait_ns = if is_absolute { timeout.saturating_sub(now) } else { timeout };
    Ok(When::At(guest.elapsed_ns().saturating_add(wait_ns)))
}

pub(super) fn proc_exit(mut caller: Caller<'_, Guest>, code: u32) -> wasmtime::Result<()> {
    caller.data_mut().fuel.pay(price::CALL)?;
    Err(ExitCode(code).into())
}

/// There are no signals.
pub(super) fn proc_raise(_: &mut Guest, _: &mut Memory<'_>, _signal: u32) -> Answer {
    Err(Errno::NOTSUP.into())
}

pub(super) fn random_get(guest: &mut Guest, memory: &mut Memory<'_>, at: u32, length: u32) -> Answer {
    for piece in memory.bytes_mut(at, length)?.chunks_mut(RANDOM_PIECE_BYTES) {
        guest.fuel.pay(price::random(piece.len() as u64))?;
        guest.random.fill(piece);
    }
    Ok(())
}

/// There is nobody to give way to.
pub(super) fn sched_yield(_: &mut Guest, _: &mut Memory<'_>) -> Answer {
    Ok(())
}

pub(super) fn sock_accept(guest: &mut Guest, _: &mut Memory<'_>, fd: u32, _flags: u32, _out: u32) -> Answer {
    no_socket(guest, fd)
}

#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn sock_recv(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    _vectors: u32,
    _count: u32,
    _flags: u32,
    _out: u32,
    _flags_out: u32,
) -> Answer {
    no_socket(guest, fd)
}

pub(super) fn sock_send(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    _vectors: u32,
    _count: u32,
    _flags: u32,
    _out: u32,
) -> Answer {
    no_socket(guest, fd)
}

pub(super) fn sock_shutdown(guest: &mut Guest, _: &mut Memory<'_>, fd: u32, _how: u32) -> Answer {
    no_socket(guest, fd)
}

/// No descriptor is a socket.
fn no_socket(guest: &Guest, fd: u32) -> Answer {
    guest.descriptors.get(fd)?;
    Err(Errno::NOTSUP.into())
}
