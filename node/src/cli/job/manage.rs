//! `spare job status`, `logs`, `ls`, `cancel`, `rm`, `output`, `receipt` and `verify`.

use std::path::Path;

use anyhow::Context as _;
use reqwest::Method;

use super::run::{exit_code, fetch_outputs, follow, is_over, say, say_state};
use crate::api::{JobInfo, WorkInfo};
use crate::cli::show::span;
use crate::cli::{ApiClient, Context};
use crate::job::Bundle;
use crate::unix_now_s;
use crate::work::Workshop;

async fn get(api: &ApiClient, job: &str) -> anyhow::Result<JobInfo> {
    api.json(Method::GET, &["jobs", job]).await
}

pub(in crate::cli) async fn status(context: &Context, job: &str) -> anyhow::Result<()> {
    let job = get(&context.api()?, job).await?;
    context.print(&job, |job, out| out.push_str(&say(job, None)))
}

pub(in crate::cli) async fn ls(context: &Context) -> anyhow::Result<()> {
    let jobs: Vec<JobInfo> = context.api()?.json(Method::GET, &["jobs"]).await?;
    context.print(&jobs, |jobs, out| {
        if jobs.is_empty() {
            eprintln!("there are no jobs; `spare job run PROGRAM` runs one");
        }
        let now_s = unix_now_s();
        for job in jobs {
            let what = match (&job.ended, is_over(job)) {
                (Some(ended), _) => ended.clone(),
                (None, true) => format!("{} {}", job.state, job.detail),
                (None, false) => say_state(job),
            };
            let ago = span(now_s.saturating_sub(job.created_s));
            line!(out, "{}  {ago} ago  {} credits  {}  {what}", job.job, job.cost, job.label);
        }
    })
}

/// Prints what a job printed. With `follow`, until it is over; the exit code is the program's then.
pub(in crate::cli) async fn logs(context: &Context, job: &str, follows: bool) -> anyhow::Result<u8> {
    let api = context.api()?;
    let info = get(&api, job).await?;
    if follows {
        let job = follow(context, &api, info, true).await?;
        if !context.json {
            eprint!("{}", say(&job, None));
        }
        return Ok(exit_code(&job));
    }
    let mut logs = Vec::new();
    for stream in ["stdout", "stderr"] {
        let request = api.request(Method::GET, &["jobs", job, "log", stream]);
        let bytes = api.send(request).await?.bytes().await?;
        logs.push(bytes);
    }
    if context.json {
        let text = |i: usize| String::from_utf8_lossy(&logs[i]).into_owned();
        context.print(&serde_json::json!({"stdout": text(0), "stderr": text(1)}), |_, _| ())?;
    } else {
        super::pass_on(&logs[0], &logs[1]);
    }
    Ok(0)
}

pub(in crate::cli) async fn cancel(context: &Context, job: &str) -> anyhow::Result<()> {
    let api = context.api()?;
    let name = job;
    let before: JobInfo = api.json(Method::POST, &["jobs", name, "cancel"]).await?;
    let job = if is_over(&before) { before } else { follow(context, &api, before, false).await? };
    context.print(&job, |job, out| line!(out, "{}: {}, {} credits", job.job, job.state, job.cost))
}

pub(in crate::cli) async fn rm(context: &Context, job: &str) -> anyhow::Result<()> {
    let api = context.api()?;
    api.send(api.request(Method::DELETE, &["jobs", job])).await?;
    context.print(&serde_json::json!({"job": job}), |_, out| line!(out, "{job}: removed"))
}

pub(in crate::cli) async fn output(context: &Context, job: &str, dir: &Path) -> anyhow::Result<()> {
    let api = context.api()?;
    let job = get(&api, job).await?;
    anyhow::ensure!(job.state == "done", "the job is not done: {}", say_state(&job));
    fetch_outputs(&api, &job, dir).await?;
    context.print(&job, |job, out| line!(out, "{} files in {}", job.outputs.len(), dir.display()))
}

pub(in crate::cli) async fn receipt(
    context: &Context,
    job: &str,
    order: usize,
    file: &Path,
) -> anyhow::Result<()> {
    let api = context.api()?;
    let request = api.request(Method::GET, &["jobs", job, "receipt"]).query(&[("order", order)]);
    let bytes = api.send(request).await?.bytes().await?;
    std::fs::write(file, &bytes).with_context(|| format!("{} cannot be written", file.display()))?;
    let result = serde_json::json!({"job": job, "file": file, "bytes": bytes.len()});
    context.print(&result, |_, out| {
        line!(
            out,
            "{}: the receipt with all that it takes to check it; `spare job verify` does, on any machine",
            file.display()
        );
    })
}

pub(in crate::cli) async fn work(context: &Context) -> anyhow::Result<()> {
    let work: Vec<WorkInfo> = context.api()?.json(Method::GET, &["work"]).await?;
    context.print(&work, |work, out| {
        if work.is_empty() {
            eprintln!("no job of others runs or waits here; `spare status` says why none comes");
        }
        for job in work {
            let detail = if job.detail.is_empty() { String::new() } else { format!(": {}", job.detail) };
            let (name, client) = (&job.job[..12], &job.client[..12]);
            line!(
                out,
                "{name}  for {client}  {}{detail}, {} fuel, {} credits",
                job.state,
                job.fuel,
                job.cost
            );
        }
    })
}

/// Runs a receipt's work again and compares. Needs no node. Returns the exit code: 1 if the provider signed a wrong result.
pub(in crate::cli) fn verify(context: &Context, file: &Path) -> anyhow::Result<u8> {
    let bytes = std::fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let bundle = Bundle::from_bytes(&bytes)?;
    bundle.check()?;
    let workshop = Workshop::open(&context.home.file("artefacts"), super::CACHE_BYTES, 1)?;
    let verdict = bundle.verify(&workshop)?;
    let hash = super::hex;
    let result = serde_json::json!({
        "provider": verdict.node.to_string(),
        "right": verdict.is_right(),
        "signed": {"result": hash(verdict.signed.hash()), "ended": crate::api::ended_words(&verdict.signed.ended), "fuel": verdict.signed.fuel},
        "found": {"result": hash(verdict.found.hash()), "ended": crate::api::ended_words(&verdict.found.ended), "fuel": verdict.found.fuel},
    });
    context.print(&result, |_, out| {
        let side = |what: &str, ran: &spare_market::job::Ran| {
            format!(
                "{what}  {}: {}, {} fuel",
                hash(ran.hash()),
                crate::api::ended_words(&ran.ended),
                ran.fuel
            )
        };
        line!(out, "provider  {}", verdict.node);
        line!(out, "{}", side("signed  ", &verdict.signed));
        line!(out, "{}", side("found   ", &verdict.found));
        match verdict.is_right() {
            true => line!(out, "the provider signed what comes out"),
            false => line!(out, "the provider signed a WRONG result: this is not what comes out"),
        }
    })?;
    Ok(u8::from(!verdict.is_right()))
}
