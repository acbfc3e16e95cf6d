//! `put` and `get`: streaming between a file and the node, with progress, resumable.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use futures::StreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::{Method, StatusCode, header};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::http::{ApiClient, Reported};
use super::market::short;
use super::{Context, GetArgs, PutArgs};
use crate::api::{BlobInfo, PutDone, Quote};

/// Size of the pieces in which a file is sent to the node.
const PIECE_BYTES: usize = 256 * 1024;
/// Tries of a get that makes no progress in between.
const GET_TRIES_MAX: usize = 3;

pub(super) fn progress(context: &Context, total: Option<u64>) -> ProgressBar {
    if context.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = total.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let style = ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {msg}");
    bar.with_style(style.expect("the template is a constant"))
}

pub(super) async fn put(context: &Context, args: PutArgs) -> anyhow::Result<()> {
    let api = context.api()?;
    let from_stdin = args.file == Path::new("-");
    let default_name =
        args.file.file_name().filter(|_| !from_stdin).map(|n| n.to_string_lossy().into_owned());
    let no_name = || Reported { code: "bad_name".into(), message: "give the blob a name with --name".into() };
    let name = args.name.clone().or(default_name).ok_or_else(no_name)?;
    // URLs drop some characters on the way, so a bad name has to be caught here.
    crate::put::check_name(&name)
        .map_err(|e| Reported { code: "bad_name".into(), message: e.to_string() })?;
    let (source, total): (Box<dyn AsyncRead + Send + Unpin>, Option<u64>) = if from_stdin {
        (Box::new(tokio::io::stdin()), None)
    } else {
        let file = tokio::fs::File::open(&args.file)
            .await
            .with_context(|| format!("cannot read {}", args.file.display()))?;
        let metadata = file.metadata().await?;
        if metadata.is_dir() {
            bail!("{} is a folder; pack it first, for instance with tar", args.file.display());
        }
        // Some special files say 0 and have content all the same.
        (Box::new(file), Some(metadata.len()).filter(|len| *len > 0))
    };
    let max_price = agree(context, &api, &args, total).await?;
    let bar = progress(context, total);
    let counted = bar.clone();
    let unreadable = Arc::new(OnceLock::new());
    let noted = unreadable.clone();
    let body = ReaderStream::with_capacity(source, PIECE_BYTES).inspect(move |piece| match piece {
        Ok(piece) => {
            counted.inc(piece.len() as u64);
            if Some(counted.position()) == total {
                counted.set_message("waiting for the last receipts");
            }
        }
        Err(error) => drop(noted.set(error.to_string())),
    });
    let mut query = vec![("replace", args.replace.to_string())];
    query.extend(args.code.map(|code| ("code", code.to_string())));
    query.extend(max_price.map(|price| ("max_price", price)));
    let mut request =
        api.request(Method::PUT, &["blobs", &name]).query(&query).body(reqwest::Body::wrap_stream(body));
    if let Some(total) = total {
        request = request.header(header::CONTENT_LENGTH, total);
    }
    let result = api.send(request).await;
    bar.finish_and_clear();
    if let Some(why) = unreadable.get() {
        bail!("cannot read {} to its end: {why}", args.file.display());
    }
    let done: PutDone = result?.json().await?;
    context.print(&done, |done, out| {
        let size = super::show::bytes(done.blob.bytes);
        let sent = super::show::count(done.shards_sent, "shard");
        line!(out, "{}: {size} stored as {}, {sent} sent", done.blob.name, done.code);
        if done.shards_resumed > 0 {
            let placed = super::show::count(done.shards_resumed, "shard");
            line!(out, "{placed} had been placed by an earlier put that was cut short");
        }
        if done.shards_replaced > 0 {
            let replaced = super::show::count(done.shards_replaced, "shard");
            line!(out, "{replaced} went to another provider, since the first one failed");
        }
    })
}

/// Says what a put will cost, and has the user agree unless that was said beforehand. Returns the highest price to be paid.
async fn agree(
    context: &Context,
    api: &ApiClient,
    args: &PutArgs,
    total: Option<u64>,
) -> anyhow::Result<Option<String>> {
    let max_price = args.max_price.map(|price| price.to_string());
    if args.yes && context.json {
        return Ok(max_price);
    }
    let bytes = total.unwrap_or(1_000_000_000);
    let mut query = vec![("bytes", bytes.to_string())];
    query.extend(args.code.map(|code| ("code", code.to_string())));
    query.extend(max_price.clone().map(|price| ("max_price", price)));
    let quote = api.send(api.request(Method::GET, &["quote"]).query(&query)).await;
    let quote: Quote = match quote {
        Ok(quote) => quote.json().await?,
        // The put itself says what is wrong.
        Err(_) if args.yes => return Ok(max_price),
        Err(error) => return Err(error),
    };
    if quote.month_max == "0" {
        return Ok(max_price);
    }
    if !context.json {
        let what = if total.is_some() { "" } else { "each GB of " };
        let name = args.name.clone().unwrap_or_else(|| args.file.display().to_string());
        let most = if quote.month == quote.month_max {
            String::new()
        } else {
            format!(", at most {}", short(&quote.month_max))
        };
        let lasts_days = free_days(&quote);
        let advance = if lasts_days >= f64::from(quote.fund_days) {
            format!("{} days are paid for in advance", quote.fund_days)
        } else {
            format!(
                "the {} credits that are free pay for about {lasts_days:.1} days of it",
                short(&quote.free)
            )
        };
        eprintln!(
            "{what}{name} as {}: about {} credits a month{most}; {advance}. Reading it once costs {} at most",
            quote.code,
            short(&quote.month),
            short(&quote.read_max)
        );
    }
    if args.yes {
        return Ok(max_price);
    }
    let can_ask = std::io::stdin().is_terminal() && std::io::stderr().is_terminal() && total.is_some();
    if !can_ask || context.json {
        let message = format!(
            "this costs about {} credits a month; add --yes to agree, or set SPARE_YES=1. --max-price bounds what is paid",
            short(&quote.month)
        );
        return Err(Reported { code: "not_confirmed".into(), message }.into());
    }
    eprint!("Go on? [y/N] ");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    if !matches!(answer.trim(), "y" | "Y" | "yes") {
        return Err(Reported { code: "not_confirmed".into(), message: "nothing was stored".into() }.into());
    }
    // What was agreed to is the bound.
    Ok(Some(quote.max_price))
}

/// Days of storage at the quoted price for which the free money lasts.
fn free_days(quote: &Quote) -> f64 {
    let credits = |text: &str| text.parse().map_or(0.0, spare_market::amount::Amount::credits);
    credits(&quote.free) / credits(&quote.month).max(f64::MIN_POSITIVE) * 365.0 / 12.0
}

/// The unfinished file of a get, with the id of the blob it belongs to.
struct Part {
    file: PathBuf,
    id_file: PathBuf,
}

impl Part {
    fn of(output: &Path) -> Self {
        let with = |suffix: &str| {
            let mut name = output.file_name().unwrap_or_default().to_owned();
            name.push(suffix);
            output.with_file_name(name)
        };
        Self { file: with(".spare-part"), id_file: with(".spare-part.id") }
    }

    /// Opens the unfinished file for appending, emptied unless it is a beginning of blob `id`, which has `bytes` bytes. Returns it and its
    /// length. It is locked as long as it is open.
    fn open(&self, id: &str, bytes: u64) -> anyhow::Result<(std::fs::File, u64)> {
        let at = || format!("cannot write {}", self.file.display());
        let file = std::fs::OpenOptions::new().append(true).create(true).open(&self.file).with_context(at)?;
        if file.try_lock().is_err() {
            bail!("another `spare get` is writing {}", self.file.display());
        }
        // What is beyond the note may not have reached the disk before a power cut.
        let noted = std::fs::read_to_string(&self.id_file).unwrap_or_default();
        let durable = noted
            .split_once(' ')
            .filter(|(known, _)| *known == id)
            .and_then(|(_, len)| len.trim().parse().ok());
        let len = durable
            .filter(|len| *len <= bytes && *len <= file.metadata().map_or(0, |m| m.len()))
            .unwrap_or(0);
        file.set_len(len).with_context(at)?;
        Ok((file, len))
    }

    /// Makes what was written so far durable, and notes how much that is.
    fn note(&self, file: &std::fs::File, id: &str) -> std::io::Result<()> {
        let len = file.metadata()?.len();
        file.sync_data()?;
        std::fs::write(&self.id_file, format!("{id} {len}\n"))
    }

    fn finish(&self, output: &Path) -> anyhow::Result<()> {
        std::fs::rename(&self.file, output).with_context(|| format!("cannot write {}", output.display()))?;
        match std::fs::remove_file(&self.id_file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let folder = output.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(std::fs::File::open(folder)?.sync_all()?)
    }
}

async fn find(api: &ApiClient, name: &str) -> anyhow::Result<BlobInfo> {
    let all: Vec<BlobInfo> = api.json(Method::GET, &["blobs"]).await?;
    let found = all.into_iter().find(|blob| blob.name == name);
    let message = format!("there is no blob named '{name}'; `spare ls` lists them");
    found.ok_or_else(|| Reported { code: "no_such_blob".into(), message }.into())
}

pub(super) async fn get(context: &Context, args: GetArgs) -> anyhow::Result<()> {
    let api = context.api()?;
    let blob = find(&api, &args.name).await?;
    let default = || PathBuf::from(args.name.rsplit('/').next().unwrap_or(&args.name));
    let output = args.output.clone().unwrap_or_else(default);
    if output == Path::new("-") {
        let mut out = tokio::io::stdout();
        let mut body = api.send(api.request(Method::GET, &["blobs", &args.name])).await?.bytes_stream();
        while let Some(piece) = body.next().await {
            let piece = piece
                .context("the node gave up in the middle; `spare get` to a file resumes and says why")?;
            match out.write_all(&piece).await {
                // A reader that has enough, as in `spare get NAME -o - | head`, is no error.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
                written => written?,
            }
        }
        return Ok(out.flush().await?);
    }
    if output.is_dir() {
        bail!("{} is a folder; name a file", output.display());
    }
    if output.exists() && !args.force {
        bail!("{} exists; add --force to overwrite it", output.display());
    }
    let bar = progress(context, Some(blob.bytes));
    let resumed = download(&api, &blob, &output, &bar).await;
    bar.finish_and_clear();
    let resumed_bytes = resumed?;
    let result = serde_json::json!({"name": blob.name, "bytes": blob.bytes, "file": output, "resumed_bytes": resumed_bytes});
    context.print(&result, |_, out| {
        line!(out, "{}: {} written to {}", blob.name, super::show::bytes(blob.bytes), output.display());
        if resumed_bytes > 0 {
            line!(
                out,
                "{} were already there from a get that was cut short",
                super::show::bytes(resumed_bytes)
            );
        }
    })
}

/// How much is written before the disk is told to begin with it.
const FLUSH_EVERY_BYTES: usize = 64 << 20;

/// Has what was written so far go to the disk while more arrives, so that little is left to wait for at the end.
struct FlushAhead {
    file: Arc<std::fs::File>,
    part: Arc<Part>,
    id: String,
    unflushed_bytes: usize,
    flushing: Option<tokio::task::JoinHandle<()>>,
}

impl FlushAhead {
    fn new(file: &std::fs::File, part: &Arc<Part>, id: &str) -> std::io::Result<Self> {
        let (file, part) = (Arc::new(file.try_clone()?), part.clone());
        Ok(Self { file, part, id: id.to_owned(), unflushed_bytes: 0, flushing: None })
    }

    fn wrote(&mut self, bytes: usize) {
        self.unflushed_bytes += bytes;
        let busy = self.flushing.as_ref().is_some_and(|task| !task.is_finished());
        if self.unflushed_bytes >= FLUSH_EVERY_BYTES && !busy {
            self.unflushed_bytes = 0;
            let (file, part, id) = (self.file.clone(), self.part.clone(), self.id.clone());
            // An error shows again when the whole file is synced.
            self.flushing = Some(tokio::task::spawn_blocking(move || drop(part.note(&file, &id))));
        }
    }
}

/// Downloads into a part file, resuming as long as there is progress, and renames it when it is whole and durable.
async fn download(api: &ApiClient, blob: &BlobInfo, output: &Path, bar: &ProgressBar) -> anyhow::Result<u64> {
    let part = Arc::new(Part::of(output));
    let (mut file, resumed_bytes) = part.open(&blob.id, blob.bytes)?;
    let mut have = resumed_bytes;
    let mut tries = 0;
    let mut flush = FlushAhead::new(&file, &part, &blob.id)?;
    while have < blob.bytes {
        bar.set_position(have);
        let before = have;
        let request = api.request(Method::GET, &["blobs", &blob.name]);
        let request = request
            .header(header::RANGE, format!("bytes={have}-"))
            .header(header::IF_RANGE, format!("\"{}\"", blob.id));
        let response = match api.send(request).await {
            Err(error) => {
                part.note(&file, &blob.id)?;
                return Err(error);
            }
            response => response?,
        };
        if response.status() != StatusCode::PARTIAL_CONTENT {
            bail!("'{}' was replaced while it was read; run the command again", blob.name);
        }
        let mut body = response.bytes_stream();
        let broken = loop {
            match body.next().await {
                None => break None,
                Some(Err(error)) => break Some(error),
                Some(Ok(piece)) => {
                    file.write_all(&piece)
                        .with_context(|| format!("cannot write {}", part.file.display()))?;
                    have += piece.len() as u64;
                    bar.set_position(have);
                    flush.wrote(piece.len());
                }
            }
        };
        // Asking again from here either goes on, or gives the reason as an error.
        tries = if have > before { 0 } else { tries + 1 };
        if let Some(error) = broken
            && tries >= GET_TRIES_MAX
        {
            part.note(&file, &blob.id)?;
            return Err(anyhow::Error::new(error)
                .context("the node gave up in the middle; the same command goes on where it stopped"));
        }
    }
    file.sync_all()?;
    // A note under way would come back after it was removed.
    if let Some(flushing) = flush.flushing.take() {
        flushing.await?;
    }
    part.finish(output)?;
    Ok(resumed_bytes)
}
