//! Arguments, environment, standard streams, terminals, clocks, random bytes, the end.

use wasmtime::component::Resource;

use super::bindings::wasi::cli;
use super::bindings::wasi::clocks::{monotonic_clock, wall_clock};
use super::bindings::wasi::random;
use super::handles::{InputStream, OutputStream, Pollable, Terminal};
use crate::guest::{ExitCode, Guest, Stdio};
use crate::{limits, price};

const NANOS_PER_SECOND: u64 = 1_000_000_000;

impl cli::environment::Host for Guest {
    fn get_environment(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        self.fuel.pay(price::CALL)?;
        for (name, value) in &self.env {
            self.fuel.pay(price::ITEM + price::copied((name.len() + value.len()) as u64))?;
        }
        Ok(self.env.clone())
    }

    fn get_arguments(&mut self) -> wasmtime::Result<Vec<String>> {
        self.fuel.pay(price::CALL)?;
        for arg in &self.args {
            self.fuel.pay(price::ITEM + price::copied(arg.len() as u64))?;
        }
        Ok(self.args.clone())
    }

    fn initial_cwd(&mut self) -> wasmtime::Result<Option<String>> {
        self.fuel.pay(price::CALL)?;
        Ok(Some("/".into()))
    }
}

impl cli::exit::Host for Guest {
    fn exit(&mut self, status: Result<(), ()>) -> wasmtime::Result<()> {
        self.exit_with_code(u8::from(status.is_err()))
    }

    fn exit_with_code(&mut self, code: u8) -> wasmtime::Result<()> {
        self.fuel.pay(price::CALL)?;
        Err(ExitCode(code.into()).into())
    }
}

impl cli::stdin::Host for Guest {
    fn get_stdin(&mut self) -> wasmtime::Result<Resource<InputStream>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        Ok(self.handles.push(InputStream::Stdin)?)
    }
}

impl cli::stdout::Host for Guest {
    fn get_stdout(&mut self) -> wasmtime::Result<Resource<OutputStream>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        Ok(self.handles.push(OutputStream::Print(Stdio::Out))?)
    }
}

impl cli::stderr::Host for Guest {
    fn get_stderr(&mut self) -> wasmtime::Result<Resource<OutputStream>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        Ok(self.handles.push(OutputStream::Print(Stdio::Err))?)
    }
}

impl cli::terminal_input::Host for Guest {}

impl cli::terminal_input::HostTerminalInput for Guest {
    fn drop(&mut self, _: Resource<Terminal>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl cli::terminal_output::Host for Guest {}

impl cli::terminal_output::HostTerminalOutput for Guest {
    fn drop(&mut self, _: Resource<Terminal>) -> wasmtime::Result<()> {
        Ok(())
    }
}

impl cli::terminal_stdin::Host for Guest {
    fn get_terminal_stdin(&mut self) -> wasmtime::Result<Option<Resource<Terminal>>> {
        self.fuel.pay(price::CALL)?;
        Ok(None)
    }
}

impl cli::terminal_stdout::Host for Guest {
    fn get_terminal_stdout(&mut self) -> wasmtime::Result<Option<Resource<Terminal>>> {
        self.fuel.pay(price::CALL)?;
        Ok(None)
    }
}

impl cli::terminal_stderr::Host for Guest {
    fn get_terminal_stderr(&mut self) -> wasmtime::Result<Option<Resource<Terminal>>> {
        self.fuel.pay(price::CALL)?;
        Ok(None)
    }
}

impl monotonic_clock::Host for Guest {
    fn now(&mut self) -> wasmtime::Result<u64> {
        self.fuel.pay(price::CALL)?;
        Ok(self.elapsed_ns())
    }

    fn resolution(&mut self) -> wasmtime::Result<u64> {
        self.fuel.pay(price::CALL)?;
        Ok(1)
    }

    fn subscribe_instant(&mut self, when: u64) -> wasmtime::Result<Resource<Pollable>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        Ok(self.handles.push(Pollable::At(when))?)
    }

    fn subscribe_duration(&mut self, when: u64) -> wasmtime::Result<Resource<Pollable>> {
        let when = self.elapsed_ns().saturating_add(when);
        self.subscribe_instant(when)
    }
}

impl wall_clock::Host for Guest {
    fn now(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        self.fuel.pay(price::CALL)?;
        Ok(datetime(self.unix_ns()))
    }

    fn resolution(&mut self) -> wasmtime::Result<wall_clock::Datetime> {
        self.fuel.pay(price::CALL)?;
        Ok(datetime(1))
    }
}

/// Nanoseconds of Unix time as the standard has them.
pub(super) fn datetime(ns: u64) -> wall_clock::Datetime {
    let nanoseconds = u32::try_from(ns % NANOS_PER_SECOND).expect("fewer than a billion");
    wall_clock::Datetime { seconds: ns / NANOS_PER_SECOND, nanoseconds }
}

/// And back.
pub(super) fn nanoseconds(time: wall_clock::Datetime) -> u64 {
    time.seconds.saturating_mul(NANOS_PER_SECOND).saturating_add(time.nanoseconds.into())
}

impl random::random::Host for Guest {
    fn get_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        self.fuel.pay(price::CALL)?;
        self.fuel.pay(price::random(len))?;
        // A component asks for as many as it likes, but gets them in one list, which the host has to hold.
        let limit = limits::CALL_BYTES as u64;
        wasmtime::ensure!(len <= limit, "it asked for {len} random bytes at once, and may ask for {limit}");
        let mut bytes = vec![0; len as usize];
        self.random.fill(&mut bytes);
        Ok(bytes)
    }

    fn get_random_u64(&mut self) -> wasmtime::Result<u64> {
        self.fuel.pay(price::CALL + price::random(8))?;
        Ok(self.random.next_u64())
    }
}

impl random::insecure::Host for Guest {
    fn get_insecure_random_bytes(&mut self, len: u64) -> wasmtime::Result<Vec<u8>> {
        random::random::Host::get_random_bytes(self, len)
    }

    fn get_insecure_random_u64(&mut self) -> wasmtime::Result<u64> {
        random::random::Host::get_random_u64(self)
    }
}

impl random::insecure_seed::Host for Guest {
    fn insecure_seed(&mut self) -> wasmtime::Result<(u64, u64)> {
        self.fuel.pay(price::CALL + price::random(16))?;
        Ok((self.random.next_u64(), self.random.next_u64()))
    }
}
