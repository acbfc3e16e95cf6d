//! A network of real `spare` processes, each provider at 127.x.i.1, driven by the command line.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use spare::home::Ticket;
use spare::limits::BLOCKS_MAX_BYTES;
use spare_market::block::{Block, Ledger};
use spare_proofs::encode::from_bytes;

/// How long something that needs no outside help may take before a test gives up on it.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Nodes set up in this process, which is the second number of their addresses.
static NODES: AtomicU8 = AtomicU8::new(1);

/// The built program, beside this test's own executable.
pub fn program() -> PathBuf {
    let here = std::env::current_exe().expect("a test has an executable");
    let beside = |dir: &Path| Some(dir.join("spare")).filter(|p| p.is_file());
    let found = here.ancestors().skip(1).take(2).find_map(beside);
    found.expect("the program is built first: `make test` does, or `cargo build --release --workspace`")
}

/// Waits until `probe` gives a value.
///
/// # Panics
/// When [`PATIENCE`] runs out; `what` says what was waited for.
pub fn wait_for<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// How a node started.
#[derive(Debug)]
pub enum Started {
    /// It runs.
    Well,
    /// It runs, and cannot say how it is: what it says instead.
    Ailing(String),
    /// It ended: what it said.
    Not(String),
}

/// A node: its folder, and its process while it runs.
pub struct Node {
    /// The folder.
    pub home: PathBuf,
    child: Option<Child>,
    /// The network namespace that it and its commands run in.
    namespace: Option<String>,
    /// Settings that give a restarted node the ports it had.
    ports: Vec<String>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Node {
    /// Sets up a node in `home` at address 127.x.`subnet`.1, with free ports. No other node of this process has the address, so that nobody takes a
    /// port while the node is down.
    ///
    /// # Panics
    /// When `spare init` fails.
    pub fn init(home: PathBuf, subnet: u8, args: &[&str]) -> Self {
        let node = Self { home, child: None, namespace: None, ports: Vec::new() };
        let ip = format!("node.listen_ip=127.{}.{subnet}.1", NODES.fetch_add(1, Ordering::Relaxed));
        let fixed = ["--set", &ip, "--set", "node.libp2p_port=0", "--set", "node.direct_port=0"];
        let api = ["--set", "node.api_addr=127.0.0.1:0"];
        node.ok(&[&["init"], &fixed[..], &api, args].concat());
        node
    }

    /// A folder that is no node's, for commands that need none.
    pub fn bare(home: PathBuf) -> Self {
        Self { home, child: None, namespace: None, ports: Vec::new() }
    }

    /// Sets up a node in `home` that lives in a network namespace, on its addresses there and the usual ports.
    ///
    /// # Panics
    /// When `spare init` fails.
    pub fn init_in(home: PathBuf, namespace: &str, args: &[&str]) -> Self {
        let node = Self { home, child: None, namespace: Some(namespace.to_owned()), ports: Vec::new() };
        node.ok(&[&["init"], args].concat());
        node
    }

    /// A command of the program on this node's folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match &self.namespace {
            None => Command::new(program()),
            // `ip` becomes the program, so a signal to its process arrives there.
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program());
                command
            }
        };
        command.arg("--home").arg(&self.home).arg("--json").args(args).stdin(Stdio::null());
        command.env("SPARE_YES", "1");
        command
    }

    /// Runs a command to its end.
    ///
    /// # Panics
    /// When the program cannot be run.
    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program runs")
    }

    /// Runs a command that succeeds, and returns what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ok(&self, args: &[&str]) -> Value {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success(),
            "spare {args:?} failed: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("spare {args:?} printed no JSON ({e}): {text}"))
    }

    /// Runs a command that fails, and returns its error's code and message.
    ///
    /// # Panics
    /// When it succeeds, or ends otherwise than with exit code 1 or 2 and an error in JSON.
    pub fn fails(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "spare {args:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let error: Value = serde_json::from_str(&text)
            .unwrap_or_else(|e| panic!("spare {args:?} printed no JSON ({e}): {text}"));
        let field =
            |name: &str| error["error"][name].as_str().expect("errors have a code and a message").to_owned();
        (field("code"), field("message"))
    }

    /// Starts the node and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start(&mut self) -> &mut Self {
        let mut command = self.command(&["serve"]);
        command.args(self.ports.iter().flat_map(|setting| ["--set", setting]));
        self.start_by(command)
    }

    /// Starts the node by a command of the caller's, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub fn start_by(&mut self, command: Command) -> &mut Self {
        self.spawn(command);
        wait_for("a started node", || self.run(&["status"]).status.success().then_some(()));
        let status = self.status();
        let port = |text: &str, split: char, field: usize| {
            text.split(split).nth(field).expect("addresses have ports").to_owned()
        };
        let direct = port(status["direct"][0].as_str().expect("a node listens"), ':', 1);
        let libp2p = port(status["libp2p"][0].as_str().expect("a node listens"), '/', 4);
        self.ports = vec![format!("node.direct_port={direct}"), format!("node.libp2p_port={libp2p}")];
        self
    }

    /// Starts the node, and waits until it answers or has ended.
    ///
    /// # Panics
    /// When it does neither.
    pub fn try_start(&mut self) -> Started {
        let said_before = self.log().len();
        let mut command = self.command(&["serve"]);
        command.args(self.ports.iter().flat_map(|setting| ["--set", setting]));
        self.spawn(command);
        let started = wait_for("a node to start or to end", || {
            if self.has_ended() {
                return Some(Started::Not(String::new()));
            }
            let status = self.run(&["status"]);
            let said = String::from_utf8_lossy(&status.stdout).into_owned();
            match status.status.success() {
                true => Some(Started::Well),
                false => said.contains("\"internal\"").then_some(Started::Ailing(said)),
            }
        });
        if let Started::Not(_) = started {
            self.kill();
            return Started::Not(self.log().split_off(said_before));
        }
        started
    }

    /// Starts the node so that it ends as by SIGKILL at a named point, which may be at once.
    ///
    /// # Panics
    /// When the program cannot be run.
    pub fn start_to_crash(&mut self, point: &str) {
        let mut command = self.command(&["serve"]);
        command.args(self.ports.iter().flat_map(|setting| ["--set", setting])).env("SPARE_CRASH_AT", point);
        self.spawn(command);
        wait_for("a node to start or to crash", || {
            (self.has_ended() || self.run(&["status"]).status.success()).then_some(())
        });
    }

    fn spawn(&mut self, mut command: Command) {
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_file())
            .expect("a log can be written");
        // With `--json` an error is on standard output.
        let also = log.try_clone().expect("a file can be written from two sides");
        self.child = Some(command.stdout(also).stderr(log).spawn().expect("the program runs"));
    }

    /// Whether the node's process has ended by itself.
    ///
    /// # Panics
    /// When it cannot be asked.
    pub fn has_ended(&mut self) -> bool {
        self.child.as_mut().is_none_or(|child| child.try_wait().expect("a child can be asked").is_some())
    }

    fn log_file(&self) -> PathBuf {
        self.home.with_extension("log")
    }

    /// What the node has logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The process id while the node runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Ends the node's process as Ctrl-C does, and returns its exit code.
    ///
    /// # Panics
    /// When it does not run.
    pub fn stop(&mut self) -> Option<i32> {
        let mut child = self.child.take().expect("the node runs");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("a child can be signalled");
        child.wait().expect("a child can be waited for").code()
    }

    /// Ends the node's process with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
            // The process could not take its address back.
            let _ = std::fs::remove_file(self.home.join("api.addr"));
        }
    }

    /// Base URL of the node's API, and its token.
    ///
    /// # Panics
    /// When the node does not run.
    pub fn api(&self) -> (String, String) {
        let read =
            |name: &str| std::fs::read_to_string(self.home.join(name)).expect("a running node has this file");
        (format!("http://{}/v1", read("api.addr").trim()), read("api.token").trim().to_owned())
    }

    /// The node's status.
    ///
    /// # Panics
    /// When it does not answer.
    pub fn status(&self) -> Value {
        self.ok(&["status"])
    }
}

/// A running network: providers and a client that knows them all.
pub struct Net {
    /// Where all folders are.
    pub dir: tempfile::TempDir,
    /// The providers. The first is the one through which the others joined.
    pub providers: Vec<Node>,
    /// The client.
    pub client: Node,
    /// The line with which further nodes join.
    pub ticket: String,
}

impl Net {
    /// Starts `providers` providers and a client.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn start(providers: u8) -> Self {
        Self::start_with(providers, "10GB", &[])
    }

    /// Starts `providers` providers that offer `room` each, and a client that is set up with `client_args`.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn start_with(providers: u8, room: &str, client_args: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a folder can be made"), providers, room, client_args)
    }

    /// As [`Self::start_with`], in a folder of the caller's.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn start_in(dir: tempfile::TempDir, providers: u8, room: &str, client_args: &[&str]) -> Self {
        Self::found_in(dir, providers, room, &[], &[], client_args)
    }

    /// Starts `providers` providers that read what they store again and again, and a client.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn start_scrubbing(providers: u8) -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        Self::found_in(dir, providers, "10GB", &[], &["--set", "provide.scrub_days=0"], &[])
    }

    /// Starts `providers` providers that ask `price` credits per TB and month, in a network whose periods last `period_s` seconds.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn start_market(providers: u8, period_s: u32, price: &str) -> Self {
        let (period_s, price) = (period_s.to_string(), format!("provide.price={price}"));
        let dir = tempfile::tempdir().expect("a folder can be made");
        Self::found_in(dir, providers, "10GB", &["--period-s", &period_s], &["--set", &price], &[])
    }

    /// Starts a network whose first provider is set up with `founding` and all with `providing`, and a client that is set up with `client_args`.
    ///
    /// # Panics
    /// When a node does not start.
    pub fn found(providers: u8, founding: &[&str], providing: &[&str], client_args: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder can be made");
        Self::found_in(dir, providers, "10GB", founding, providing, client_args)
    }

    fn found_in(
        dir: tempfile::TempDir,
        providers: u8,
        room: &str,
        founding: &[&str],
        providing: &[&str],
        client_args: &[&str],
    ) -> Self {
        let path = |name: &str| dir.path().join(name);
        let providing = [&["--provide", room], providing].concat();
        let mut first = Node::init(path("provider-1"), 1, &[&providing, founding].concat());
        first.start();
        let ticket = first.ok(&["ticket"])["ticket"].as_str().expect("a ticket is text").to_owned();
        let mut all = vec![first];
        for i in 2..=providers {
            let joining = [&providing[..], &["--join", &ticket]].concat();
            let mut node = Node::init(path(&format!("provider-{i}")), i, &joining);
            node.start();
            all.push(node);
        }
        let mut client = Node::init(path("client"), 200, &[&["--join", &ticket], client_args].concat());
        client.start();
        let net = Self { dir, providers: all, client, ticket };
        net.wait_for_providers(providers.into());
        net.fund("1000");
        net
    }

    /// Issues credits to the client, and waits until it has them.
    ///
    /// # Panics
    /// When it does not come to.
    pub fn fund(&self, credits: &str) {
        self.fund_node(&self.client, credits);
    }

    /// Issues credits to a node's account, and waits until it has them.
    ///
    /// # Panics
    /// When it does not come to.
    pub fn fund_node(&self, node: &Node, credits: &str) {
        let account = node.status()["account"].as_str().expect("a node has an account").to_owned();
        let height = self.providers[0].ok(&["market", "fund", &account, credits])["height"].as_u64();
        wait_for("a node's ledger to know its money", || {
            (node.ok(&["balance"])["height"].as_u64() >= height).then_some(())
        });
    }

    /// Waits until the client knows `count` providers.
    ///
    /// # Panics
    /// When it does not come to.
    pub fn wait_for_providers(&self, count: usize) {
        wait_for("the client to know all providers", || {
            (self.client.ok(&["asks"]).as_array().map_or(0, Vec::len) >= count).then_some(())
        });
    }

    /// The ledger, replayed from the market's blocks.
    ///
    /// # Panics
    /// When it does not replay.
    pub async fn ledger(&self) -> Ledger {
        let Ticket::V1 { genesis, .. } = self.ticket.parse().expect("a ticket");
        let mut ledger = Ledger::new(genesis).expect("a genesis that founded a network");
        let (url, token) = self.providers[0].api();
        let http = reqwest::Client::builder().no_proxy().build().expect("a client can be made");
        loop {
            let from = ledger.tip().height + 1;
            let request = http.get(format!("{url}/market/blocks?from={from}")).bearer_auth(&token);
            let answer = request.send().await.and_then(reqwest::Response::error_for_status).expect("blocks");
            let bytes = answer.bytes().await.expect("blocks");
            let blocks: Vec<Block> = from_bytes(&bytes, BLOCKS_MAX_BYTES).expect("blocks decode");
            if blocks.is_empty() {
                return ledger;
            }
            for block in blocks {
                ledger.accept(block).expect("every rule holds");
            }
        }
    }

    /// A file of `bytes` bytes that do not compress, different for each `seed`.
    ///
    /// # Panics
    /// When the disk is full.
    pub fn file(&self, name: &str, bytes: u64, seed: u8) -> PathBuf {
        let path = self.dir.path().join(name);
        let mut out = std::io::BufWriter::new(std::fs::File::create(&path).expect("a file can be written"));
        write_random(&mut out, bytes, seed).expect("a file can be written");
        path
    }

    /// Reads a blob back through the client and returns it.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn read(&self, name: &str) -> Vec<u8> {
        let copy = self.dir.path().join("copy");
        self.client.ok(&["get", name, "-o", copy.to_str().expect("paths are UTF-8"), "--force"]);
        std::fs::read(copy).expect("the copy is there")
    }

    /// Files of all shards that provider `i` holds.
    ///
    /// # Panics
    /// When its folder cannot be read.
    pub fn shard_files(&self, i: usize) -> Vec<PathBuf> {
        let shards = self.providers[i].home.join("volume/shards");
        let folders = std::fs::read_dir(shards).expect("a provider has shards");
        let files = folders.flat_map(|f| std::fs::read_dir(f.expect("readable").path()).expect("readable"));
        files.map(|f| f.expect("readable").path()).collect()
    }
}

/// Writes `bytes` pseudo-random bytes.
///
/// # Errors
/// When `out` fails.
pub fn write_random(out: &mut impl std::io::Write, bytes: u64, seed: u8) -> std::io::Result<()> {
    let mut stream = blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof();
    let mut buffer = vec![0; 1 << 20];
    let mut left = bytes;
    while left > 0 {
        let take = left.min(buffer.len() as u64) as usize;
        stream.fill(&mut buffer[..take]);
        out.write_all(&buffer[..take])?;
        left -= take as u64;
    }
    out.flush()
}
