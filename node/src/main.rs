//! The `spare` program.

use clap::Parser;

/// Transfers make and drop large buffers all the time. This allocator keeps them at hand, where glibc's gives them back to the kernel
/// and takes a page fault for each page of the next one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    spare::cli::run(spare::cli::Cli::parse())
}
