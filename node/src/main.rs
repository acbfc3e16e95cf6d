//! The `spare` program.

use clap::Parser;

fn main() -> std::process::ExitCode {
    spare::cli::run(spare::cli::Cli::parse())
}
