//! `spare job map`: one job for each input file, over many providers.
//!
//! What is done is noted in the output folder, so that the same command goes on where it was stopped. A job that fails is run again; one that takes far
//! longer than the others is run a second time elsewhere, and the first result counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use spare_market::amount::Amount;
use spare_market::job::{Material, Work};

use super::run::{OrderArgs, fetch_outputs, is_over, new_job, read_blobs, send_materials};
use super::{ProgramArgs, collect, gather};
use crate::api::{JobInfo, OfferInfo};
use crate::cli::{ApiClient, Context};
use crate::work::Materials;

/// The file in the output folder that says what is done.
const JOURNAL: &str = ".spare-map.json";
/// What an argument holds where the input's path is to be.
const PLACE: &str = "{}";
/// Most jobs at once.
const AT_ONCE_MAX: usize = 64;
/// A job that takes so many times as long as the middle one is run a second time.
const STRAGGLES_AT: u32 = 4;
/// But none that takes less than this.
const STRAGGLES_AFTER: Duration = Duration::from_secs(10);
/// Jobs that have to be done before it is known how long one takes.
const KNOWN_AFTER: usize = 4;
/// How long one question about a job waits for news, in seconds.
const WAIT_S: u64 = 5;

/// A program, its inputs, and where its outputs go.
#[derive(Debug, Args)]
pub(in crate::cli) struct MapArgs {
    #[command(flatten)]
    program: ProgramArgs,
    #[command(flatten)]
    order: OrderArgs,
    /// The folder with the inputs, one job for each file. It comes as standard input; or, where an argument after `--` holds {}, as a file,
    /// and {} becomes its path
    #[arg(long, value_name = "DIR")]
    inputs: PathBuf,
    /// Times that a job is run again that failed
    #[arg(long, value_name = "N", default_value_t = 2)]
    retries: u32,
    /// Jobs at once [default: twice as many as providers have places]
    #[arg(long, value_name = "N")]
    at_once: Option<usize>,
}

/// What is known of an input.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Done {
    /// The work that was done; another work is done anew.
    work: String,
    code: Option<u32>,
    ended: String,
    cost: Amount,
    result: String,
}

/// What the output folder says is done, by the input's path.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Journal {
    done: BTreeMap<String, Done>,
}

impl Journal {
    fn load(dir: &Path) -> anyhow::Result<Self> {
        match std::fs::read(dir.join(JOURNAL)) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| {
                format!("{} does not say what is done; remove it to begin anew", dir.join(JOURNAL).display())
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => {
                Err(error).with_context(|| format!("{} cannot be read", dir.join(JOURNAL).display()))
            }
        }
    }

    fn save(&self, dir: &Path) -> anyhow::Result<()> {
        let new = dir.join(format!("{JOURNAL}.new"));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        Ok(std::fs::rename(new, dir.join(JOURNAL))?)
    }
}

/// An input that is to be done.
struct Item {
    name: String,
    path: PathBuf,
    tries: u32,
}

/// What came of one job for one input.
struct Ran {
    item: Item,
    work: String,
    job: Result<JobInfo, anyhow::Error>,
    took: Duration,
}

/// What `spare job map` prints as JSON.
#[derive(Serialize)]
struct Summary {
    inputs: usize,
    done: usize,
    done_before: usize,
    /// Whose program ended otherwise than with code 0.
    unhappy: BTreeMap<String, String>,
    /// That could not be run.
    failed: BTreeMap<String, String>,
    cost: String,
    took_s: f64,
}

/// The work for one input.
fn work_for(
    program: &ProgramArgs,
    base: &(Work, Materials),
    name: &str,
    bytes: Vec<u8>,
) -> (Work, Materials) {
    let (mut work, mut materials) = (base.0.clone(), base.1.clone());
    let material = Material::of(&bytes);
    if program.args.iter().any(|arg| arg.contains(PLACE)) {
        let path = format!("in/{name}");
        work.args = work.args.iter().map(|arg| arg.replace(PLACE, &format!("/{path}"))).collect();
        let at = work.inputs.partition_point(|(other, _)| *other < path);
        work.inputs.insert(at, (path, material));
        materials.inputs.insert(at, bytes);
    } else {
        work.stdin = Some(material);
        materials.stdin = bytes;
    }
    (work, materials)
}

/// Runs the program for each input. Returns the exit code: 1 if not all ended with code 0.
pub(in crate::cli) async fn map(context: &Context, mut args: MapArgs) -> anyhow::Result<u8> {
    let api = context.api()?;
    let began = Instant::now();
    let output = args.program.output.clone().context("say where the outputs go: --output DIR")?;
    ensure!(args.program.stdin.is_none(), "each input comes as standard input; leave out --stdin");
    ensure!(args.order.output_blobs.is_none(), "the outputs go to a folder; `spare put` stores them");
    let _blobs = read_blobs(&api, &mut args.program).await?;
    let base = gather(&args.program)?;
    let mut files = Vec::new();
    collect("", &args.inputs, &mut files)?;
    if !args.inputs.is_dir() || files.is_empty() {
        bail!("{} is no folder with files in it", args.inputs.display());
    }
    files.sort();
    std::fs::create_dir_all(&output).with_context(|| format!("{} cannot be made", output.display()))?;
    let mut journal = Journal::load(&output)?;
    let total = files.len();
    let mut waiting: Vec<Item> = Vec::new();
    for (name, path) in files {
        let bytes = super::read(&path)?;
        let (work, _) = work_for(&args.program, &base, &name, bytes);
        let is_done = journal.done.get(&name).is_some_and(|done| done.work == super::hex(work.id()));
        if !is_done || !output.join(&name).is_dir() {
            waiting.push(Item { name, path, tries: 0 });
        }
    }
    waiting.reverse();
    let done_before = total - waiting.len();
    let at_once = match args.at_once {
        Some(at_once) => at_once,
        None => places(&api, &base.0, &args.order).await? * 2,
    };
    let at_once = at_once.clamp(1, AT_ONCE_MAX);
    let bar = bar(context, total, done_before);
    let mut cost = Amount::ZERO;
    let mut failed = BTreeMap::new();
    let mut times: Vec<Duration> = Vec::new();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < at_once {
            let Some(item) = waiting.pop() else { break };
            let straggles_at = straggles_at(&times);
            running.push(one(context, &api, &args, &base, item, straggles_at));
        }
        bar.set_message(format!("{} under way, {} failed, {cost} credits", running.len(), failed.len()));
        let next = tokio::select! {
            next = running.next() => next,
            _ = tokio::signal::ctrl_c() => {
                bar.finish_and_clear();
                eprintln!("jobs that are under way go on; the same command goes on with what is not done");
                return Ok(130);
            }
        };
        let Some(Ran { mut item, work, job, took }) = next else { break };
        let job = match job {
            Ok(job) if job.state == "done" => job,
            other => {
                let why = match other {
                    Ok(job) => {
                        cost = sum(cost, &job);
                        format!("{}: {}", job.state, job.detail)
                    }
                    Err(error) => format!("{error:#}"),
                };
                item.tries += 1;
                if item.tries > args.retries {
                    bar.suspend(|| eprintln!("{}: {why}", item.name));
                    failed.insert(item.name, why);
                    bar.inc(1);
                } else {
                    waiting.push(item);
                }
                continue;
            }
        };
        cost = sum(cost, &job);
        keep(&api, &job, &output.join(&item.name)).await?;
        times.push(took);
        let done = Done {
            work,
            code: job.code,
            ended: job.ended.clone().unwrap_or_default(),
            cost: job.cost.parse().unwrap_or_default(),
            result: job.result.clone().unwrap_or_default(),
        };
        journal.done.insert(item.name, done);
        journal.save(&output)?;
        // What came out is in the folder now.
        let _ = api.send(api.request(Method::DELETE, &["jobs", &job.job])).await;
        bar.inc(1);
    }
    bar.finish_and_clear();
    let unhappy = journal.done.iter().filter(|(_, done)| done.code != Some(0));
    let summary = Summary {
        inputs: total,
        done: total - failed.len(),
        done_before,
        unhappy: unhappy.map(|(name, done)| (name.clone(), done.ended.clone())).collect(),
        failed,
        cost: cost.to_string(),
        took_s: began.elapsed().as_secs_f64(),
    };
    context.print(&summary, |summary, out| {
        line!(
            out,
            "{} of {} inputs done ({} before), in {:.1} s, for {} credits; outputs in {}",
            summary.done,
            summary.inputs,
            summary.done_before,
            summary.took_s,
            summary.cost,
            output.display()
        );
        for (name, ended) in &summary.unhappy {
            line!(out, "  {name}: the program {ended}");
        }
        for (name, why) in &summary.failed {
            line!(out, "  {name}: {why}");
        }
        if !summary.failed.is_empty() {
            line!(out, "the same command tries those again");
        }
    })?;
    Ok(u8::from(!summary.unhappy.is_empty() || !summary.failed.is_empty()))
}

fn sum(cost: Amount, job: &JobInfo) -> Amount {
    job.cost.parse().ok().and_then(|more| cost.checked_add(more)).unwrap_or(cost)
}

/// Places that providers have for such work.
async fn places(api: &ApiClient, work: &Work, order: &OrderArgs) -> anyhow::Result<usize> {
    let request = api.request(Method::POST, &["jobs", "offers"]).json(&new_job(work, order));
    let offers: Vec<OfferInfo> = api.send(request).await?.json().await?;
    Ok(offers.iter().map(|offer| usize::from(offer.slots)).sum())
}

fn bar(context: &Context, total: usize, done: usize) -> ProgressBar {
    if context.json {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{bar:30} {pos}/{len} {eta} {msg}").expect("the template is a constant");
    let bar = ProgressBar::new(total as u64).with_style(style).with_position(done as u64);
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// How long a job may take before it is run a second time, once that is known.
fn straggles_at(times: &[Duration]) -> Option<Duration> {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let middle = sorted.get(sorted.len() / 2)?;
    (times.len() >= KNOWN_AFTER).then(|| (*middle * STRAGGLES_AT).max(STRAGGLES_AFTER))
}

/// Runs one input's job to its end; a second time, if it takes very long.
async fn one(
    context: &Context,
    api: &ApiClient,
    args: &MapArgs,
    base: &(Work, Materials),
    item: Item,
    straggles_at: Option<Duration>,
) -> Ran {
    let began = Instant::now();
    let mut id = String::new();
    let job = run_one(context, api, args, base, &item, straggles_at, &mut id).await;
    Ran { item, work: id, job, took: began.elapsed() }
}

async fn run_one(
    context: &Context,
    api: &ApiClient,
    args: &MapArgs,
    base: &(Work, Materials),
    item: &Item,
    straggles_at: Option<Duration>,
    id: &mut String,
) -> anyhow::Result<JobInfo> {
    let (work, materials) = work_for(&args.program, base, &item.name, super::read(&item.path)?);
    *id = super::hex(work.id());
    let mut new = new_job(&work, &args.order);
    new.label = format!("{} {}", args.order.label, item.name).trim().to_owned();
    // No bar of its own for each.
    let quiet = Context { home: context.home.clone(), json: true };
    send_materials(&quiet, api, &work, materials).await?;
    let submit = async || -> anyhow::Result<JobInfo> {
        Ok(api.send(api.request(Method::POST, &["jobs"]).json(&new)).await?.json().await?)
    };
    let first = submit().await?;
    let Some(patience) = straggles_at else { return wait(api, first).await };
    let name = first.job.clone();
    let mut waiting = Box::pin(wait(api, first));
    if let Ok(job) = tokio::time::timeout(patience, &mut waiting).await {
        return job;
    }
    let second = submit().await?;
    let second_name = second.job.clone();
    let mut again = Box::pin(wait(api, second));
    let is_done = |job: &anyhow::Result<JobInfo>| job.as_ref().is_ok_and(|job| job.state == "done");
    let (job, other) = tokio::select! {
        job = &mut waiting => if is_done(&job) { (job, second_name) } else { (again.await, name) },
        job = &mut again => if is_done(&job) { (job, name) } else { (waiting.await, second_name) },
    };
    // Whatever comes of the slower one is not waited for.
    let _ = api.send(api.request(Method::POST, &["jobs", &other, "cancel"])).await;
    job
}

async fn wait(api: &ApiClient, mut job: JobInfo) -> anyhow::Result<JobInfo> {
    while !is_over(&job) {
        let request = api.request(Method::GET, &["jobs", &job.job]);
        // Not each version is of interest; the end is.
        let request = request.query(&[("seen", job.version), ("wait_s", WAIT_S)]);
        job = api.send(request).await?.json().await?;
        if !is_over(&job) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(job)
}

/// Writes what a job printed and left.
async fn keep(api: &ApiClient, job: &JobInfo, dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("{} cannot be made", dir.display()))?;
    for (stream, bytes) in [("stdout", job.stdout_bytes), ("stderr", job.stderr_bytes)] {
        if bytes > 0 {
            let printed = api.send(api.request(Method::GET, &["jobs", &job.job, "log", stream])).await?;
            std::fs::write(dir.join(stream), printed.bytes().await?)
                .with_context(|| format!("{} cannot be written", dir.join(stream).display()))?;
        }
    }
    fetch_outputs(api, job, dir).await
}
