//! `spare job`: programs, run by providers, or here as a provider would run them.

pub(super) mod manage;
pub(super) mod map;
pub(super) mod run;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use serde::Serialize;
use spare_market::job::{Ended, JobLimits, Material, Work};
use spare_sandbox::host::Stop;
use spare_sandbox::run::{Go, Step};

use super::{Context, JobCommand, print};
use crate::api::ended_words;
use crate::config::Size;
use crate::limits::JOB_INPUT_MAX_BYTES;
use crate::work::{Done, Materials, OWN, Workshop};

/// Most bytes of compiled programs that are kept in the node's folder.
const CACHE_BYTES: u64 = 2 << 30;

/// A program that is run here.
#[derive(Debug, Args)]
pub(super) struct TryArgs {
    #[command(flatten)]
    program: ProgramArgs,
    /// Longest time that it may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 3600)]
    time: u64,
}

/// A program and what it gets.
#[derive(Debug, Clone, Args)]
pub(super) struct ProgramArgs {
    /// The program: a WebAssembly module for WASI preview 1, or a component with wasi:cli/run
    module: PathBuf,
    /// A file or a folder that the program finds at /NAME, once for each. At providers also blob:NAME, a blob of yours
    #[arg(long, value_name = "NAME=PATH", value_parser = parse_input)]
    input: Vec<(String, PathBuf)>,
    /// A file that the program reads as standard input; `-` is this command's own
    #[arg(long, value_name = "FILE")]
    stdin: Option<PathBuf>,
    /// An environment variable, once for each
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_input_text)]
    env: Vec<(String, String)>,
    /// Where to put the files that the program leaves in /out [default: they are dropped]
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Most fuel: about one for each instruction; 1G is a second or so
    #[arg(long, default_value = "100G", value_parser = parse_count)]
    fuel: u64,
    /// Most memory
    #[arg(long, default_value = "1GiB")]
    memory: Size,
    /// Most bytes of files that the program writes
    #[arg(long, default_value = "256MiB")]
    output_max: Size,
    /// What its clock says at the start, in seconds of unix time
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    clock: u64,
    /// Give it the machine's clock and random bytes. Nobody can check such a result
    #[arg(long)]
    free: bool,
    /// The program's arguments, after `--`
    #[arg(last = true)]
    args: Vec<String>,
}

fn parse_input_text(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn parse_input(text: &str) -> Result<(String, PathBuf), String> {
    let (name, path) = text.split_once('=').ok_or("write NAME=PATH")?;
    Ok((name.trim_matches('/').to_owned(), path.into()))
}

/// A number with k, M, G or T behind it, for thousands of the one before.
fn parse_count(text: &str) -> Result<u64, String> {
    let wrong = || "write a number such as 5000000 or 5M".to_owned();
    let digits = text.trim_end_matches(['k', 'M', 'G', 'T']);
    let factor = match &text[digits.len()..] {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "T" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

/// Carries out a command that talks to the node. Returns the exit code.
pub(super) async fn dispatch(context: &Context, command: JobCommand) -> anyhow::Result<u8> {
    let done = match command {
        JobCommand::Run { program, order } => return run::run(context, program, order).await,
        JobCommand::Logs { job, follow } => return manage::logs(context, &job, follow).await,
        JobCommand::Map(args) => return map::map(context, args).await,
        JobCommand::Submit { program, order } => run::submit(context, program, order).await,
        JobCommand::Ls => manage::ls(context).await,
        JobCommand::Status { job } => manage::status(context, &job).await,
        JobCommand::Output { job, output } => manage::output(context, &job, &output).await,
        JobCommand::Cancel { job } => manage::cancel(context, &job).await,
        JobCommand::Rm { job } => manage::rm(context, &job).await,
        JobCommand::Receipt { job, order, output } => manage::receipt(context, &job, order, &output).await,
        JobCommand::Offers { program, order } => run::offers(context, program, order).await,
        JobCommand::Work => manage::work(context).await,
        JobCommand::Try(_) | JobCommand::Verify { .. } => {
            unreachable!("they need no node, and were done before")
        }
    };
    done.map(|()| 0)
}

/// What `spare job try` prints as JSON.
#[derive(Serialize)]
struct Tried {
    ended: String,
    code: Option<u32>,
    fuel: u64,
    memory_peak_bytes: u64,
    work: String,
    result: String,
    stdout_bytes: u64,
    stderr_bytes: u64,
    is_log_cut: bool,
    outputs: Vec<TriedOutput>,
    compiled_s: Option<f64>,
    ran_s: f64,
}

#[derive(Serialize)]
struct TriedOutput {
    path: String,
    bytes: u64,
    root: String,
}

/// Runs a program here, in the same jail and with the same result as at a provider. Returns the exit code: the program's own, if it ended by itself.
pub(super) fn try_out(context: &Context, tried: &TryArgs) -> anyhow::Result<u8> {
    let args = &tried.program;
    let (work, materials) = gather(args)?;
    let workshop = Workshop::open(&context.home.file("artefacts"), CACHE_BYTES, 1)?;
    // Ctrl-C ends this process, and workers end with it.
    let stop = Stop::new();
    let mut shown = (0, 0);
    let mut show = |step: Step<'_>| {
        if !context.json {
            pass_on(step.stdout, step.stderr);
            shown = (shown.0 + step.stdout.len(), shown.1 + step.stderr.len());
        }
        Go::On
    };
    let done =
        workshop.carry_out(&OWN, &work, materials, Duration::from_secs(tried.time), &stop, &mut show)?;
    if !context.json {
        // What was printed since the last step.
        pass_on(
            &done.stdout[shown.0.min(done.stdout.len())..],
            &done.stderr[shown.1.min(done.stderr.len())..],
        );
    }
    if let Some(dir) = &args.output {
        done.outputs.iter().try_for_each(|(path, bytes)| write_output(dir, path, bytes))?;
    }
    let text = say(&done, args.output.as_deref());
    if context.json {
        print(&format!("{}\n", serde_json::to_string_pretty(&tried_info(&done))?))?;
    } else {
        eprint!("{text}");
    }
    Ok(match done.ran.ended {
        Ended::Code(code) => u8::try_from(code).unwrap_or(1),
        _ => 1,
    })
}

/// Passes on what the program printed. A reader that went away is no error.
fn pass_on(stdout: &[u8], stderr: &[u8]) {
    let mut out = std::io::stdout();
    let _ = out.write_all(stdout).and_then(|()| out.flush());
    let _ = std::io::stderr().write_all(stderr);
}

/// The work that the arguments describe, and its bytes.
fn gather(args: &ProgramArgs) -> anyhow::Result<(Work, Materials)> {
    let module = read(&args.module)?;
    ensure!(
        module.starts_with(b"\0asm"),
        "{} is not WebAssembly, neither a module nor a component",
        args.module.display()
    );
    let stdin = match &args.stdin {
        None => Vec::new(),
        Some(path) if path.as_os_str() == "-" => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("standard input cannot be read")?;
            bytes
        }
        Some(path) => read(path)?,
    };
    let mut files: Vec<(String, PathBuf)> = Vec::new();
    for (name, path) in &args.input {
        collect(name, path, &mut files)?;
    }
    files.sort();
    let mut inputs = Vec::new();
    let mut bytes = Vec::new();
    for (name, path) in files {
        let content = read(&path)?;
        inputs.push((name, Material::of(&content)));
        bytes.push(content);
    }
    let name = args.module.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let work = Work {
        module: Material::of(&module),
        args: std::iter::once(name).chain(args.args.iter().cloned()).collect(),
        env: args.env.clone(),
        stdin: args.stdin.as_ref().map(|_| Material::of(&stdin)),
        inputs,
        limits: JobLimits {
            fuel: args.fuel,
            memory_bytes: args.memory.0,
            output_bytes: args.output_max.0,
            output_files: 10_000,
            log_bytes: 1 << 20,
        },
        seed: [0; 32],
        starts_at_s: args.clock,
        is_deterministic: !args.free,
    };
    work.check()?;
    Ok((work, Materials { module, stdin, inputs: bytes }))
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let metadata = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    ensure!(metadata.is_file(), "{} is no regular file", path.display());
    ensure!(
        metadata.len() <= JOB_INPUT_MAX_BYTES,
        "{} has {} bytes, {JOB_INPUT_MAX_BYTES} are the most",
        path.display(),
        metadata.len()
    );
    std::fs::read(path).with_context(|| format!("{} cannot be read", path.display()))
}

/// Adds the file at `path`, or all files under it, below `name`.
fn collect(name: &str, path: &Path, files: &mut Vec<(String, PathBuf)>) -> anyhow::Result<()> {
    let metadata = std::fs::metadata(path).with_context(|| format!("{} cannot be read", path.display()))?;
    if !metadata.is_dir() {
        files.push((name.to_owned(), path.to_owned()));
        return Ok(());
    }
    for entry in std::fs::read_dir(path).with_context(|| format!("{} cannot be listed", path.display()))? {
        let entry = entry?;
        let file_name = entry.file_name();
        let below = file_name
            .to_str()
            .with_context(|| format!("{} has a name that is no UTF-8", entry.path().display()))?;
        let name = if name.is_empty() { below.to_owned() } else { format!("{name}/{below}") };
        collect(&name, &entry.path(), files)?;
    }
    Ok(())
}

fn write_output(dir: &Path, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    // The sandbox makes no others; but this is a path from a program, or from a provider.
    let is_below = path.split('/').all(|name| !name.is_empty() && name != "." && name != "..");
    ensure!(is_below && !path.contains('\0'), "the program named an output '{path}'");
    let to = dir.join(path);
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).with_context(|| format!("{} cannot be made", parent.display()))?;
    }
    std::fs::write(&to, bytes).with_context(|| format!("{} cannot be written", to.display()))
}

fn hex(bytes: [u8; 32]) -> String {
    blake3::Hash::from_bytes(bytes).to_hex().to_string()
}

fn tried_info(done: &Done) -> Tried {
    let ran = &done.ran;
    Tried {
        ended: ended_words(&ran.ended),
        code: if let Ended::Code(code) = ran.ended { Some(code) } else { None },
        fuel: ran.fuel,
        memory_peak_bytes: ran.memory_peak_bytes,
        work: hex(ran.work),
        result: hex(ran.hash()),
        stdout_bytes: ran.stdout.bytes,
        stderr_bytes: ran.stderr.bytes,
        is_log_cut: ran.is_log_cut,
        outputs: done
            .outputs
            .iter()
            .map(|(path, bytes)| TriedOutput {
                path: path.clone(),
                bytes: bytes.len() as u64,
                root: Material::of(bytes).root.to_string(),
            })
            .collect(),
        compiled_s: done.compiled_in.map(|took| took.as_secs_f64()),
        ran_s: done.ran_in.as_secs_f64(),
    }
}

fn say(done: &Done, output: Option<&Path>) -> String {
    let mut out = String::new();
    let ran = &done.ran;
    line!(out, "the program {}", ended_words(&ran.ended));
    if done.memory_refused {
        line!(out, "memory could not grow beyond its limit; allow it more with --memory");
    }
    if done.output_refused {
        line!(out, "a file could not be written for the limits; allow more with --output-max");
    }
    if ran.is_log_cut {
        line!(out, "what it printed beyond {} bytes was cut off", 1 << 20);
    }
    line!(out, "fuel     {}", ran.fuel);
    line!(out, "memory   {} bytes at most", ran.memory_peak_bytes);
    match done.compiled_in {
        Some(took) => line!(
            out,
            "time     {:.2} s, after compiling for {:.2} s",
            done.ran_in.as_secs_f64(),
            took.as_secs_f64()
        ),
        None => line!(out, "time     {:.3} s; it was compiled before", done.ran_in.as_secs_f64()),
    }
    line!(out, "result   {}", hex(ran.hash()));
    match (output, done.outputs.len()) {
        (_, 0) => {}
        (Some(dir), n) => line!(out, "outputs  {n} in {}", dir.display()),
        (None, n) => line!(out, "outputs  {n}, dropped; keep them with --output DIR"),
    }
    out
}
