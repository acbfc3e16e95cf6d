//! The functions on paths.

use super::descriptors::{Descriptor, OpenFile};
use super::errno::{Answer, Errno};
use super::files::{APPEND, RIGHT_WRITE, set_times, write_stat};
use super::memory::Memory;
use crate::files::{FileError, Inode, Opening};
use crate::guest::Guest;
use crate::price;

/// `oflags`.
const CREATE: u32 = 1;
const DIRECTORY: u32 = 2;
const EXCLUSIVE: u32 = 4;
const TRUNCATE: u32 = 8;

/// The right to read, which a program asks for when it opens a file to read it.
const RIGHT_READ: u64 = 1 << 1;

/// The directory `fd` and a path from there, paid for.
fn at(guest: &mut Guest, memory: &Memory<'_>, fd: u32, path: u32, length: u32) -> Answer<(Inode, String)> {
    let path = memory.path(path, length)?;
    guest.pay_for_path(&path)?;
    Ok((guest.descriptors.directory(fd)?, path))
}

pub(super) fn path_create_directory(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    path: u32,
    length: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    guest.fuel.pay(price::CHANGE)?;
    let now_ns = guest.unix_ns();
    Ok(guest.files.create_directory(base, &path, now_ns)?)
}

pub(super) fn path_filestat_get(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    _lookup: u32,
    path: u32,
    length: u32,
    out: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    let inode = guest.files.lookup(base, &path)?;
    write_stat(memory, out, guest.files.stat(inode))
}

#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn path_filestat_set_times(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    _lookup: u32,
    path: u32,
    length: u32,
    accessed: u64,
    modified: u64,
    flags: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    let inode = guest.files.lookup(base, &path)?;
    set_times(guest, inode, accessed, modified, flags)
}

/// There are no hard links: a file has one name.
#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn path_link(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    _flags: u32,
    path: u32,
    length: u32,
    new_fd: u32,
    new_path: u32,
    new_length: u32,
) -> Answer {
    at(guest, memory, fd, path, length)?;
    at(guest, memory, new_fd, new_path, new_length)?;
    Err(FileError::Unsupported.into())
}

#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn path_open(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    _lookup: u32,
    path: u32,
    length: u32,
    flags: u32,
    rights: u64,
    _inheriting: u64,
    fd_flags: u32,
    out: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    guest.fuel.pay(price::CHANGE)?;
    guest.descriptors.check_room()?;
    memory.bytes(out, 4)?;
    let how = Opening {
        create: flags & CREATE != 0,
        exclusive: flags & EXCLUSIVE != 0,
        truncate: flags & TRUNCATE != 0,
        must_be_directory: flags & DIRECTORY != 0,
        write: rights & RIGHT_WRITE != 0,
    };
    let now_ns = guest.unix_ns();
    let inode = guest.files.open(base, &path, how, now_ns)?;
    let descriptor = if guest.files.is_directory(inode) {
        Descriptor::Directory { inode, listing: None }
    } else {
        let append = fd_flags & APPEND != 0;
        Descriptor::File(OpenFile {
            inode,
            position: 0,
            append,
            read: rights & RIGHT_READ != 0,
            write: how.write,
        })
    };
    let fd = guest.descriptors.add(descriptor);
    Ok(memory.write_u32(out, fd)?)
}

/// Nothing is a symbolic link.
#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn path_readlink(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    path: u32,
    length: u32,
    _at: u32,
    _room: u32,
    _out: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    guest.files.lookup(base, &path)?;
    Err(Errno::INVAL.into())
}

pub(super) fn path_remove_directory(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    path: u32,
    length: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    guest.fuel.pay(price::CHANGE)?;
    let now_ns = guest.unix_ns();
    Ok(guest.files.remove_directory(base, &path, now_ns)?)
}

#[expect(clippy::too_many_arguments, reason = "as many as the standard has")]
pub(super) fn path_rename(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    path: u32,
    length: u32,
    new_fd: u32,
    new_path: u32,
    new_length: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    let (new_base, new_path) = at(guest, memory, new_fd, new_path, new_length)?;
    guest.fuel.pay(price::CHANGE)?;
    let now_ns = guest.unix_ns();
    let nodes = guest.files.rename((base, &path), (new_base, &new_path), now_ns)?;
    Ok(guest.fuel.pay(nodes.saturating_mul(price::ENTRY))?)
}

/// There are no symbolic links, so there is no way by which a path leads elsewhere than it says.
pub(super) fn path_symlink(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    _target: u32,
    _target_length: u32,
    fd: u32,
    path: u32,
    length: u32,
) -> Answer {
    at(guest, memory, fd, path, length)?;
    Err(FileError::Unsupported.into())
}

pub(super) fn path_unlink_file(
    guest: &mut Guest,
    memory: &mut Memory<'_>,
    fd: u32,
    path: u32,
    length: u32,
) -> Answer {
    let (base, path) = at(guest, memory, fd, path, length)?;
    guest.fuel.pay(price::CHANGE)?;
    let now_ns = guest.unix_ns();
    Ok(guest.files.remove_file(base, &path, now_ns)?)
}
