//! `init`, `serve` and `config`: the commands that work on the node's folder itself.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::Context as _;
use spare_market::block::Operator;
use spare_market::genesis::{Genesis, GenesisV1};
use spare_market::keys::Seed;
use spare_proofs::cipher::Secret;
use tokio::signal::unix::{SignalKind, signal};
use zeroize::Zeroizing;

use super::{Context, InitArgs};
use crate::config::Config;
use crate::home::{HomeError, Identity, Ticket};
use crate::node::Node;
use crate::unix_now_s;

fn read_seed(file: &Path) -> anyhow::Result<Seed> {
    let mut words = Zeroizing::new(String::new());
    if file == Path::new("-") {
        std::io::stdin().take(4096).read_to_string(&mut words)?;
    } else {
        std::fs::File::open(file)
            .and_then(|f| f.take(4096).read_to_string(&mut words))
            .with_context(|| format!("cannot read the seed from {}", file.display()))?;
    }
    Ok(Seed::from_words(&words)?)
}

/// The settings that `init` writes: only what differs from the defaults.
fn config_text(args: &InitArgs, peers: &[String], operator: &str) -> anyhow::Result<String> {
    let mut settings = vec![("node.operator".to_owned(), operator.to_owned())];
    if let Some(size) = args.provide {
        settings.push(("provide.size".to_owned(), size.to_string()));
    }
    settings.extend(args.set.iter().cloned());
    // Loading checks every setting before anything is written.
    let checked = crate::config::load(Path::new("/nonexistent/config.toml"), |_| None, &settings)?;
    let defaults = toml::Table::try_from(Config::default())?;
    let mut table = toml::Table::try_from(&checked.config)?;
    for (section, value) in &mut table {
        if let (Some(values), Some(defaults)) =
            (value.as_table_mut(), defaults.get(section).and_then(|d| d.as_table()))
        {
            values.retain(|key, value| defaults.get(key) != Some(value));
        }
    }
    table.retain(|_, value| value.as_table().is_some_and(|t| !t.is_empty()));
    if !peers.is_empty() {
        let peers = peers.iter().cloned().map(toml::Value::String).collect();
        let network = table.entry("network").or_insert_with(|| toml::Value::Table(toml::Table::new()));
        if let toml::Value::Table(network) = network {
            network.insert("peers".to_owned(), toml::Value::Array(peers));
        }
    }
    Ok(format!("# `spare config show --origin` lists all settings.\n\n{}", toml::to_string(&table)?))
}

/// A new market, whose key is that of the node being set up.
fn found(args: &InitArgs, node_secret: &Secret) -> Genesis {
    let operator = Operator::new(node_secret);
    Genesis::V1(GenesisV1 {
        market: operator.public(),
        started_s: unix_now_s(),
        period_s: args.period_s,
        beacon: operator.first_beacon(),
        fee_bps: args.fee_bps,
        salt: rand::random(),
    })
}

pub(super) fn init(context: &Context, args: InitArgs) -> anyhow::Result<()> {
    if context.home.file("identity.toml").exists() {
        return Err(HomeError::Exists(context.home.path().to_owned()).into());
    }
    let seed = match &args.seed_file {
        Some(file) => read_seed(file)?,
        None => Seed::from_entropy(rand::random()),
    };
    let node_secret = Secret::new(rand::random());
    let (genesis, peers) = match &args.join {
        Some(Ticket::V1 { genesis, peers }) => (genesis.clone(), peers.clone()),
        None => (found(&args, &node_secret), Vec::new()),
    };
    genesis.check()?;
    let identity = Identity::new(&seed, genesis.network(), node_secret, unix_now_s());
    // An operator who gives no name is known by the account.
    let operator = identity.account.to_string()[..12].to_owned();
    let config = config_text(&args, &peers, &operator)?;
    context.home.create(&seed, &identity, &genesis, &config, &crate::home::new_token())?;
    let seed_file = context.home.file("seed.txt");
    let result = serde_json::json!({
        "home": context.home.path(),
        "account": identity.account.to_string(),
        "node": identity.node_key().public().to_string(),
        "seed_file": seed_file,
        "new_seed": args.seed_file.is_none(),
        "joined": args.join.is_some(),
    });
    context.print(&result, |_, out| {
        line!(out, "A node is set up in {}.", context.home.path().display());
        line!(out, "Account  {}", identity.account);
        if args.seed_file.is_none() {
            line!(
                out,
                "Seed     {}  <- copy these 24 words to paper: whoever has them has",
                seed_file.display()
            );
            line!(out, "         your data and money, and without them a lost disk means lost data");
        }
        let spare = context.program();
        line!(out, "Next     {spare} serve");
        if args.join.is_none() {
            line!(out, "         while it runs, `{spare} ticket` prints the line with which others join");
        }
    })
}

pub(super) async fn serve(context: &Context, flags: &[(String, String)]) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SPARE_LOG")
        .unwrap_or_else(|_| "warn,spare=info,libp2p_kad=error,libp2p_autonat=error".into());
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    let loaded = context.load_config(flags)?;
    let in_file = loaded.in_file();
    let config = loaded.config;
    let token = context.home.token_or_new()?;
    let api_addr = config.node.api_addr;
    let node = Node::start(&context.home, config).await?;
    node.compare_settings(in_file);
    let addr_file = context.home.file("api.addr");
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let ready = |addr: std::net::SocketAddr| {
        std::fs::write(&addr_file, format!("{addr}\n"))?;
        let room =
            node.earner.as_ref().map(|earner| earner.volume()).map_or("no room on offer".into(), |v| {
                format!("{} on offer", super::show::bytes(v.room().offered_bytes))
            });
        eprintln!(
            "spare {} is running: API on http://{addr}, {room}. Ctrl-C stops it.",
            env!("CARGO_PKG_VERSION")
        );
        Ok(())
    };
    let served = crate::api::serve(node.clone(), token, api_addr, ready, stop).await;
    let _ = std::fs::remove_file(&addr_file);
    node.close().await;
    served.with_context(|| {
        format!("cannot serve the API on {api_addr}; set node.api_addr to another address, or to port 0")
    })
}

pub(super) fn show_config(context: &Context, origin: bool) -> anyhow::Result<()> {
    let loaded = context.load_config(&[])?;
    let json: serde_json::Map<String, serde_json::Value> = loaded
        .origins
        .iter()
        .map(|(key, (value, from))| {
            let value = serde_json::to_value(value).unwrap_or_default();
            let shown =
                if origin { serde_json::json!({"value": value, "origin": from.to_string()}) } else { value };
            (key.clone(), shown)
        })
        .collect();
    context.print(&json, |_, out| {
        for (key, (value, from)) in &loaded.origins {
            let line = format!("{key} = {value}");
            if origin { line!(out, "{line:<50} # {from}") } else { line!(out, "{line}") }
        }
    })
}
