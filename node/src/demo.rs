//! `spare demo`: a whole network on this machine, in real processes, through real damage.
//!
//! The demo does nothing that a user could not do: it runs this same program's commands, kills processes, and edits a file. It
//! succeeds only if every step held.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rand::seq::IndexedRandom;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::process::{Child, Command};

use crate::api::{
    AuditInfo, Balance, BlobStat, DealInfo, MarketReport, ProviderInfo, PutDone, Quote, Status, Withdrawn,
};
use crate::recover::Recovered;

const PROVIDERS: usize = 12;
const CODE: &str = "4+8";
/// Length of a period here.
const PERIOD_S: u32 = 2;
/// Providers read what they store again and again, and fast, so that damage is found while somebody watches.
const SCRUB: [&str; 2] = ["provide.scrub_days=0", "provide.scrub_rate=1GB"];
/// How long that may take.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// A failure that lasts for this long is a strike, in seconds; hours pass for it outside a demo.
const STRIKES: &str = "client.strike_after_s=3";
/// What the client gets.
const CREDITS: &str = "1000";
/// How long it may take until every provider is promised payment.
const PAID_WITHIN: Duration = Duration::from_secs(60);
/// How long a started node may take to answer.
const START_WITHIN: Duration = Duration::from_secs(20);

/// Arguments of `spare demo`.
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Files to store, beside this program itself
    files: Vec<PathBuf>,
    /// Providers to kill. One shard is damaged as well, so 7 is the most that 4+8 survives
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(0..=12))]
    kill: u8,
    /// Leave the network running and print the commands to try
    #[arg(long)]
    keep: bool,
}

/// A node's process and its folder.
struct DemoNode {
    home: PathBuf,
    child: Child,
}

/// The demo under way: its folder, its processes and what it has shown.
struct Demo {
    program: PathBuf,
    dir: PathBuf,
    providers: Vec<Option<DemoNode>>,
    client: Option<DemoNode>,
    steps: Vec<Value>,
    quiet: bool,
}

/// Runs the demo.
///
/// # Errors
/// The first step that did not hold.
pub async fn run(args: DemoArgs, json: bool) -> anyhow::Result<()> {
    let dir =
        std::env::temp_dir().join(format!("spare-demo-{}-{:04x}", std::process::id(), rand::random::<u16>()));
    std::fs::create_dir_all(&dir)?;
    let program = std::env::current_exe()?;
    let providers = (0..PROVIDERS).map(|_| None).collect();
    let mut demo = Demo { program, dir, providers, client: None, steps: Vec::new(), quiet: json };
    let held = tokio::select! {
        held = demo.play(&args) => held,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    if args.keep {
        demo.leave_running();
    } else {
        demo.clean_up().await;
    }
    let verdict = held.is_ok();
    if json {
        println!("{}", serde_json::to_string_pretty(&json!({"held": verdict, "steps": demo.steps}))?);
    } else if verdict {
        println!("\nEvery step held.");
    }
    held
}

impl Demo {
    async fn play(&mut self, args: &DemoArgs) -> anyhow::Result<()> {
        let files = self.files(args)?;
        self.start_network().await?;
        self.fund_client().await?;
        self.show_prices(&files).await?;
        let mut stored = Vec::new();
        for file in &files {
            stored.push(self.put(file).await?);
        }
        let damaged = self.damage(&stored[0].blob.name).await?;
        self.kill(args.kill.into(), damaged).await?;
        self.read_back(&files, "Read everything back, byte for byte, through the damage").await?;
        self.damage_was_noticed(damaged).await?;
        self.lose_client().await?;
        self.recover(files.len()).await?;
        self.read_back(&files, "Read everything back again, on the recovered node").await?;
        self.settle_up().await
    }

    fn say(&mut self, step: &str, detail: Value, text: impl Into<String>) {
        let number = self.steps.len() + 1;
        let text = text.into();
        if !self.quiet {
            println!("{number:>2}. {step}");
            text.lines().for_each(|line| println!("      {line}"));
        }
        self.steps.push(json!({"step": step, "detail": detail}));
    }

    fn files(&self, args: &DemoArgs) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = vec![self.program.clone()];
        for file in &args.files {
            ensure!(file.is_file(), "{} is not a file", file.display());
            files.push(file.clone());
        }
        Ok(files)
    }

    /// Runs a command of this program and returns what it printed.
    async fn spare<T: DeserializeOwned>(&self, home: &Path, args: &[&str]) -> anyhow::Result<T> {
        let output =
            Command::new(&self.program).arg("--json").arg("--home").arg(home).args(args).output().await?;
        if !output.status.success() {
            let printed: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
            let message = printed["error"]["message"].as_str().map(str::to_owned);
            let message = message.unwrap_or_else(|| String::from_utf8_lossy(&output.stderr).into_owned());
            bail!("`spare {}` failed: {}", args.join(" "), message.trim());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("`spare {}` printed no JSON", args.join(" ")))
    }

    /// Sets up a node on address 127.0.`subnet`.1, in a network of its own as far as placement can see, and starts it.
    async fn start_node(&self, name: &str, subnet: usize, init: &[&str]) -> anyhow::Result<DemoNode> {
        let home = self.dir.join(name);
        let ip = format!("node.listen_ip=127.0.{subnet}.1");
        let operator = format!("node.operator={name}");
        let ports = ["node.libp2p_port=0", "node.direct_port=0", "node.api_addr=127.0.0.1:0"];
        let mut args = vec!["init", "--set", &ip, "--set", &operator];
        args.extend(SCRUB.iter().flat_map(|setting| ["--set", setting]));
        args.extend(ports.iter().flat_map(|port| ["--set", port]));
        args.extend(init);
        let _: Value = self.spare(&home, &args).await?;
        self.serve(name, home).await
    }

    async fn serve(&self, name: &str, home: PathBuf) -> anyhow::Result<DemoNode> {
        let log =
            std::fs::File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let mut command = Command::new(&self.program);
        command.arg("--home").arg(&home).arg("serve");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0).kill_on_drop(true);
        let mut child = command.spawn()?;
        let started = Instant::now();
        while self.spare::<Value>(&home, &["status"]).await.is_err() {
            let failed = child.try_wait()?.is_some() || started.elapsed() > START_WITHIN;
            ensure!(!failed, "{name} did not start; see {}", self.dir.join(format!("{name}.log")).display());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(DemoNode { home, child })
    }

    fn client_home(&self) -> PathBuf {
        self.dir.join("client")
    }

    async fn ticket(&self, home: &Path) -> anyhow::Result<String> {
        let ticket: Value = self.spare(home, &["ticket"]).await?;
        Ok(ticket["ticket"].as_str().unwrap_or_default().to_owned())
    }

    async fn start_network(&mut self) -> anyhow::Result<()> {
        // The first node founds the network and so is its market, besides being a provider.
        let period = PERIOD_S.to_string();
        let founding = ["--provide", "2GB", "--period-s", &period, "--set", &price_of(0)];
        self.providers[0] = Some(self.start_node("provider-01", 1, &founding).await?);
        let ticket = self.ticket(&self.dir.join("provider-01")).await?;
        for i in 1..PROVIDERS {
            let name = format!("provider-{:02}", i + 1);
            let joining = ["--provide", "2GB", "--join", &ticket, "--set", &price_of(i)];
            self.providers[i] = Some(self.start_node(&name, i + 1, &joining).await?);
        }
        self.client = Some(self.start_node("client", 100, &["--join", &ticket, "--set", STRIKES]).await?);
        let started = Instant::now();
        loop {
            let asks: Vec<ProviderInfo> = self.spare(&self.client_home(), &["asks"]).await?;
            if asks.len() == PROVIDERS {
                break;
            }
            ensure!(
                started.elapsed() < START_WITHIN,
                "the client knows {} of {PROVIDERS} providers",
                asks.len()
            );
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        // Now that all are known, the ticket names several of them: it still works when the first one is gone.
        std::fs::write(self.dir.join("ticket"), self.ticket(&self.client_home()).await?)?;
        let text = format!(
            "{PROVIDERS} provider processes at 127.0.1.1 to 127.0.{PROVIDERS}.1, each an operator and a network of its own,\nand a client at 127.0.100.1, all in {}",
            self.dir.display()
        );
        self.say("Start a network", json!({"providers": PROVIDERS}), text);
        Ok(())
    }

    async fn fund_client(&mut self) -> anyhow::Result<()> {
        let client: Status = self.spare(&self.client_home(), &["status"]).await?;
        let market = self.dir.join("provider-01");
        let _: Balance = self.spare(&market, &["market", "fund", &client.account, CREDITS]).await?;
        let started = Instant::now();
        loop {
            let balance: Balance = self.spare(&self.client_home(), &["balance"]).await?;
            if balance.free == CREDITS {
                break;
            }
            ensure!(started.elapsed() < START_WITHIN, "the client does not see its credits");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let text = format!(
            "spare market fund {}.. {CREDITS}, at provider-01, which founded the network and keeps its ledger\na period lasts {PERIOD_S} s here, and prices are high enough for seconds to be worth something",
            &client.account[..12]
        );
        self.say("Give the client money", json!({"credits": CREDITS}), text);
        Ok(())
    }

    async fn show_prices(&mut self, files: &[PathBuf]) -> anyhow::Result<()> {
        let asks: Vec<ProviderInfo> = self.spare(&self.client_home(), &["asks"]).await?;
        let mut prices: Vec<String> = asks
            .iter()
            .map(|ask| format!("{} {}", ask.operator.trim_start_matches("provider-"), ask.price))
            .collect();
        prices.sort();
        let mut lines = vec![format!("credits per TB and month: {}", prices.join(", "))];
        let mut quotes = Vec::new();
        for file in files {
            let bytes = std::fs::metadata(file)?.len();
            let api = crate::cli::ApiClient::of_home(&crate::home::Home::new(self.client_home()))?;
            let query = [("bytes", bytes.to_string()), ("code", CODE.to_owned())];
            let request = api.request(reqwest::Method::GET, &["quote"]).query(&query);
            let quote: Quote = api.send(request).await?.json().await?;
            lines.push(format!(
                "{}: {} bytes stored as {CODE}, {} credits a month",
                Self::blob_name(file),
                quote.stored_bytes,
                quote.month
            ));
            quotes.push(quote);
        }
        self.say("Ask what it costs", serde_json::to_value(quotes)?, lines.join("\n"));
        Ok(())
    }

    /// Lets periods pass until every provider that is left was audited, promised and paid, and shows who has what. The one that lost a shard has a
    /// strike, and is paid for the rest.
    async fn settle_up(&mut self) -> anyhow::Result<()> {
        let client = self.client_home();
        let alive: Vec<(String, PathBuf)> = (1..)
            .zip(&self.providers)
            .filter_map(|(i, provider)| Some((format!("provider-{i:02}"), provider.as_ref()?.home.clone())))
            .collect();
        let of = |deals: &[DealInfo], name: &str| {
            deals.iter().find(|deal| deal.operator.as_deref() == Some(name)).cloned()
        };
        let started = Instant::now();
        let deals = loop {
            let deals: Vec<DealInfo> = self.spare(&client, &["deals"]).await?;
            let is_promised = |deal: DealInfo| deal.audits > 1 && deal.promised != "0";
            if alive.iter().all(|(name, _)| of(&deals, name).is_some_and(is_promised)) {
                break deals;
            }
            ensure!(started.elapsed() < PAID_WITHIN, "not all providers were audited and promised payment");
            tokio::time::sleep(Duration::from_millis(300)).await;
        };
        let mut rows = vec![format!(
            "{:<12} {:>11} {:>7} {:>7} {:>8} {:>12} {:>12}",
            "provider", "stored", "price", "audits", "strikes", "paid", "kept by it"
        )];
        let mut table = Vec::new();
        let audits: Vec<AuditInfo> = self.spare(&client, &["audit"]).await?;
        let strikes = |name: &str| {
            let against = audits.iter().find(|audit| audit.operator.as_deref() == Some(name));
            against.map_or(0, |audit| audit.strikes.len())
        };
        for (name, home) in &alive {
            let deal = of(&deals, name).context("each has a deal")?;
            let Withdrawn { balance: Balance { earned, .. }, .. } = self.spare(home, &["withdraw"]).await?;
            let own: Vec<DealInfo> = self.spare(home, &["deals"]).await?;
            let paid = own.first().context("each has a deal")?.paid.clone();
            ensure!(paid != "0" && earned != "0", "{name} was not paid");
            rows.push(format!(
                "{name:<12} {:>11} {:>7} {:>7} {:>8} {:>12} {:>12}",
                deal.bytes,
                deal.price,
                deal.audits,
                strikes(name),
                nano(&paid),
                nano(&earned)
            ));
            table.push(json!({"provider": name, "bytes": deal.bytes, "audits": deal.audits, "strikes": strikes(name), "paid": paid, "earned": earned}));
        }
        self.say("Who stored what, and was paid", json!(table), rows.join("\n"));
        self.close_books().await
    }

    /// All money is accounted for, and another process comes to the same ledger.
    async fn close_books(&mut self) -> anyhow::Result<()> {
        let market = match &self.providers[0] {
            Some(provider) => provider.home.clone(),
            None => self.client_home(),
        };
        let report: MarketReport = self.spare(&market, &["market", "report"]).await?;
        let verified: Value = self.spare(&self.client_home(), &["market", "verify"]).await?;
        ensure!(verified["holds"] == true, "the ledger does not replay");
        let balance: Balance = self.spare(&self.client_home(), &["balance"]).await?;
        let text = format!(
            "issued {}; paid for storage and reading {}, of which the market kept {};\nthe client has {} free and {} put aside for what is stored\nspare market verify, in a process of its own: {} blocks with {} transactions replayed,\nno money was made or lost, and the state root is the same: {}..",
            report.issued,
            report.paid,
            report.fees,
            balance.free,
            balance.locked,
            verified["height"],
            verified["transactions"],
            &verified["state_root"].as_str().unwrap_or_default()[..16]
        );
        self.say("Close the books", json!({"report": report, "verified": verified, "client": balance}), text);
        Ok(())
    }

    fn blob_name(file: &Path) -> String {
        file.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    async fn put(&mut self, file: &Path) -> anyhow::Result<PutDone> {
        let path = file.to_str().context("file names are UTF-8 here")?;
        let done: PutDone = self.spare(&self.client_home(), &["put", path, "--code", CODE, "--yes"]).await?;
        ensure!(done.blob.bytes == std::fs::metadata(file)?.len(), "{path} was not stored whole");
        let text = format!(
            "spare put {path} --code {CODE}\n{} bytes, encrypted, {} shards, each countersigned by its provider under a head",
            done.blob.bytes, done.shards_sent
        );
        self.say(&format!("Put {}", done.blob.name), serde_json::to_value(&done)?, text);
        Ok(done)
    }

    /// Flips one bit in a data shard of the blob's first segment, which every read asks for first. Returns its provider.
    async fn damage(&mut self, name: &str) -> anyhow::Result<usize> {
        let stat: BlobStat = self.spare(&self.client_home(), &["stat", name, "--shards"]).await?;
        let shard = stat.shards.first().and_then(|s| s.first()).context("the blob has a shard")?;
        for (i, provider) in self.providers.iter().enumerate() {
            let Some(provider) = provider else { continue };
            let Some(file) =
                shard_file(&provider.home.join("volume/shards").join(&shard.root[..2]), &shard.root)?
            else {
                continue;
            };
            let mut bytes = std::fs::read(&file)?;
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            std::fs::write(&file, bytes)?;
            let text = format!("provider-{:02}, shard {}.., byte {middle}", i + 1, &shard.root[..16]);
            self.say("Flip one bit in a stored shard", json!({"provider": i + 1, "root": shard.root}), text);
            return Ok(i);
        }
        bail!("no provider has shard {}", shard.root)
    }

    /// SIGKILLs `count` providers, sparing the market and the damaged one as long as there are others.
    async fn kill(&mut self, count: usize, damaged: usize) -> anyhow::Result<()> {
        let mut order: Vec<usize> = (1..PROVIDERS).filter(|i| *i != damaged).collect();
        order = order.sample(&mut rand::rng(), order.len()).copied().collect();
        order.extend([0, damaged]);
        order.dedup();
        let mut killed = order[..count].to_vec();
        killed.sort_unstable();
        for i in &killed {
            if let Some(mut provider) = self.providers[*i].take() {
                provider.child.kill().await?;
            }
        }
        let names: Vec<String> = killed.iter().map(|i| format!("{:02}", i + 1)).collect();
        let text =
            format!("providers {} are gone, {} of {PROVIDERS} are left", names.join(" "), PROVIDERS - count);
        self.say(
            "Kill providers with SIGKILL",
            json!({"killed": killed.iter().map(|i| i + 1).collect::<Vec<_>>()}),
            text,
        );
        Ok(())
    }

    async fn read_back(&mut self, files: &[PathBuf], step: &str) -> anyhow::Result<()> {
        let mut lines = Vec::new();
        for file in files {
            let name = Self::blob_name(file);
            let copy = self.dir.join(format!("copy-of-{name}"));
            let target = copy.to_str().context("file names are UTF-8 here")?;
            let started = Instant::now();
            let _: Value = self.spare(&self.client_home(), &["get", &name, "-o", target, "--force"]).await?;
            let took = started.elapsed();
            ensure!(same_content(file, &copy)?, "{name} came back with other bytes");
            std::fs::remove_file(&copy)?;
            lines.push(format!("spare get {name}: identical, in {:.1} s", took.as_secs_f64()));
        }
        self.say(step, json!({"files": files.len()}), lines.join("\n"));
        Ok(())
    }

    /// The provider of the damaged shard refuses to serve it, and says why in its log: whoever read it first, a client or the scrub.
    async fn damage_was_noticed(&mut self, damaged: usize) -> anyhow::Result<()> {
        if self.providers[damaged].is_none() {
            return Ok(());
        }
        let path = self.dir.join(format!("provider-{:02}.log", damaged + 1));
        let started = Instant::now();
        // The blob may have been read from others alone; then the scrub finds it.
        let line = loop {
            let log = std::fs::read_to_string(&path)?;
            if let Some(line) = log.lines().find(|line| line.contains("is lost or damaged on the disk")) {
                break line.to_owned();
            }
            ensure!(started.elapsed() < NOTICED_WITHIN, "the damaged shard went unnoticed");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let notice = line.split_once("why=").map_or(line.as_str(), |(_, rest)| rest);
        let text = format!("provider-{:02} found it before serving it: {notice}", damaged + 1);
        self.say("The flipped bit was noticed", json!({"provider": damaged + 1}), text);
        Ok(())
    }

    async fn lose_client(&mut self) -> anyhow::Result<()> {
        let home = self.client_home();
        std::fs::copy(home.join("seed.txt"), self.dir.join("seed-on-paper.txt"))?;
        if let Some(mut client) = self.client.take() {
            client.child.kill().await?;
        }
        std::fs::remove_dir_all(&home)?;
        self.say("Lose the client's machine", json!({}), "its folder is wiped; only the 24 words are left");
        Ok(())
    }

    async fn recover(&mut self, blobs: usize) -> anyhow::Result<()> {
        let ticket = std::fs::read_to_string(self.dir.join("ticket"))?;
        let seed = self.dir.join("seed-on-paper.txt");
        let seed = seed.to_str().context("file names are UTF-8 here")?;
        self.client = Some(
            self.start_node("client", 101, &["--join", &ticket, "--set", STRIKES, "--seed-file", seed])
                .await?,
        );
        let recovered: Recovered = self.spare(&self.client_home(), &["recover"]).await?;
        ensure!(recovered.blobs == blobs, "{} of {blobs} blobs were recovered", recovered.blobs);
        let text = format!(
            "spare init --seed-file ... && spare recover\n{} blobs are listed again; {} providers answered",
            recovered.blobs, recovered.providers_answered
        );
        self.say("Recover from the seed on a new node", serde_json::to_value(&recovered)?, text);
        Ok(())
    }

    /// Lets go of the processes, so that they outlive the demo, and says how to go on.
    fn leave_running(&mut self) {
        let nodes: Vec<DemoNode> =
            self.providers.iter_mut().chain([&mut self.client]).filter_map(Option::take).collect();
        let pids: Vec<String> =
            nodes.iter().filter_map(|n| n.child.id()).map(|pid| pid.to_string()).collect();
        // Forgetting a child keeps it from being killed when it is dropped.
        nodes.into_iter().for_each(|node| std::mem::forget(node.child));
        if !self.quiet {
            println!("\nThe network goes on. Try:");
            println!("  export SPARE_HOME={}", self.client_home().display());
            println!("  {0} ls; {0} asks; {0} status", self.program.display());
            println!("and when you are done:");
            println!("  kill {}; rm -r {}", pids.join(" "), self.dir.display());
        }
        self.steps
            .push(json!({"step": "Leave the network running", "detail": {"dir": self.dir, "pids": pids}}));
    }

    async fn clean_up(&mut self) {
        for node in self.providers.iter_mut().chain([&mut self.client]).filter_map(Option::take) {
            let mut child = node.child;
            let _ = child.kill().await;
        }
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            eprintln!("warning: {} could not be removed: {error}", self.dir.display());
        }
    }
}

/// The setting of provider `i`'s price. High, since a period is short.
fn price_of(i: usize) -> String {
    format!("provide.price={}", 500 + 40 * (i * 5 % PROVIDERS))
}

/// An amount of credits in billionths, for a column.
fn nano(amount: &str) -> String {
    let amount: spare_market::amount::Amount = amount.parse().unwrap_or_default();
    format!("{:.1} n", amount.credits() * 1e9)
}

/// The file of shard `root` in a folder of shards.
fn shard_file(folder: &Path, root: &str) -> std::io::Result<Option<PathBuf>> {
    for file in std::fs::read_dir(folder)? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with(root) {
            return Ok(Some(file.path()));
        }
    }
    Ok(None)
}

fn same_content(a: &Path, b: &Path) -> std::io::Result<bool> {
    let hash = |path: &Path| -> std::io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(std::fs::File::open(path)?)?;
        Ok(hasher.finalize())
    };
    Ok(hash(a)? == hash(b)?)
}
