//! Configuration: defaults, then `config.toml`, then the environment, then flags. Unknown keys are refused.
//!
//! Each key `section.name` may be set by the environment variable `SPARE_SECTION_NAME` and by `--set section.name=value`.
//! [`Loaded`] remembers where each value came from.

mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use spare_market::amount::{Amount, PICO_PER_CREDIT, PRICE_MAX};
use spare_market::job::ComputePrices;
use spare_market::standing::STRIKE_SPACING_S;
use spare_proofs::geometry::Geometry;

pub use values::{Advertised, Code, Credits, MaxPrice, Size};

/// How shards travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// Direct connections, and libp2p streams where none can be made.
    Auto,
    /// Direct connections only.
    Direct,
    /// libp2p streams only.
    Stream,
}

/// Whether this node introduces peers behind NATs to others. It relays what they need to agree on a time, and no data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Relay {
    /// When others can reach this node.
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// The `[node]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Who runs this node. Shards of one segment never go to two nodes of one operator.
    pub operator: String,
    /// Where this node is, in the operator's own words.
    pub region: String,
    /// Address to listen on.
    pub listen_ip: IpAddr,
    /// Address to tell others, where it differs from the one listened on; empty for none.
    pub advertise_ip: Advertised,
    /// UDP port of libp2p; 0 picks a free one.
    pub libp2p_port: u16,
    /// UDP port of direct transfers; 0 picks a free one.
    pub direct_port: u16,
    /// Address of the HTTP API; port 0 picks a free one.
    pub api_addr: SocketAddr,
    /// How shards travel.
    pub transport: Transport,
    /// Whether this node introduces peers behind NATs to others.
    pub relay: Relay,
    /// Whether the router is asked by UPnP to forward both UDP ports.
    pub upnp: bool,
}

/// The `[provide]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProvideConfig {
    /// Room to rent out; 0 offers none.
    pub size: Size,
    /// Folder for shards; empty for `volume` in the node's folder.
    pub dir: String,
    /// Price of storage, in credits per TB and month.
    pub price: Credits,
    /// Price of reading, in credits per TB.
    pub read_price: Credits,
    /// Periods without a client's voucher after which payment is claimed on the ledger, by showing it what is stored; 0 for never.
    pub claim_after: u16,
    /// Credits that are pledged for each new deal, at most half of what the account has free. What is stored and cannot be shown costs of it.
    pub collateral: Credits,
    /// Bytes per second at which stored shards are read again to find rot; 0 for never.
    pub scrub_rate: Size,
    /// Days from the start of one pass over all shards to that of the next; 0 for one pass after the other.
    pub scrub_days: u16,
}

/// The `[client]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientConfig {
    /// The code of new blobs: data shards + parity shards.
    pub code: Code,
    /// Highest price of storage that is paid, in credits per TB and month; empty for any.
    pub max_price: MaxPrice,
    /// Days of storage that are paid for in advance. What is not used comes back.
    pub fund_days: u16,
    /// Periods for which payment is promised in advance, so that providers are paid while this node sleeps. At most 30.
    pub presign_periods: u8,
    /// Seconds for which a provider's failure has to last before it is a strike, and between two strikes.
    pub strike_after_s: u32,
    /// The most that one provider's run of a job may cost, in credits.
    pub max_job_cost: Credits,
    /// How many jobs of a hundred are run again to check their results.
    pub check_percent: u8,
    /// Node keys of the verifiers that orders of jobs name, for when results differ; empty for the market's node.
    pub verifiers: Vec<String>,
}

/// The `[compute]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ComputeConfig {
    /// Whether jobs of others are run here.
    pub offer: bool,
    /// Jobs that run at the same time; 0 for as many as there are processor cores.
    pub slots: u16,
    /// Memory that all jobs together may use; 0 for half of what the machine has.
    pub memory: Size,
    /// Most output of one job.
    pub output: Size,
    /// Room on disk for what jobs need and what comes out of them, of others and of this node's own.
    pub room: Size,
    /// Price of starting jobs, in credits per 1000.
    pub start_price: Credits,
    /// Price of running, in credits per 10^12 fuel, which take minutes of a processor core.
    pub fuel_price: Credits,
    /// Price of memory that a job may use, in credits per GiB and 10^12 fuel.
    pub memory_price: Credits,
    /// Price of output, in credits per TB.
    pub output_price: Credits,
    /// Node keys of verifiers, beside the market's node, that decide when a client says that a result is wrong.
    pub verifiers: Vec<String>,
    /// Whether this node judges disputes that name it, for a fee. The market's node always does.
    pub verify: bool,
}

impl ComputeConfig {
    /// The prices, or why there are none.
    ///
    /// # Errors
    /// Which price is too high.
    pub fn prices(&self) -> Result<ComputePrices, String> {
        let per = |price: Credits, name: &str, numerator: u128, denominator: u128| {
            let pico = price.0.0.saturating_mul(numerator) / denominator;
            u64::try_from(pico)
                .ok()
                .filter(|pico| *pico <= PRICE_MAX)
                .ok_or_else(|| format!("compute.{name} is more than a price may be"))
        };
        Ok(ComputePrices {
            start: per(self.start_price, "start_price", 1, 1000)?,
            gfuel: per(self.fuel_price, "fuel_price", 1, 1000)?,
            gib_gfuel: per(self.memory_price, "memory_price", 1, 1000)?,
            output_gib: per(self.output_price, "output_price", 1 << 30, 1_000_000_000_000)?,
        })
    }
}

/// The `[challenge]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChallengeConfig {
    /// Deals of others that are asked about in a period; 0 for none. What is won from faults is this node's.
    pub deals_per_period: u32,
    /// Challenges that may be open on the ledger at once, each of which has a bond of 0.001 credits at stake.
    pub open_max: u16,
}

/// The `[network]` section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// Peers to join through, as multiaddrs that end in `/p2p/...`.
    pub peers: Vec<String>,
    /// A new node does not replay a ledger that has more blocks than this, but begins with its state as the market signed it. The market itself,
    /// and a node that began, go on from where they are.
    pub snapshot_after: u64,
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The `[node]` section.
    pub node: NodeConfig,
    /// The `[provide]` section.
    pub provide: ProvideConfig,
    /// The `[compute]` section.
    pub compute: ComputeConfig,
    /// The `[client]` section.
    pub client: ClientConfig,
    /// The `[challenge]` section.
    pub challenge: ChallengeConfig,
    /// The `[network]` section.
    pub network: NetworkConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: NodeConfig {
                operator: String::new(),
                region: String::new(),
                listen_ip: IpAddr::from([0, 0, 0, 0]),
                advertise_ip: Advertised(None),
                libp2p_port: 4710,
                direct_port: 4711,
                api_addr: SocketAddr::from(([127, 0, 0, 1], 4712)),
                transport: Transport::Auto,
                relay: Relay::Auto,
                upnp: true,
            },
            provide: ProvideConfig {
                size: Size(0),
                dir: String::new(),
                price: Credits(Amount(2 * PICO_PER_CREDIT)),
                read_price: Credits(Amount(PICO_PER_CREDIT)),
                claim_after: 1,
                collateral: Credits(Amount::ZERO),
                scrub_rate: Size(8_000_000),
                scrub_days: 14,
            },
            compute: ComputeConfig {
                offer: false,
                slots: 0,
                memory: Size(0),
                output: Size(1 << 30),
                room: Size(10 << 30),
                start_price: Credits(Amount(PICO_PER_CREDIT / 100)),
                fuel_price: Credits(Amount(PICO_PER_CREDIT / 200)),
                memory_price: Credits(Amount(PICO_PER_CREDIT / 500)),
                output_price: Credits(Amount(PICO_PER_CREDIT)),
                verifiers: Vec::new(),
                verify: false,
            },
            client: ClientConfig {
                code: Code(Geometry::new(4, 8).expect("4+8 is a code")),
                max_price: MaxPrice(None),
                fund_days: 30,
                presign_periods: 0,
                strike_after_s: STRIKE_SPACING_S as u32,
                max_job_cost: Credits(Amount(PICO_PER_CREDIT)),
                check_percent: 5,
                verifiers: Vec::new(),
            },
            challenge: ChallengeConfig { deals_per_period: 0, open_max: 10 },
            network: NetworkConfig { peers: Vec::new(), snapshot_after: 10_000 },
        }
    }
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not valid TOML: {error}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why.
        error: Box<toml::de::Error>,
    },
    /// A key that does not exist.
    #[error("{origin} sets '{key}', which is not a setting; `spare config show` lists them all")]
    UnknownKey {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
    },
    /// A value of the wrong kind.
    #[error("{origin} sets '{key}' wrongly: {error}")]
    Value {
        /// The key.
        key: String,
        /// Where it was set.
        origin: Origin,
        /// Why.
        error: String,
    },
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Built in.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Environment(name) => write!(f, "${name}"),
            Self::Flag => f.write_str("command line"),
        }
    }
}

/// A configuration and where each of its values came from.
pub struct Loaded {
    /// The values.
    pub config: Config,
    /// For each `section.name`, the value in TOML and its origin.
    pub origins: BTreeMap<String, (toml::Value, Origin)>,
}

impl Loaded {
    /// The settings that the file makes, as TOML.
    pub fn in_file(&self) -> BTreeMap<String, String> {
        let in_file = self.origins.iter().filter(|(_, (_, origin))| matches!(origin, Origin::File(_)));
        in_file.map(|(key, (value, _))| (key.clone(), value.to_string())).collect()
    }
}

/// Loads the configuration from `file` (which may be missing), the environment and `flags` (`section.name`, value).
///
/// # Errors
/// [`ConfigError`] naming the key and where it was set.
pub fn load(
    file: &Path,
    environment: impl Fn(&str) -> Option<String>,
    flags: &[(String, String)],
) -> Result<Loaded, ConfigError> {
    let defaults = toml::Table::try_from(Config::default()).expect("the defaults are TOML");
    let mut values: BTreeMap<String, (toml::Value, Origin)> =
        leaves(&defaults).into_iter().map(|(key, value)| (key, (value, Origin::Default))).collect();
    for (key, value) in leaves(&read_table(file)?) {
        set(&mut values, key, value, Origin::File(file.to_owned()))?;
    }
    for key in values.keys().cloned().collect::<Vec<_>>() {
        let name = format!("SPARE_{}", key.replace('.', "_").to_uppercase());
        if let Some(text) = environment(&name) {
            set_text(&mut values, key, &text, Origin::Environment(name))?;
        }
    }
    for (key, text) in flags {
        set_text(&mut values, key.clone(), text, Origin::Flag)?;
    }
    let config = build(&values)?;
    Ok(Loaded { config, origins: values })
}

/// Reads a TOML file; a missing one is an empty table.
fn read_table(file: &Path) -> Result<toml::Table, ConfigError> {
    match std::fs::read_to_string(file) {
        Ok(text) => text
            .parse()
            .map_err(|error| ConfigError::Syntax { path: file.to_owned(), error: Box::new(error) }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(toml::Table::new()),
        Err(error) => Err(ConfigError::Read { path: file.to_owned(), error }),
    }
}

fn leaves(table: &toml::Table) -> Vec<(String, toml::Value)> {
    let mut all = Vec::new();
    for (section, value) in table {
        match value {
            toml::Value::Table(inner) => {
                all.extend(inner.iter().map(|(k, v)| (format!("{section}.{k}"), v.clone())))
            }
            other => all.push((section.clone(), other.clone())),
        }
    }
    all
}

type Values = BTreeMap<String, (toml::Value, Origin)>;

fn set(values: &mut Values, key: String, value: toml::Value, origin: Origin) -> Result<(), ConfigError> {
    let Some(place) = values.get_mut(&key) else { return Err(ConfigError::UnknownKey { key, origin }) };
    let old = std::mem::replace(place, (value, origin.clone()));
    // Build at once, so that the error names the setting at fault.
    build(values).map(drop).map_err(|error| match error {
        ConfigError::Value { error, .. } => ConfigError::Value { key: key.clone(), origin, error },
        other => other,
    })?;
    drop(old);
    let peers = if key == "network.peers" { values[&key].0.as_array() } else { None };
    for peer in peers.into_iter().flatten().filter_map(toml::Value::as_str) {
        if let Err(error) = peer.parse::<libp2p::Multiaddr>() {
            let error = format!("'{peer}' is no multiaddr: {error}");
            return Err(ConfigError::Value { key, origin: values["network.peers"].1.clone(), error });
        }
    }
    Ok(())
}

fn set_text(values: &mut Values, key: String, text: &str, origin: Origin) -> Result<(), ConfigError> {
    let wrong = |error: String| ConfigError::Value { key: key.clone(), origin: origin.clone(), error };
    let value = match values.get(&key).map(|(value, _)| value) {
        Some(toml::Value::Integer(_)) => {
            toml::Value::Integer(text.parse().map_err(|_| wrong(format!("'{text}' is not a number")))?)
        }
        Some(toml::Value::Boolean(_)) => {
            toml::Value::Boolean(text.parse().map_err(|_| wrong(format!("'{text}' is not true or false")))?)
        }
        Some(toml::Value::Array(_)) => {
            let items = text.split(',').filter(|s| !s.is_empty());
            toml::Value::Array(items.map(|s| toml::Value::String(s.trim().to_owned())).collect())
        }
        _ => toml::Value::String(text.to_owned()),
    };
    set(values, key, value, origin)
}

fn build(values: &Values) -> Result<Config, ConfigError> {
    let mut table = toml::Table::new();
    for (key, (value, _)) in values {
        let (section, name) = key.split_once('.').expect("settings are section.name");
        let section = table.entry(section).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        section.as_table_mut().expect("sections are tables").insert(name.to_owned(), value.clone());
    }
    table.try_into().map_err(|error: toml::de::Error| ConfigError::Value {
        key: String::new(),
        origin: Origin::Default,
        error: error.message().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_text(text: &str, env: &[(&str, &str)], flags: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let flags: Vec<_> = flags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        load(&file, |name| env.iter().find(|(k, _)| *k == name).map(|(_, v)| (*v).to_owned()), &flags)
    }

    #[test]
    fn later_sources_win_and_are_remembered() {
        let loaded = load_text(
            "[node]\nlibp2p_port = 1\ndirect_port = 1\noperator = \"ann\"\n",
            &[
                ("SPARE_NODE_LIBP2P_PORT", "2"),
                ("SPARE_PROVIDE_SIZE", "1.5GB"),
                ("SPARE_NODE_DIRECT_PORT", "2"),
            ],
            &[("node.direct_port", "3")],
        )
        .unwrap();
        assert_eq!((loaded.config.node.libp2p_port, loaded.config.node.direct_port), (2, 3));
        assert_eq!(loaded.config.provide.size, Size(1_500_000_000));
        assert_eq!(loaded.origins["node.direct_port"].1, Origin::Flag);
        assert_eq!(
            loaded.origins["node.libp2p_port"].1,
            Origin::Environment("SPARE_NODE_LIBP2P_PORT".into())
        );
        assert_eq!(loaded.origins["client.code"].1, Origin::Default);
    }

    #[test]
    fn mistakes_name_the_key_and_the_place() {
        let error = |text: &str, env: &[(&str, &str)]| load_text(text, env, &[]).err().unwrap().to_string();
        assert!(
            error("[node]\nlisten_pi = \"::1\"", &[]).contains("'node.listen_pi', which is not a setting")
        );
        assert!(error("[node]\nlisten_ip = \"here\"", &[]).contains("'node.listen_ip' wrongly"));
        assert!(
            error("", &[("SPARE_CLIENT_CODE", "4+0")])
                .contains("$SPARE_CLIENT_CODE sets 'client.code' wrongly")
        );
        assert!(error("", &[("SPARE_PROVIDE_SIZE", "much")]).contains("not a size"));
        assert!(error("[node]\nadvertise_ip = \"myhost\"", &[]).contains("not an IP address"));
        assert!(error("[network]\npeers = [\"/ip4/1.2.3\"]", &[]).contains("'network.peers' wrongly"));
        assert!(error("[node", &[]).contains("not valid TOML"));
        assert!(error("[provide]\nprice = \"cheap\"", &[]).contains("not an amount of credits"));
        assert!(error("", &[("SPARE_CLIENT_MAX_PRICE", "99999999")]).contains("more than a price may be"));
    }

    #[test]
    fn sizes_print_as_they_are_read() {
        for text in ["500GB", "2TiB", "10MiB", "1234567B", "0B"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("1234567".parse(), Ok(Size(1_234_567)));
        assert!("12QB".parse::<Size>().is_err());
        assert!("99999999999TiB".parse::<Size>().is_err());
    }
}
