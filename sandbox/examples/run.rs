//! Runs a program, binary or text, in this process, and prints what it took:
//!
//!     cargo run --release -p spare-sandbox --example run -- PROGRAM [--fuel FUEL] [--input NAME=FILE]... [--output DIRECTORY] [-- ARGUMENT...]

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use spare_sandbox::compile::compile;
use spare_sandbox::engine;
use spare_sandbox::run::{Go, load, run};
use spare_sandbox::task::{Determinism, Exit, Input, Limits, Outcome, Task};

type Failed = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Failed> {
    let mut words: VecDeque<String> = std::env::args().skip(1).collect();
    let program = words.pop_front().ok_or("name a program")?;
    let (mut inputs, mut output, mut args) = (Vec::new(), None, vec![program.clone()]);
    let mut fuel = 1 << 40;
    while let Some(word) = words.pop_front() {
        match word.as_str() {
            "--input" => inputs.push(input(&words.pop_front().ok_or("--input takes NAME=FILE")?)?),
            "--output" => {
                output = Some(PathBuf::from(words.pop_front().ok_or("--output takes a directory")?))
            }
            "--fuel" => fuel = words.pop_front().ok_or("--fuel takes a number")?.parse()?,
            "--" => args.extend(words.drain(..)),
            _ => return Err(format!("what is {word}?").into()),
        }
    }
    let bytes = wat::parse_file(&program)?;
    let started = Instant::now();
    let artefact = compile(&bytes)?;
    eprintln!(
        "compiled {} bytes to {} in {:?} with {}",
        bytes.len(),
        artefact.len(),
        started.elapsed(),
        engine::ENGINE_VERSION
    );
    let started = Instant::now();
    let program = load(file_of(&artefact)?)?;
    eprintln!("loaded in {:?}", started.elapsed());
    let started = Instant::now();
    let mut steps = 0;
    let outcome = run(&program, task(args, inputs, fuel), &mut |_| {
        steps += 1;
        Go::On
    })?;
    let Outcome { exit, fuel, memory_peak_bytes, .. } = &outcome;
    eprintln!(
        "{exit}: {fuel} fuel, {steps} steps, {memory_peak_bytes} bytes of memory, in {:?}",
        started.elapsed()
    );
    std::io::stdout().write_all(&outcome.stdout)?;
    std::io::stderr().write_all(&outcome.stderr)?;
    if let Some(directory) = output {
        write_outputs(&directory, &outcome)?;
    }
    Ok(if let Exit::Code(0) = outcome.exit { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn input(word: &str) -> Result<Input, Failed> {
    let (path, file) = word.split_once('=').ok_or("--input takes NAME=FILE")?;
    Ok(Input { path: path.into(), bytes: fs::read(file)? })
}

/// A file without a name, so that nobody else can write to it.
fn file_of(artefact: &[u8]) -> Result<File, Failed> {
    let mut file = tempfile::tempfile()?;
    file.write_all(artefact)?;
    std::io::Seek::rewind(&mut file)?;
    Ok(file)
}

fn task(args: Vec<String>, inputs: Vec<Input>, fuel: u64) -> Task {
    Task {
        args,
        env: Vec::new(),
        stdin: Vec::new(),
        inputs,
        limits: Limits {
            fuel,
            memory_bytes: 4 << 30,
            output_bytes: 1 << 30,
            output_files: 10_000,
            log_bytes: 1 << 20,
        },
        seed: [0; 32],
        starts_at_s: 1_767_225_600,
        determinism: Determinism::Deterministic,
    }
}

fn write_outputs(directory: &Path, outcome: &Outcome) -> Result<(), Failed> {
    for output in &outcome.outputs {
        let path = directory.join(&output.path);
        fs::create_dir_all(path.parent().ok_or("an output has a name")?)?;
        fs::write(path, &output.bytes)?;
    }
    Ok(())
}
