//! The command line: a client of the node's HTTP API, but for `init`, `serve`, `config` and `demo`.
//!
//! Results go to standard output, as text or with `--json` as JSON; progress and errors go to standard error.
//! Exit codes: 0 done, 1 failed, 2 used wrongly.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::config::{Code, Loaded, Size};
use crate::home::{Home, Ticket};
use spare_sandbox::jail::Profile;

/// Appends a line of text.
macro_rules! line {
    ($out:expr, $($text:tt)*) => {{
        use std::fmt::Write as _;
        writeln!($out, $($text)*).expect("a string takes all text");
    }};
}

mod audit;
mod doctor;
mod http;
mod job;
mod market;
mod setup;
mod show;
mod transfer;

pub use http::ApiClient;

/// Rent out idle disks and processors, store your own data on the disks of others, and run programs on their machines.
#[derive(Debug, Parser)]
#[command(name = "spare", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// The node's folder [default: ~/.spare]
    #[arg(long, global = true, env = "SPARE_HOME", value_name = "DIR")]
    home: Option<PathBuf>,
    /// Print results as JSON
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Set up a node: its keys, its settings, and the network it belongs to
    Init(InitArgs),
    /// Run the node until it is stopped
    Serve(ServeArgs),
    /// Store a file
    Put(PutArgs),
    /// Read a blob into a file
    Get(GetArgs),
    /// List blobs
    Ls,
    /// Say how a blob is stored
    Stat {
        /// The blob's name
        name: String,
        /// List every shard and who holds it
        #[arg(long)]
        shards: bool,
    },
    /// Remove a blob
    Rm {
        /// The blob's name
        name: String,
        /// Remove it also if too few providers are up to name its shards, which then stay where they are
        #[arg(long)]
        force: bool,
    },
    /// Rebuild the list of blobs from the copies that providers keep
    Recover,
    /// Say how the node is
    Status,
    /// Look for what keeps the node from doing its work, and say what to do; exit code 1 if there is a problem, which a warning is not
    Doctor,
    /// Print the line with which other nodes join this network
    Ticket,
    /// Say how much money this node's account has
    Balance,
    /// List deals: what this node has others store, what it stores for others, and how long the money lasts
    Deals {
        #[command(subcommand)]
        command: Option<DealsCommand>,
    },
    /// Have what clients have promised for storage paid out now, instead of about once a day
    Withdraw,
    /// List what is held against providers: failed reads, strikes, evidence
    Audit {
        #[command(subcommand)]
        command: Option<AuditCommand>,
    },
    /// The market: its ledger, and issuing credits
    Market {
        #[command(subcommand)]
        command: MarketCommand,
    },
    /// Run programs
    Job {
        #[command(subcommand)]
        command: JobCommand,
    },
    /// A jailed process for strangers' programs; the node starts it
    #[command(hide = true)]
    Worker {
        /// What it is for: `compile` or `run`
        profile: String,
    },
    /// List who offers room, and for how much
    Asks {
        /// Draw providers as a put would, and say of each why it was chosen or not
        #[arg(long)]
        why: bool,
    },
    /// Show the settings
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Run a whole network on this machine: put, kill, damage, get, recover, pay
    Demo(crate::demo::DemoArgs),
}

#[derive(Debug, Subcommand)]
enum DealsCommand {
    /// Begin to close a deal; what is left of its escrow comes back after 3 periods, but not within 5 minutes of its making
    Close {
        /// The deal, or the first 8 digits or more of it
        deal: String,
        /// Close it also if shards are stored under it, which are lost then
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Write evidence into a file
    Export {
        /// The evidence, as `spare audit` names it
        name: String,
        /// The file
        file: PathBuf,
    },
    /// Have a deal's provider show on the ledger that it holds what is stored, for a bond that is lost if it does
    Challenge {
        /// The deal, or the first 8 digits or more of it
        deal: String,
    },
    /// Check evidence from a file, on any machine, with or without a node
    Verify {
        /// The file
        file: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum JobCommand {
    /// Run a program at a provider, and wait for it; the exit code is the program's
    Run {
        #[command(flatten)]
        program: job::ProgramArgs,
        #[command(flatten)]
        order: job::run::OrderArgs,
    },
    /// Run a program at a provider, and do not wait
    Submit {
        #[command(flatten)]
        program: job::ProgramArgs,
        #[command(flatten)]
        order: job::run::OrderArgs,
    },
    /// Run a program once for each input file, over many providers
    Map(job::map::MapArgs),
    /// List jobs
    Ls,
    /// Say how a job is
    Status {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
    },
    /// Print what a job printed
    Logs {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
        /// Go on until it is over; the exit code is the program's then
        #[arg(long, short)]
        follow: bool,
    },
    /// Fetch the files that a job left
    Output {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
        /// Where to put them
        #[arg(long, short, value_name = "DIR")]
        output: PathBuf,
    },
    /// Stop a job; what it has cost until then is owed
    Cancel {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
    },
    /// Forget a job that is over, and what came out of it
    Rm {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
    },
    /// Write a provider's receipt into a file, with all that it takes to check it
    Receipt {
        /// The job, or the first digits of it, as `spare job ls` shows them
        job: String,
        /// Which of its orders, counted from 0
        #[arg(long, default_value_t = 0)]
        order: usize,
        /// The file
        #[arg(long, short, value_name = "FILE")]
        output: PathBuf,
    },
    /// Check a receipt from a file by running the work again, on any machine, with or without a node
    Verify {
        /// The file
        receipt: PathBuf,
    },
    /// Say of each provider whether a program would go there, for how much, and why not
    Offers {
        #[command(flatten)]
        program: job::ProgramArgs,
        #[command(flatten)]
        order: job::run::OrderArgs,
    },
    /// List jobs of others that run or wait at this node
    Work,
    /// Run a program here, without a network, in the same jail and with the same result and fuel as at a provider
    Try(job::TryArgs),
}

#[derive(Debug, Subcommand)]
enum MarketCommand {
    /// Say how the market stands
    Report,
    /// Issue credits to an account; only the market's own node can
    Fund {
        /// The account, as `spare status` shows it
        account: spare_market::keys::PublicKey,
        /// Credits, for instance 25 or 0.5
        amount: spare_market::amount::Amount,
    },
    /// Replay the whole ledger in this process, and compare with the node
    Verify,
    /// Print the line with which other nodes join this network
    Ticket,
}

#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Print all settings
    Show {
        /// Say where each value came from
        #[arg(long)]
        origin: bool,
    },
}

/// Arguments of `spare init`.
#[derive(Debug, Args)]
struct InitArgs {
    /// Join the network of this ticket, instead of founding one
    #[arg(long, value_name = "TICKET")]
    join: Option<Ticket>,
    /// Rent out this much room, for instance 500GB
    #[arg(long, value_name = "SIZE")]
    provide: Option<Size>,
    /// Use the 24 words in this file, instead of a new seed; `-` reads standard input
    #[arg(long, value_name = "FILE")]
    seed_file: Option<PathBuf>,
    /// Founding a network: length of its periods in seconds, after each of which storage is paid for
    #[arg(long, value_name = "SECONDS", default_value_t = 3600, conflicts_with = "join",
        value_parser = clap::value_parser!(u32).range(1..=604_800))]
    period_s: u32,
    /// Founding a network: the market's share of payments, in hundredths of a percent
    #[arg(long, value_name = "BPS", default_value_t = 300, conflicts_with = "join",
        value_parser = clap::value_parser!(u16).range(..=10_000))]
    fee_bps: u16,
    /// Further settings, as in `--set node.operator=ann`
    #[arg(long, value_name = "SECTION.NAME=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Settings for this run, as in `--set node.api_addr=127.0.0.1:0`
    #[arg(long, value_name = "SECTION.NAME=VALUE", value_parser = parse_setting)]
    set: Vec<(String, String)>,
}

#[derive(Debug, Args)]
struct PutArgs {
    /// The file; `-` reads standard input
    file: PathBuf,
    /// The blob's name [default: the file's name]
    #[arg(long)]
    name: Option<String>,
    /// Data and parity shards, for instance 10+20 [default: the setting client.code]
    #[arg(long, value_name = "K+PARITY")]
    code: Option<Code>,
    /// Replace a blob of that name
    #[arg(long)]
    replace: bool,
    /// Pay at most this much, in credits per TB and month [default: the setting client.max_price]
    #[arg(long, value_name = "CREDITS")]
    max_price: Option<spare_market::amount::Amount>,
    /// Do not ask before spending
    #[arg(short, long, env = "SPARE_YES", value_parser = clap::builder::BoolishValueParser::new())]
    yes: bool,
}

#[derive(Debug, Args)]
struct GetArgs {
    /// The blob's name
    name: String,
    /// Where to write; `-` writes to standard output [default: the last part of the name]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Overwrite the file
    #[arg(long)]
    force: bool,
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write SECTION.NAME=VALUE")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// What commands need to know.
struct Context {
    home: Home,
    json: bool,
}

impl Context {
    fn load_config(&self, flags: &[(String, String)]) -> anyhow::Result<Loaded> {
        Ok(crate::config::load(&self.home.config_file(), |name| std::env::var(name).ok(), flags)?)
    }

    /// The program's name as it is to be typed for this folder.
    fn program(&self) -> String {
        let is_default = std::env::home_dir().is_some_and(|home| self.home.path() == home.join(".spare"));
        if is_default { "spare".to_owned() } else { format!("spare --home {}", self.home.path().display()) }
    }

    fn api(&self) -> anyhow::Result<ApiClient> {
        ApiClient::of_home(&self.home)
    }

    /// Prints a result: as JSON, or as `text` writes it.
    fn print<T: serde::Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T, &mut String),
    ) -> anyhow::Result<()> {
        let mut out = String::new();
        if self.json {
            out = serde_json::to_string_pretty(value)?;
            out.push('\n');
        } else {
            text(value, &mut out);
        }
        print(&out)
    }
}

/// Writes to standard output. A reader that went away, as in `spare ls | head -1`, is no error.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn home(given: Option<PathBuf>) -> anyhow::Result<Home> {
    let home = given
        .filter(|path| !path.as_os_str().is_empty())
        .or_else(|| Some(std::env::home_dir()?.join(".spare")));
    home.map(Home::new).ok_or_else(|| anyhow::anyhow!("where is the node's folder? set --home or SPARE_HOME"))
}

/// Runs a command and says how it went.
pub fn run(cli: Cli) -> ExitCode {
    let json = cli.json;
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            if json {
                let error = serde_json::json!({"error": {"code": http::code_of(&error), "message": format!("{error:#}")}});
                // The exit code tells, if nobody reads.
                let _ = print(&format!("{error}\n"));
            } else {
                eprintln!("error: {error:#}");
            }
            if http::is_misuse(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// How long a node may take to let go of its files.
const STOP_WITHIN: Duration = Duration::from_secs(10);

fn work_as(profile: &str) -> anyhow::Result<ExitCode> {
    match profile {
        "compile" => Ok(spare_sandbox::worker::main(Profile::Compile)),
        "run" => Ok(spare_sandbox::worker::main(Profile::Run)),
        "devices" => Ok(spare_sandbox::worker::devices()),
        other => anyhow::bail!("there is no worker for '{other}'"),
    }
}

fn dispatch(cli: Cli) -> anyhow::Result<ExitCode> {
    if let Command::Worker { profile } = &cli.command {
        // It jails itself while it has one thread alone.
        return work_as(profile);
    }
    let context = Context { home: home(cli.home)?, json: cli.json };
    match &cli.command {
        Command::Job { command: JobCommand::Try(args) } => {
            return job::try_out(&context, args).map(ExitCode::from);
        }
        Command::Job { command: JobCommand::Verify { receipt } } => {
            return job::manage::verify(&context, receipt).map(ExitCode::from);
        }
        _ => {}
    }
    let is_node = matches!(cli.command, Command::Serve(_));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let done = match cli.command {
            Command::Doctor => return doctor::doctor(&context).await,
            Command::Init(args) => setup::init(&context, args),
            Command::Serve(args) => setup::serve(&context, &args.set).await,
            Command::Put(args) => transfer::put(&context, args).await,
            Command::Get(args) => transfer::get(&context, args).await,
            Command::Ls => show::ls(&context).await,
            Command::Stat { name, shards } => show::stat(&context, &name, shards).await,
            Command::Rm { name, force } => show::rm(&context, &name, force).await,
            Command::Recover => show::recover(&context).await,
            Command::Status => show::status(&context).await,
            Command::Ticket => show::ticket(&context).await,
            Command::Asks { why } => show::asks(&context, why).await,
            Command::Balance => market::balance(&context).await,
            Command::Deals { command } => market::deals(&context, command).await,
            Command::Audit { command } => audit::run(&context, command).await,
            Command::Withdraw => market::withdraw(&context).await,
            Command::Market { command } => market::run(&context, command).await,
            Command::Config { command: ConfigCommand::Show { origin } } => {
                setup::show_config(&context, origin)
            }
            Command::Demo(args) => crate::demo::run(args, context.json).await,
            Command::Job { command } => return job::dispatch(&context, command).await.map(ExitCode::from),
            Command::Worker { .. } => unreachable!("done above"),
        };
        done.map(|()| ExitCode::SUCCESS)
    });
    // Not longer: a read of standard input that never ends must not keep a failed command from ending. But a node has to close its
    // metadata store before the process ends, which takes a moment.
    runtime.shutdown_timeout(if is_node { STOP_WITHIN } else { Duration::ZERO });
    result
}
