//! `spare job run` and `submit`: send what the program needs to the node, have it run, and follow.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use indicatif::ProgressBar;
use reqwest::Method;
use spare_market::amount::Amount;
use spare_market::job::{Material, Work};

use super::{ProgramArgs, gather, pass_on};
use crate::api::{FileInfo, JobInfo, LOG_FROM, MaterialInfo, NewJob};
use crate::cli::{ApiClient, Context};
use crate::work::Materials;

/// How long one question about a job waits for news, in seconds.
const WAIT_S: u64 = 10;

/// Who is to run a program, and for how much.
#[derive(Debug, Clone, Args)]
pub(in crate::cli) struct OrderArgs {
    /// The most that one provider's run may cost, in credits [default: the setting client.max_job_cost]
    #[arg(long, value_name = "CREDITS")]
    pub(super) max_cost: Option<Amount>,
    /// Have so many providers run it, each for itself, and compare
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    copies: u8,
    /// How many of the copies have to come to the same result where they differ and this node cannot run the program itself [default: more than half]
    #[arg(long, value_name = "M")]
    agree: Option<u8>,
    /// How likely it is run again to check the result, in percent [default: the setting client.check_percent; 0 with --free or --copies]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    check: Option<u8>,
    /// Who runs it again: this node (here), or another provider
    #[arg(long, value_name = "WHO", default_value = "here", value_parser = ["here", "provider"])]
    check_by: String,
    /// Hire only who pledges so much for the deal that cheating does not pay at that rate of checks
    #[arg(long)]
    secured: bool,
    /// The node key of the one provider that is to run it
    #[arg(long, value_name = "NODE")]
    provider: Option<String>,
    /// Store the files that the program leaves as blobs of yours, each under PREFIX/ and its path
    #[arg(long, value_name = "PREFIX")]
    pub(super) output_blobs: Option<String>,
    /// What to call the job
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(super) label: String,
}

/// The job that the arguments describe, as the API takes it.
pub(super) fn new_job(work: &Work, order: &OrderArgs) -> NewJob {
    let info = |material: &Material| MaterialInfo::from(*material);
    let file =
        |(path, material): &(String, Material)| FileInfo { path: path.clone(), material: info(material) };
    NewJob {
        label: order.label.clone(),
        module: info(&work.module),
        args: work.args.clone(),
        env: work.env.clone(),
        stdin: work.stdin.as_ref().map(info),
        inputs: work.inputs.iter().map(file).collect(),
        fuel: work.limits.fuel,
        memory_bytes: work.limits.memory_bytes,
        output_bytes: work.limits.output_bytes,
        output_files: work.limits.output_files,
        log_bytes: work.limits.log_bytes,
        seed: None,
        starts_at_s: work.starts_at_s,
        free: !work.is_deterministic,
        max_cost: order.max_cost.map(|cost| cost.to_string()),
        copies: Some(order.copies),
        agree: order.agree,
        check_percent: order.check,
        check_by: Some(order.check_by.clone()),
        secured: order.secured,
        provider: order.provider.clone(),
    }
}

/// Sends the node those bytes that it lacks.
pub(super) async fn send_materials(
    context: &Context,
    api: &ApiClient,
    work: &Work,
    materials: Materials,
) -> anyhow::Result<()> {
    let mut all: HashMap<String, Vec<u8>> = HashMap::new();
    let mut add = |material: &Material, bytes| drop(all.insert(material.root.to_string(), bytes));
    add(&work.module, materials.module);
    if let Some(stdin) = &work.stdin {
        add(stdin, materials.stdin);
    }
    work.inputs.iter().zip(materials.inputs).for_each(|((_, material), bytes)| add(material, bytes));
    let asked: Vec<MaterialInfo> = all
        .iter()
        .map(|(root, bytes)| MaterialInfo { root: root.clone(), bytes: bytes.len() as u64 })
        .collect();
    let asking = api.request(Method::POST, &["jobs", "missing"]).json(&asked);
    let missing: Vec<MaterialInfo> = api.send(asking).await?.json().await?;
    let bar = super::super::transfer::progress(context, Some(missing.iter().map(|m| m.bytes).sum()));
    for MaterialInfo { root, bytes } in missing {
        let body = all.remove(&root).context("the node asked for bytes that were not offered")?;
        let request = api.request(Method::PUT, &["jobs", "materials", &root]).query(&[("bytes", bytes)]);
        api.send(request.body(body)).await?;
        bar.inc(bytes);
    }
    bar.finish_and_clear();
    Ok(())
}

/// What marks an input as a blob.
const BLOB: &str = "blob:";

/// Reads inputs that are blobs into files of a folder, which lasts as long as what is returned, and has the program take those.
pub(super) async fn read_blobs(
    api: &ApiClient,
    program: &mut ProgramArgs,
) -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::tempdir()?;
    for (i, (_, path)) in program.input.iter_mut().enumerate() {
        let Some(name) = path.to_str().and_then(|path| path.strip_prefix(BLOB)) else { continue };
        let blob = api.send(api.request(Method::GET, &["blobs", name])).await?.bytes().await?;
        let file = dir.path().join(i.to_string());
        std::fs::write(&file, blob)?;
        *path = file;
    }
    Ok(dir)
}

/// Stores what a job left as blobs.
async fn store_outputs(api: &ApiClient, job: &JobInfo, prefix: &str) -> anyhow::Result<()> {
    for file in &job.outputs {
        let request = api.request(Method::GET, &["jobs", &job.job, "outputs"]).query(&[("path", &file.path)]);
        let bytes = api.send(request).await?.bytes().await?;
        let name = format!("{prefix}/{}", file.path);
        let request = api.request(Method::PUT, &["blobs", &name]).query(&[("replace", "true")]).body(bytes);
        let still_there = || {
            format!(
                "'{name}' could not be stored; it is still there, `spare job output {} --output DIR` fetches it",
                job.job
            )
        };
        api.send(request).await.with_context(still_there)?;
    }
    Ok(())
}

async fn submit_job(
    context: &Context,
    api: &ApiClient,
    program: &ProgramArgs,
    order: &OrderArgs,
) -> anyhow::Result<JobInfo> {
    let mut program = program.clone();
    let _blobs = read_blobs(api, &mut program).await?;
    let (work, materials) = gather(&program)?;
    let new = new_job(&work, order);
    send_materials(context, api, &work, materials).await?;
    Ok(api.send(api.request(Method::POST, &["jobs"]).json(&new)).await?.json().await?)
}

/// Runs a program at a provider, and waits for it. Returns the exit code: the program's own, if it ended by itself.
pub(in crate::cli) async fn run(
    context: &Context,
    program: ProgramArgs,
    order: OrderArgs,
) -> anyhow::Result<u8> {
    let api = context.api()?;
    let job = submit_job(context, &api, &program, &order).await?;
    let name = job.job.clone();
    let following = follow(context, &api, job, !context.json);
    let job = tokio::select! {
        job = following => job.with_context(|| {
            format!("job {name} goes on once the node runs; `spare job logs {name} --follow` shows it")
        })?,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("\nthe job goes on: `spare job logs {name} --follow` shows it, `spare job cancel {name}` stops it");
            return Ok(130);
        }
    };
    if let Some(prefix) = &order.output_blobs {
        store_outputs(&api, &job, prefix).await?;
    }
    finish(context, &api, &job, program.output.as_deref()).await
}

/// Runs a program at a provider, and does not wait.
pub(in crate::cli) async fn submit(
    context: &Context,
    program: ProgramArgs,
    order: OrderArgs,
) -> anyhow::Result<()> {
    let is_left = program.output.is_none() && order.output_blobs.is_none();
    ensure!(is_left, "fetch its output later: `spare job output JOB --output DIR`");
    let api = context.api()?;
    let job = submit_job(context, &api, &program, &order).await?;
    context.print(&job, |job, out| line!(out, "{}", job.job))
}

/// Shows a job until it is over, with what it prints if `prints`.
pub(super) async fn follow(
    context: &Context,
    api: &ApiClient,
    mut job: JobInfo,
    prints: bool,
) -> anyhow::Result<JobInfo> {
    let bar = if context.json { ProgressBar::hidden() } else { spinner() };
    let mut printed = [0_u64; 2];
    loop {
        bar.set_message(say_state(&job));
        if prints {
            for (stream, from) in ["stdout", "stderr"].into_iter().zip(&mut printed) {
                let request = api.request(Method::GET, &["jobs", &job.job, "log", stream]);
                let answer = api.send(request.query(&[("from", *from)])).await?;
                let at = answer.headers().get(LOG_FROM).and_then(|at| at.to_str().ok()?.parse().ok());
                let bytes = answer.bytes().await?;
                *from = at.unwrap_or(*from) + bytes.len() as u64;
                if !bytes.is_empty() {
                    bar.suspend(
                        || if stream == "stdout" { pass_on(&bytes, &[]) } else { pass_on(&[], &bytes) },
                    );
                }
            }
        }
        if is_over(&job) {
            bar.finish_and_clear();
            return Ok(job);
        }
        let request = api.request(Method::GET, &["jobs", &job.job]);
        let request = request.query(&[("seen", job.version), ("wait_s", WAIT_S)]);
        job = api.send(request).await?.json().await?;
    }
}

pub(super) fn is_over(job: &JobInfo) -> bool {
    matches!(job.state.as_str(), "done" | "failed" | "cancelled")
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// One line about a job that is under way.
pub(super) fn say_state(job: &JobInfo) -> String {
    let detail = if job.detail.is_empty() { String::new() } else { format!(": {}", job.detail) };
    let fuel = if job.fuel > 0 { format!(", {} fuel of {}", job.fuel, job.fuel_max) } else { String::new() };
    format!("{}{detail}{fuel}, {} credits so far", job.state, job.cost)
}

/// Fetches what a job left into `dir`.
pub(super) async fn fetch_outputs(api: &ApiClient, job: &JobInfo, dir: &Path) -> anyhow::Result<()> {
    for file in &job.outputs {
        let request = api.request(Method::GET, &["jobs", &job.job, "outputs"]).query(&[("path", &file.path)]);
        let bytes = api.send(request).await?.bytes().await?;
        super::write_output(dir, &file.path, &bytes)?;
    }
    Ok(())
}

/// Writes a job's output and says how it ended. Returns the exit code.
pub(super) async fn finish(
    context: &Context,
    api: &ApiClient,
    job: &JobInfo,
    output: Option<&Path>,
) -> anyhow::Result<u8> {
    if let Some(dir) = output {
        fetch_outputs(api, job, dir).await?;
    }
    if context.json {
        context.print(job, |_, _| ())?;
    } else {
        eprint!("{}", say(job, output));
    }
    Ok(exit_code(job))
}

pub(super) fn exit_code(job: &JobInfo) -> u8 {
    match (job.state.as_str(), job.code) {
        ("done", Some(code)) => u8::try_from(code).unwrap_or(1),
        _ => 1,
    }
}

/// How a job is or ended, for people.
pub(super) fn say(job: &JobInfo, output: Option<&Path>) -> String {
    let mut out = String::new();
    match (&job.ended, job.state.as_str()) {
        (Some(ended), _) => line!(out, "the program {ended}"),
        (None, "failed") => line!(out, "the job failed: {}", job.detail),
        (None, "cancelled") => line!(out, "the job was stopped"),
        _ => line!(out, "{}", say_state(job)),
    }
    line!(
        out,
        "job      {}{}",
        job.job,
        if job.label.is_empty() { String::new() } else { format!(" ({})", job.label) }
    );
    for order in &job.orders {
        let operator = order.operator.as_deref().unwrap_or("?");
        let end = match (&order.result, &order.failed) {
            (Some(result), _) if order.wrong => format!("signed a WRONG result, {}", &result[..12]),
            (Some(result), _) => format!("result {}", &result[..12]),
            (None, Some(why)) => format!("failed: {why}"),
            (None, None) => "under way".to_owned(),
        };
        line!(out, "provider {} ({operator}), {} credits, {end}", &order.provider[..12], order.cost);
        if let Some(dispute) = &order.dispute {
            line!(out, "         disputed on the ledger: {dispute}");
        }
    }
    if job.ended.is_some() {
        line!(out, "fuel     {}", job.fuel);
        line!(out, "memory   {} bytes at most", job.memory_peak_bytes);
        if job.is_log_cut {
            line!(out, "what it printed beyond {} bytes was cut off", job.stdout_bytes.max(job.stderr_bytes));
        }
    }
    line!(out, "cost     {} credits", job.cost);
    line!(out, "time     {:.2} s", job.took_s);
    if let Some(result) = &job.result {
        line!(out, "result   {result}");
    }
    if let Some(checked) = &job.checked {
        line!(out, "checked  {checked}");
    }
    match (output, job.outputs.len()) {
        (_, 0) => {}
        (Some(dir), n) => line!(out, "outputs  {n} in {}", dir.display()),
        (None, n) => line!(out, "outputs  {n}; fetch them with `spare job output {} --output DIR`", job.job),
    }
    out
}

/// Says of each provider whether a program would go there.
pub(in crate::cli) async fn offers(
    context: &Context,
    program: ProgramArgs,
    order: OrderArgs,
) -> anyhow::Result<()> {
    let api = context.api()?;
    let mut program = program;
    let _blobs = read_blobs(&api, &mut program).await?;
    let (work, _) = gather(&program)?;
    let new = new_job(&work, &order);
    let request = api.request(Method::POST, &["jobs", "offers"]).json(&new);
    let offers: Vec<crate::api::OfferInfo> = api.send(request).await?.json().await?;
    context.print(&offers, |offers, out| {
        if offers.is_empty() {
            eprintln!("no provider is known; `spare doctor` says whether this node is connected");
        }
        for offer in offers {
            let cost = offer.max_cost.as_ref().map_or(String::new(), |cost| {
                format!(", at most {cost} credits, {} of {} places free", offer.free_slots, offer.slots)
            });
            line!(out, "{}  {}: {}{cost}", &offer.provider[..12], offer.operator, offer.why);
        }
    })
}
