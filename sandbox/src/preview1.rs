//! WASI preview 1 for modules: the 46 functions of `wasi_snapshot_preview1`.
//!
//! Names, layouts and numbers are those of the standard (<https://github.com/WebAssembly/WASI>,
//! `wasi_snapshot_preview1.witx`). Each function works on the guest's state and on its memory as bytes, and knows
//! nothing of the engine.
//!
//! **Invariant:** pointers and lengths come from a stranger. [`Memory`] checks each; none decides how much the
//! sandbox allocates.

use wasmtime::{Caller, Extern, Linker};

use crate::guest::Guest;
use crate::price;

pub(crate) mod descriptors;
mod errno;
mod files;
mod memory;
mod paths;
mod process;

use errno::{Answer, Errno, Fault};
use memory::Memory;

/// The name under which modules import it.
const MODULE: &str = "wasi_snapshot_preview1";

/// A table of functions: name, and parameters as WebAssembly passes them. Each is the function of that name in
/// one of the modules above.
macro_rules! functions {
    ($linker:ident: $($module:ident::$name:ident($($parameter:ident: $kind:ty),*);)*) => {
        $($linker.func_wrap(MODULE, stringify!($name), |mut caller: Caller<'_, Guest>, $($parameter: $kind),*| {
            call(&mut caller, |guest, memory| $module::$name(guest, memory, $($parameter),*))
        })?;)*
    };
}

/// Defines the functions.
pub(crate) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    functions! { linker:
        process::args_get(pointers: u32, bytes: u32);
        process::args_sizes_get(count: u32, bytes: u32);
        process::environ_get(pointers: u32, bytes: u32);
        process::environ_sizes_get(count: u32, bytes: u32);
        process::clock_res_get(clock: u32, out: u32);
        process::clock_time_get(clock: u32, precision: u64, out: u32);
        process::poll_oneoff(subscriptions: u32, events: u32, count: u32, out: u32);
        process::proc_raise(signal: u32);
        process::random_get(at: u32, length: u32);
        process::sched_yield();
        process::sock_accept(fd: u32, flags: u32, out: u32);
        process::sock_recv(fd: u32, vectors: u32, count: u32, flags: u32, out: u32, flags_out: u32);
        process::sock_send(fd: u32, vectors: u32, count: u32, flags: u32, out: u32);
        process::sock_shutdown(fd: u32, how: u32);
        files::fd_advise(fd: u32, offset: u64, length: u64, advice: u32);
        files::fd_allocate(fd: u32, offset: u64, length: u64);
        files::fd_close(fd: u32);
        files::fd_datasync(fd: u32);
        files::fd_fdstat_get(fd: u32, out: u32);
        files::fd_fdstat_set_flags(fd: u32, flags: u32);
        files::fd_fdstat_set_rights(fd: u32, base: u64, inheriting: u64);
        files::fd_filestat_get(fd: u32, out: u32);
        files::fd_filestat_set_size(fd: u32, size: u64);
        files::fd_filestat_set_times(fd: u32, accessed: u64, modified: u64, flags: u32);
        files::fd_pread(fd: u32, vectors: u32, count: u32, offset: u64, out: u32);
        files::fd_prestat_get(fd: u32, out: u32);
        files::fd_prestat_dir_name(fd: u32, at: u32, length: u32);
        files::fd_pwrite(fd: u32, vectors: u32, count: u32, offset: u64, out: u32);
        files::fd_read(fd: u32, vectors: u32, count: u32, out: u32);
        files::fd_readdir(fd: u32, at: u32, length: u32, cookie: u64, out: u32);
        files::fd_renumber(from: u32, to: u32);
        files::fd_seek(fd: u32, offset: i64, whence: u32, out: u32);
        files::fd_sync(fd: u32);
        files::fd_tell(fd: u32, out: u32);
        files::fd_write(fd: u32, vectors: u32, count: u32, out: u32);
        paths::path_create_directory(fd: u32, path: u32, length: u32);
        paths::path_filestat_get(fd: u32, flags: u32, path: u32, length: u32, out: u32);
        paths::path_filestat_set_times(fd: u32, lookup: u32, path: u32, length: u32, accessed: u64, modified: u64, flags: u32);
        paths::path_link(fd: u32, flags: u32, path: u32, length: u32, new_fd: u32, new_path: u32, new_length: u32);
        paths::path_open(fd: u32, lookup: u32, path: u32, length: u32, flags: u32, rights: u64, inheriting: u64, fd_flags: u32, out: u32);
        paths::path_readlink(fd: u32, path: u32, length: u32, at: u32, room: u32, out: u32);
        paths::path_remove_directory(fd: u32, path: u32, length: u32);
        paths::path_rename(fd: u32, path: u32, length: u32, new_fd: u32, new_path: u32, new_length: u32);
        paths::path_symlink(target: u32, target_length: u32, fd: u32, path: u32, length: u32);
        paths::path_unlink_file(fd: u32, path: u32, length: u32);
    }
    linker.func_wrap(MODULE, "proc_exit", process::proc_exit)?;
    Ok(())
}

/// Runs one function: pays for the call, finds the memory, and tells the code how it went.
fn call(
    caller: &mut Caller<'_, Guest>,
    function: impl FnOnce(&mut Guest, &mut Memory<'_>) -> Answer,
) -> wasmtime::Result<u32> {
    caller.data_mut().fuel.pay(price::CALL)?;
    let memory = match caller.data().exported_memory {
        Some(memory) => memory,
        // Only the start function calls before the module is instantiated.
        None => match caller.get_export("memory") {
            Some(Extern::Memory(memory)) => memory,
            _ => wasmtime::bail!("the module exports no memory"),
        },
    };
    let (bytes, guest) = memory.data_and_store_mut(caller);
    match function(guest, &mut Memory(bytes)) {
        Ok(()) => Ok(Errno::SUCCESS.0),
        Err(Fault::Errno(errno)) => Ok(errno.0),
        Err(Fault::Trap(trap)) => Err(trap.into()),
    }
}

#[cfg(test)]
mod tests;
