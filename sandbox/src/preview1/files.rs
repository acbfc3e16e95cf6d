//! The functions on descriptors.

use super::descriptors::{Descriptor, OpenFile, PREOPENED};
use super::errno::{Answer, Errno, Fault};
use super::memory::Memory;
use crate::files::change::NewTime;
use crate::files::{FileError, Inode, Listing, Stat};
use crate::guest::{Guest, Stdio};
use crate::{limits, price};

/// `filetype`.
const UNKNOWN: u8 = 0;
const DIRECTORY: u8 = 3;
const REGULAR_FILE: u8 = 4;

/// `fdflags`.
pub(super) const APPEND: u32 = 1;

/// `rights`: all 30 of them, of which only these two mean something here.
const ALL_RIGHTS: u64 = (1 << 30) - 1;
const RIGHT_READ: u64 = 1 << 1;
pub(super) const RIGHT_WRITE: u64 = 1 << 6;

/// `fstflags`.
const ACCESSED: u32 = 1;
const ACCESSED_NOW: u32 = 2;
const MODIFIED: u32 = 4;
const MODIFIED_NOW: u32 = 8;

/// What the root directory is called.
const PREOPENED_NAME: &[u8] = b"/";

/// The bytes of a `dirent` before its name.
const DIRENT_BYTES: usize = 24;

pub(super) fn fd_advise(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    offset: u64,
    length: u64,
    advice: u32,
) -> Answer {
    guest.descriptors.file_mut(fd)?;
    if advice > 5 || offset.checked_add(length).is_none() {
        return Err(Errno::INVAL.into());
    }
    Ok(())
}

pub(super) fn fd_allocate(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    offset: u64,
    length: u64,
) -> Answer {
    let inode = writable(guest, fd)?.inode;
    let size = offset.checked_add(length).ok_or(Errno::INVAL)?;
    if size > guest.files.stat(inode).bytes {
        guest.set_file_size(inode, size)??;
    }
    Ok(())
}

pub(super) fn fd_close(guest: &mut Guest, _: &mut Memory<'_>, fd: u32) -> Answer {
    guest.fuel.pay(price::CHANGE)?;
    Ok(guest.descriptors.close(fd, &mut guest.files)?)
}

pub(super) fn fd_datasync(guest: &mut Guest, _: &mut Memory<'_>, fd: u32) -> Answer {
    guest.descriptors.get(fd)?;
    Ok(())
}

pub(super) fn fd_fdstat_get(guest: &mut Guest, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
    let (kind, flags, rights) = match guest.descriptors.get(fd)? {
        Descriptor::Stdin => (UNKNOWN, 0, ALL_RIGHTS & !RIGHT_WRITE),
        Descriptor::Print(_) => (UNKNOWN, 0, ALL_RIGHTS & !RIGHT_READ),
        Descriptor::Directory { .. } => (DIRECTORY, 0, ALL_RIGHTS),
        Descriptor::File(file) => {
            let read = if file.read { RIGHT_READ } else { 0 };
            let write = if file.write { RIGHT_WRITE } else { 0 };
            (
                REGULAR_FILE,
                if file.append { APPEND } else { 0 },
                ALL_RIGHTS & !(RIGHT_READ | RIGHT_WRITE) | read | write,
            )
        }
    };
    let mut stat = [0; 24];
    stat[0] = kind;
    stat[2..6].copy_from_slice(&flags.to_le_bytes());
    stat[8..16].copy_from_slice(&rights.to_le_bytes());
    stat[16..24].copy_from_slice(&ALL_RIGHTS.to_le_bytes());
    Ok(memory.write(out, &stat)?)
}

/// Of the flags only append means something: nothing blocks, and there is nothing to synchronise with.
pub(super) fn fd_fdstat_set_flags(guest: &mut Guest, _: &mut Memory<'_>, fd: u32, flags: u32) -> Answer {
    match guest.descriptors.get_mut(fd)? {
        Descriptor::File(file) => file.append = flags & APPEND != 0,
        _ if flags & APPEND != 0 => return Err(Errno::INVAL.into()),
        _ => {}
    }
    Ok(())
}

/// Rights were dropped from the standard's successors. Giving some up changes nothing.
pub(super) fn fd_fdstat_set_rights(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    _base: u64,
    _inheriting: u64,
) -> Answer {
    guest.descriptors.get(fd)?;
    Ok(())
}

pub(super) fn fd_filestat_get(guest: &mut Guest, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
    match guest.descriptors.inode(fd)? {
        Some(inode) => write_stat(memory, out, guest.files.stat(inode)),
        None => Ok(memory.write(out, &[0; 64])?),
    }
}

pub(super) fn fd_filestat_set_size(guest: &mut Guest, _: &mut Memory<'_>, fd: u32, size: u64) -> Answer {
    let inode = writable(guest, fd)?.inode;
    Ok(guest.set_file_size(inode, size)??)
}

pub(super) fn fd_filestat_set_times(
    guest: &mut Guest,
    _: &mut Memory<'_>,
    fd: u32,
    accessed: u64,
    modified: u64,
    flags: u32,
) -> Answer {
    let inode = guest.descriptors.inode(fd)?.ok_or(Errno::BADF)?;
    set_times(guest, inode, accessed, modified, flags)
}

/// Sets times as `flags` say.
pub(super) fn set_times(guest: &mut Guest, inode: Inode, accessed: u64, modified: u64, flags: u32) -> Answer {
    let now_ns = guest.unix_ns();
    let time = |given: u32, now: u32, ns: u64| match (flags & given != 0, flags & now != 0) {
        (true, true) => Err(Errno::INVAL),
        (true, false) => Ok(NewTime::At(ns)),
        (false, true) => Ok(NewTime::At(now_ns)),
        (false, false) => Ok(NewTime::Same),
    };
    let accessed = time(ACCESSED, ACCESSED_NOW, accessed)?;
    let modified = time(MODIFIED, MODIFIED_NOW, modified)?;
    Ok(guest.files.set_times(inode, accessed, modified, now_ns)?)
}

pub(super) fn fd_pread(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    vectors: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Answer {
    let file = readable(guest, fd)?;
    let read = read_file(guest, memory, file.inode, offset, vectors, count)?;
    Ok(memory.write_u32(out, read)?)
}

pub(super) fn fd_read(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    vectors: u32,
    count: u32,
    out: u32,
) -> Answer {
    let read = match guest.descriptors.get(fd)? {
        Descriptor::Stdin => read_stdin(guest, memory, vectors, count)?,
        _ => {
            let file = readable(guest, fd)?;
            let read = read_file(guest, memory, file.inode, file.position, vectors, count)?;
            guest.descriptors.file_mut(fd)?.position += u64::from(read);
            read
        }
    };
    Ok(memory.write_u32(out, read)?)
}

fn read_stdin(guest: &mut Guest, memory: &mut Memory<'_>, vectors: u32, count: u32) -> Answer<u32> {
    check_count(guest, count)?;
    let mut read = 0_u32;
    for index in 0..count {
        let span = memory.span(vectors, index)?;
        let length = guest.stdin_left().len().min(span.length as usize);
        guest.fuel.pay(price::copied(length as u64))?;
        memory.bytes_mut(span.at, length as u32)?.copy_from_slice(&guest.stdin_left()[..length]);
        guest.advance_stdin(length);
        read = read.checked_add(length as u32).ok_or(Errno::INVAL)?;
    }
    Ok(read)
}

/// Reads from `offset` on into what the vectors name, as far as the file goes.
fn read_file(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    inode: Inode,
    offset: u64,
    vectors: u32,
    count: u32,
) -> Answer<u32> {
    check_count(guest, count)?;
    let mut read = 0_u32;
    for index in 0..count {
        let span = memory.span(vectors, index)?;
        let source = guest.files.read(inode, offset.saturating_add(u64::from(read)))?;
        let length = source.len().min(span.length as usize);
        guest.fuel.pay(price::copied(length as u64))?;
        memory.bytes_mut(span.at, length as u32)?.copy_from_slice(&source[..length]);
        read = read.checked_add(length as u32).ok_or(Errno::INVAL)?;
    }
    Ok(read)
}

/// Pays for so many I/O vectors.
fn check_count(guest: &mut Guest, count: u32) -> Answer {
    if count > limits::ITEMS {
        return Err(Errno::INVAL.into());
    }
    Ok(guest.fuel.pay(u64::from(count) * price::ITEM)?)
}

pub(super) fn fd_pwrite(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    vectors: u32,
    count: u32,
    offset: u64,
    out: u32,
) -> Answer {
    let inode = writable(guest, fd)?.inode;
    let written = write_all(guest, memory, vectors, count, |guest, done, bytes| {
        Ok(guest.write_file(inode, offset.saturating_add(done), bytes)??)
    })?;
    Ok(memory.write_u32(out, written)?)
}

pub(super) fn fd_write(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    vectors: u32,
    count: u32,
    out: u32,
) -> Answer {
    let written = match guest.descriptors.get(fd)? {
        Descriptor::Print(to) => {
            let to: Stdio = *to;
            write_all(guest, memory, vectors, count, |guest, _, bytes| Ok(guest.print(to, bytes)?))?
        }
        _ => {
            let file = *writable(guest, fd)?;
            let start = if file.append { guest.files.stat(file.inode).bytes } else { file.position };
            let written = write_all(guest, memory, vectors, count, |guest, done, bytes| {
                Ok(guest.write_file(file.inode, start.saturating_add(done), bytes)??)
            })?;
            guest.descriptors.file_mut(fd)?.position = start.saturating_add(u64::from(written));
            written
        }
    };
    Ok(memory.write_u32(out, written)?)
}

/// Has `write` write what each of the vectors names. An error counts only if nothing was written before it: else
/// the program is told how much was, and meets the error when it goes on.
fn write_all(
    guest: &mut Guest,
    memory: &Memory<'_>,
    vectors: u32,
    count: u32,
    mut write: impl FnMut(&mut Guest, u64, &[u8]) -> Answer,
) -> Answer<u32> {
    check_count(guest, count)?;
    let mut written = 0_u32;
    for index in 0..count {
        let span = memory.span(vectors, index)?;
        let bytes = memory.bytes(span.at, span.length)?;
        match write(guest, u64::from(written), bytes) {
            Ok(()) => written = written.checked_add(span.length).ok_or(Errno::INVAL)?,
            Err(Fault::Errno(_)) if written > 0 => break,
            Err(fault) => return Err(fault),
        }
    }
    Ok(written)
}

pub(super) fn fd_prestat_get(guest: &mut Guest, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
    check_preopened(guest, fd)?;
    memory.write_u32(out, 0)?;
    Ok(memory.write_u32(out.wrapping_add(4), PREOPENED_NAME.len() as u32)?)
}

pub(super) fn fd_prestat_dir_name(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    at: u32,
    length: u32,
) -> Answer {
    check_preopened(guest, fd)?;
    if (length as usize) < PREOPENED_NAME.len() {
        return Err(Errno::NAMETOOLONG.into());
    }
    Ok(memory.write(at, PREOPENED_NAME)?)
}

/// Programs ask for one descriptor after the other, until they meet one that was not open at the start.
fn check_preopened(guest: &Guest, fd: u32) -> Answer {
    if fd != PREOPENED {
        return Err(Errno::BADF.into());
    }
    guest.descriptors.directory(fd)?;
    Ok(())
}

/// Writes entries of a directory from number `cookie` on, the last one cut where the room ends. `.` and `..` come
/// first.
///
/// The entries are taken down when listing starts from the beginning, so that a program may remove what it was
/// shown.
pub(super) fn fd_readdir(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    at: u32,
    length: u32,
    cookie: u64,
    out: u32,
) -> Answer {
    memory.bytes(at, length)?;
    let listing = take_listing(guest, fd, cookie)?;
    let answer = write_entries(guest, memory, &listing, at, length, cookie);
    match guest.descriptors.get_mut(fd)? {
        Descriptor::Directory { listing: kept, .. } => *kept = Some(listing),
        _ => guest.files.end_listing(listing),
    }
    Ok(memory.write_u32(out, answer?)?)
}

/// The listing that the descriptor has, or a new one if it has none or starts again.
fn take_listing(guest: &mut Guest, fd: u32, cookie: u64) -> Answer<Listing> {
    let Descriptor::Directory { inode, listing } = guest.descriptors.get_mut(fd)? else {
        return Err(Errno::NOTDIR.into());
    };
    match listing.take() {
        Some(listing) if cookie > 0 => return Ok(listing),
        Some(listing) => guest.files.end_listing(listing),
        None => {}
    }
    let inode = *inode;
    guest.fuel.pay(guest.files.len(inode).saturating_mul(price::ENTRY))?;
    Ok(guest.files.list(inode)?)
}

fn write_entries(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    listing: &Listing,
    at: u32,
    length: u32,
    cookie: u64,
) -> Answer<u32> {
    let last = listing.inodes.len() as u64 + 2;
    let mut used = 0_u32;
    for index in cookie..last {
        guest.fuel.pay(price::ITEM)?;
        let parent = guest.files.parent(listing.directory);
        let entry = match index {
            0 => Some((".", listing.directory, DIRECTORY)),
            1 => Some(("..", parent, DIRECTORY)),
            _ => guest
                .files
                .listed(listing, (index - 2) as usize)
                .map(|(name, stat)| (name, stat.inode, kind(stat))),
        };
        let Some((name, inode, kind)) = entry else { continue };
        let mut dirent = Vec::with_capacity(DIRENT_BYTES + name.len());
        dirent.extend((index + 1).to_le_bytes());
        dirent.extend(inode.to_le_bytes());
        dirent.extend((name.len() as u32).to_le_bytes());
        dirent.extend([kind, 0, 0, 0]);
        dirent.extend(name.as_bytes());
        let room = dirent.len().min((length - used) as usize);
        memory.write(at + used, &dirent[..room])?;
        used += room as u32;
        if used == length {
            break;
        }
    }
    Ok(used)
}

pub(super) fn fd_renumber(guest: &mut Guest, _: &mut Memory<'_>, from: u32, to: u32) -> Answer {
    guest.fuel.pay(price::CHANGE)?;
    Ok(guest.descriptors.renumber(from, to, &mut guest.files)?)
}

pub(super) fn fd_seek(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    offset: i64,
    whence: u32,
    out: u32,
) -> Answer {
    let file = *seekable(guest, fd)?;
    let from = match whence {
        0 => 0,
        1 => file.position,
        2 => guest.files.stat(file.inode).bytes,
        _ => return Err(Errno::INVAL.into()),
    };
    let position = from.checked_add_signed(offset).ok_or(Errno::INVAL)?;
    guest.descriptors.file_mut(fd)?.position = position;
    Ok(memory.write_u64(out, position)?)
}

pub(super) fn fd_sync(guest: &mut Guest, memory: &mut Memory<'_>, fd: u32) -> Answer {
    fd_datasync(guest, memory, fd)
}

pub(super) fn fd_tell(guest: &mut Guest, memory: &mut Memory<'_>, fd: u32, out: u32) -> Answer {
    let position = seekable(guest, fd)?.position;
    Ok(memory.write_u64(out, position)?)
}

fn seekable(guest: &mut Guest, fd: u32) -> Answer<&mut OpenFile> {
    match guest.descriptors.get_mut(fd)? {
        Descriptor::File(file) => Ok(file),
        Descriptor::Directory { .. } => Err(Errno::BADF.into()),
        Descriptor::Stdin | Descriptor::Print(_) => Err(Errno::SPIPE.into()),
    }
}

fn readable(guest: &mut Guest, fd: u32) -> Answer<OpenFile> {
    match guest.descriptors.get(fd)? {
        Descriptor::File(file) if file.read => Ok(*file),
        Descriptor::Directory { .. } => Err(Errno::ISDIR.into()),
        _ => Err(Errno::BADF.into()),
    }
}

fn writable(guest: &mut Guest, fd: u32) -> Answer<&mut OpenFile> {
    match guest.descriptors.file_mut(fd)? {
        file if file.write => Ok(file),
        _ => Err(FileError::BadDescriptor.into()),
    }
}

fn kind(stat: Stat) -> u8 {
    if stat.is_directory { DIRECTORY } else { REGULAR_FILE }
}

/// Writes a `filestat`.
pub(super) fn write_stat(memory: &mut Memory<'_>, out: u32, stat: Stat) -> Answer {
    let mut bytes = [0; 64];
    let mut put = |at: usize, value: u64| bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(0, 1);
    put(8, stat.inode);
    put(16, u64::from(kind(stat)));
    put(24, stat.links);
    put(32, stat.bytes);
    put(40, stat.times.accessed_ns);
    put(48, stat.times.modified_ns);
    put(56, stat.times.changed_ns);
    Ok(memory.write(out, &bytes)?)
}
