//! The node's folder: identity, secrets and the lock that keeps it to one process.
//!
//! ```text
//! $SPARE_HOME/config.toml     settings
//!             seed.txt  0600  24 words: the account and all its data. Keep a copy elsewhere; the node runs without it
//!             identity.toml 0600  network, node key, derived keys, the account's grant to this node key
//!             api.token 0600  bearer token of the HTTP API
//!             api.addr        where the API listens while the node runs
//!             meta/           RocksDB
//!             volume/         shards for others
//!             lock            held while a node runs
//! ```

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use data_encoding::{BASE32_NOPAD, HEXLOWER};
use libp2p::Multiaddr;
use serde::{Deserialize, Serialize};
use spare_market::amount::SUPPLY_MAX;
use spare_market::genesis::Genesis;
use spare_market::grant::{Authority, Grant, Scope};
use spare_market::keys::{PublicKey, Seed, SigningSecret};
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_proofs::cipher::Secret;
use spare_proofs::encode::{from_bytes, to_bytes};
use zeroize::Zeroizing;

/// How long the grant made by `spare init` lasts, in seconds: ten years.
const GRANT_LIFE_S: u64 = 10 * 365 * 24 * 3600;

/// What to do about a damaged identity.
const REPLACE: &str = "Put the file back from a copy. Without one, move the folder away and set up a node anew, with --seed-file for the same account";

/// Why the folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HomeError {
    /// There is no node here.
    #[error("there is no node in {0}; run `spare init` first, or set --home or SPARE_HOME")]
    Missing(PathBuf),
    /// There already is one.
    #[error("there already is a node in {0}; nothing was changed")]
    Exists(PathBuf),
    /// There was a node, whose identity is gone.
    #[error(
        "{0} has what a node kept there, but no identity.toml. Put that file back if you can: providers and clients know the node by its key. Otherwise move the folder away and set up a node anew, with --seed-file for the same account"
    )]
    Remains(PathBuf),
    /// There are words of another account.
    #[error(
        "{0} holds the words of another account, which may be the only way to its data. To use them, add --seed-file {0}; otherwise move the file away first"
    )]
    OtherSeed(PathBuf),
    /// Another process runs on it.
    #[error("another `spare serve` is running on {0}")]
    Locked(PathBuf),
    /// A file is not what it should be.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> HomeError {
    let path = path.to_owned();
    move |error| HomeError::Io { path, error }
}

/// Who this node is.
pub struct Identity {
    /// The network it belongs to.
    pub network: NetworkId,
    /// The account it acts for.
    pub account: PublicKey,
    /// The node key.
    pub node_secret: Secret,
    /// Seals recipes.
    pub recipe_key: Secret,
    /// Seals the index log.
    pub index_key: Secret,
    /// The account's grant to the node key.
    pub grant: SignedBytes,
}

impl Identity {
    /// A new node key for the account of `seed` in `network`, granted all scopes from unix time `now_s`.
    pub fn new(seed: &Seed, network: NetworkId, node_secret: Secret, now_s: u64) -> Self {
        let delegate = SigningSecret::from_secret(&node_secret).public();
        let grant = Grant::V1 {
            delegate,
            scopes: vec![Scope::Store, Scope::Read, Scope::Provide, Scope::Spend],
            spend_cap: SUPPLY_MAX,
            serial: now_s,
            expires_s: now_s + GRANT_LIFE_S,
        };
        let account = seed.account_key();
        Self {
            network,
            account: account.public(),
            node_secret,
            recipe_key: seed.recipe_key(),
            index_key: seed.index_key(),
            grant: Signed::new(grant, network, &account).raw().clone(),
        }
    }

    /// The node key, for signing.
    pub fn node_key(&self) -> SigningSecret {
        SigningSecret::from_secret(&self.node_secret)
    }

    /// The node key, for libp2p.
    pub fn libp2p_keypair(&self) -> libp2p::identity::Keypair {
        libp2p::identity::Keypair::ed25519_from_bytes(*self.node_secret.expose())
            .expect("32 bytes are an ed25519 key")
    }
}

/// The identity as it is kept on disk.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    version: u32,
    genesis: String,
    account: String,
    node_key: String,
    recipe_key: String,
    index_key: String,
    grant: String,
    /// Hash of all of the above, from version 2 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    check: Option<String>,
}

impl IdentityFile {
    /// What version 2 is checked by: with one digit changed, keys would still be keys, but others.
    fn checksum(&self) -> String {
        let fields =
            [&self.genesis, &self.account, &self.node_key, &self.recipe_key, &self.index_key, &self.grant];
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 identity file v2");
        for field in fields {
            hasher.update(&(field.len() as u64).to_le_bytes()).update(field.as_bytes());
        }
        HEXLOWER.encode(&hasher.finalize().as_bytes()[..16])
    }
}

/// The node's folder.
#[derive(Debug, Clone)]
pub struct Home(PathBuf);

/// The lock on a folder, held while a node runs.
pub struct HomeLock {
    _file: File,
}

impl Home {
    /// The folder at `path`, which need not exist.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// The folder's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file in the folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The settings file.
    pub fn config_file(&self) -> PathBuf {
        self.file("config.toml")
    }

    /// Makes the folder with an identity in the network of `genesis`, its seed, a token and a settings file.
    ///
    /// # Errors
    /// [`HomeError::Exists`] when there is one, else the file that failed.
    pub fn create(
        &self,
        seed: &Seed,
        identity: &Identity,
        genesis: &Genesis,
        config: &str,
        token: &str,
    ) -> Result<(), HomeError> {
        assert_eq!(genesis.network(), identity.network, "an identity belongs to the network of its genesis");
        if self.file("identity.toml").exists() {
            return Err(HomeError::Exists(self.0.clone()));
        }
        if self.file("meta").exists() {
            return Err(HomeError::Remains(self.0.clone()));
        }
        let seed_file = self.file("seed.txt");
        match fs::read_to_string(&seed_file).map(Zeroizing::new) {
            Ok(words) if words.trim() != seed.words().as_str() => {
                return Err(HomeError::OtherSeed(seed_file));
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&seed_file)(error)),
            _ => {}
        }
        fs::create_dir_all(&self.0).map_err(at(&self.0))?;
        fs::set_permissions(&self.0, fs::Permissions::from_mode(0o700)).map_err(at(&self.0))?;
        let hex = |secret: &Secret| HEXLOWER.encode(secret.expose());
        let mut file = IdentityFile {
            version: 2,
            genesis: HEXLOWER.encode(&to_bytes(genesis)),
            account: identity.account.to_string(),
            node_key: hex(&identity.node_secret),
            recipe_key: hex(&identity.recipe_key),
            index_key: hex(&identity.index_key),
            grant: HEXLOWER.encode(&to_bytes(&identity.grant)),
            check: None,
        };
        file.check = Some(file.checksum());
        let text = toml::to_string(&file).expect("an identity is TOML");
        self.write_secret("seed.txt", &format!("{}\n", seed.words().as_str()))?;
        self.write_secret("api.token", &format!("{token}\n"))?;
        fs::write(self.config_file(), config).map_err(at(&self.config_file()))?;
        // Last, since its presence says that the folder is complete.
        self.write_secret("identity.toml", &text)
    }

    fn write_secret(&self, name: &str, text: &str) -> Result<(), HomeError> {
        let path = self.file(name);
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).create(true).truncate(true).mode(0o600).open(&path).map_err(at(&path))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at(&path))
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// [`HomeError::Missing`] when there is none.
    pub fn identity(&self) -> Result<Identity, HomeError> {
        Ok(self.identity_and_genesis()?.0)
    }

    /// Reads the identity and the genesis of its network.
    ///
    /// # Errors
    /// [`HomeError::Missing`] when there is none.
    pub fn identity_and_genesis(&self) -> Result<(Identity, Genesis), HomeError> {
        let path = self.file("identity.toml");
        let text = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(HomeError::Missing(self.0.clone()));
            }
            other => other.map_err(at(&path))?,
        };
        let damaged =
            |why: String| HomeError::Damaged { path: path.clone(), why: format!("{why}. {REPLACE}") };
        let text = String::from_utf8(text).map_err(|_| damaged("it is not text".to_owned()))?;
        let file: IdentityFile = toml::from_str(&text).map_err(|e| damaged(e.message().to_owned()))?;
        match (file.version, &file.check) {
            (1, None) => {}
            (2, Some(check)) if *check == file.checksum() => {}
            (1 | 2, _) => return Err(damaged("its checksum does not fit".to_owned())),
            (other, _) => {
                return Err(damaged(format!(
                    "version {other} is unknown; this program knows versions 1 and 2"
                )));
            }
        }
        let bytes = |name: &str, hex: &str| -> Result<[u8; 32], HomeError> {
            let bytes = HEXLOWER.decode(hex.as_bytes()).ok();
            bytes
                .and_then(|b| b.try_into().ok())
                .ok_or_else(|| damaged(format!("'{name}' is not 64 hex digits")))
        };
        let grant = HEXLOWER.decode(file.grant.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let genesis = HEXLOWER.decode(file.genesis.as_bytes()).map_err(|e| damaged(e.to_string()))?;
        let genesis: Genesis = from_bytes(&genesis, 1024).map_err(|e| damaged(format!("genesis: {e}")))?;
        let identity = Identity {
            network: genesis.network(),
            account: PublicKey::Ed25519(bytes("account", &file.account)?),
            node_secret: Secret::new(bytes("node_key", &file.node_key)?),
            recipe_key: Secret::new(bytes("recipe_key", &file.recipe_key)?),
            index_key: Secret::new(bytes("index_key", &file.index_key)?),
            grant: from_bytes(&grant, 1024).map_err(|e| damaged(format!("grant: {e}")))?,
        };
        // As of no particular time: that it has expired is for others to say.
        let node = identity.node_key().public();
        let authority = Authority::from_grant(identity.grant.clone(), identity.network, node, 0);
        if authority.map_err(|e| damaged(e.to_string()))?.account != identity.account {
            return Err(damaged("the grant is of another account".to_owned()));
        }
        Ok((identity, genesis))
    }

    /// The API's bearer token.
    ///
    /// # Errors
    /// [`HomeError::Missing`] when there is no node.
    pub fn token(&self) -> Result<String, HomeError> {
        let path = self.file("api.token");
        match fs::read(&path) {
            Ok(token) => {
                // What is in no HTTP header is no token.
                let token = String::from_utf8(token).ok().map(|token| token.trim().to_owned());
                let good =
                    token.filter(|token| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()));
                good.ok_or_else(|| HomeError::Damaged {
                    path,
                    why: "remove it, and `spare serve` makes it anew when it starts".into(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.file("identity.toml").exists() => {
                Err(HomeError::Damaged {
                    path,
                    why: "it is missing; `spare serve` makes it anew when it starts".into(),
                })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(HomeError::Missing(self.0.clone())),
            Err(error) => Err(HomeError::Io { path, error }),
        }
    }

    /// The API's bearer token, made anew if it is missing.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn token_or_new(&self) -> Result<String, HomeError> {
        if !self.file("api.token").exists() && self.file("identity.toml").exists() {
            self.write_secret("api.token", &format!("{}\n", new_token()))?;
        }
        self.token()
    }

    /// What is wrong with the file that holds the words, if it is there: nobody reads it for years, and then everything depends on it.
    pub fn seed_fault(&self, account: &PublicKey) -> Option<String> {
        let path = self.file("seed.txt");
        let words = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(format!("{} cannot be read: {error}", path.display())),
            Ok(words) => Zeroizing::new(words),
        };
        let seed = std::str::from_utf8(&words).ok().and_then(|words| Seed::from_words(words).ok());
        match seed.map(|seed| seed.account_key().public()) {
            Some(there) if there == *account => None,
            _ => Some(format!(
                "{} is damaged: it does not hold the words of this account. Compare it with your copy on paper; without one, copy your data out",
                path.display()
            )),
        }
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// [`HomeError::Locked`] when another process has it.
    pub fn lock(&self) -> Result<HomeLock, HomeError> {
        let path = self.file("lock");
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).open(&path).map_err(at(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(HomeLock { _file: file }),
            Err(fs::TryLockError::WouldBlock) => Err(HomeError::Locked(self.0.clone())),
            Err(fs::TryLockError::Error(error)) => Err(HomeError::Io { path, error }),
        }
    }
}

/// A random bearer token.
pub fn new_token() -> String {
    blake3::Hash::from_bytes(rand::random()).to_hex().to_string()
}

/// What it takes to join a network: the genesis of its market and peers to start from. One line of text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ticket {
    /// The first version.
    V1 {
        /// What the market is; its hash names the network.
        genesis: Genesis,
        /// Multiaddrs that end in `/p2p/...`.
        peers: Vec<String>,
    },
}

/// Why a line is not a ticket.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a ticket: {0}. A ticket is one line that starts with '{TICKET_PREFIX}'; `spare ticket` prints it"
)]
pub struct TicketError(String);

const TICKET_PREFIX: &str = "spare1";
const TICKET_MAX_BYTES: usize = 4096;
const TICKET_CHECK_BYTES: usize = 4;

impl std::fmt::Display for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = to_bytes(self);
        bytes.extend_from_slice(&blake3::hash(&bytes).as_bytes()[..TICKET_CHECK_BYTES]);
        write!(f, "{TICKET_PREFIX}{}", BASE32_NOPAD.encode(&bytes).to_lowercase())
    }
}

impl std::str::FromStr for Ticket {
    type Err = TicketError;
    fn from_str(text: &str) -> Result<Self, TicketError> {
        let wrong = |why: &str| TicketError(why.to_owned());
        let body = text.trim().strip_prefix(TICKET_PREFIX).ok_or_else(|| wrong("it starts otherwise"))?;
        let bytes = BASE32_NOPAD
            .decode(body.to_uppercase().as_bytes())
            .map_err(|_| wrong("it has characters that no ticket has, or was cut"))?;
        let split = bytes.len().checked_sub(TICKET_CHECK_BYTES).ok_or_else(|| wrong("it was cut"))?;
        let (bytes, check) = bytes.split_at(split);
        if blake3::hash(bytes).as_bytes()[..TICKET_CHECK_BYTES] != *check {
            return Err(wrong("its checksum does not fit: it was not copied whole"));
        }
        let ticket: Self = from_bytes(bytes, TICKET_MAX_BYTES).map_err(|e| TicketError(e.to_string()))?;
        let Self::V1 { peers, genesis } = &ticket;
        genesis.check().map_err(|e| TicketError(e.to_string()))?;
        for peer in peers {
            peer.parse::<Multiaddr>().map_err(|e| TicketError(format!("'{peer}' is no address: {e}")))?;
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_market::genesis::GenesisV1;

    fn genesis() -> Genesis {
        let market = Seed::from_entropy([1; 32]).account_key().public();
        Genesis::V1(GenesisV1 {
            market,
            started_s: 0,
            period_s: 1,
            beacon: [1; 32],
            fee_bps: 0,
            salt: [2; 32],
        })
    }

    fn fixture() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::new(dir.path().join("home"));
        let seed = Seed::from_entropy([1; 32]);
        let identity = Identity::new(&seed, genesis().network(), Secret::new([3; 32]), 100);
        home.create(&seed, &identity, &genesis(), "", "token").unwrap();
        (dir, home)
    }

    #[test]
    fn an_identity_is_kept_whole_and_secret() {
        let (_dir, home) = fixture();
        let identity = home.identity().unwrap();
        assert_eq!(identity.account, Seed::from_entropy([1; 32]).account_key().public());
        assert_eq!(identity.node_secret, Secret::new([3; 32]));
        for name in ["seed.txt", "identity.toml", "api.token"] {
            assert_eq!(fs::metadata(home.file(name)).unwrap().permissions().mode() & 0o777, 0o600, "{name}");
        }
        let seed = Seed::from_entropy([9; 32]);
        assert!(matches!(home.create(&seed, &identity, &genesis(), "", ""), Err(HomeError::Exists(_))));
        fs::remove_file(home.file("identity.toml")).unwrap();
        assert!(matches!(home.create(&seed, &identity, &genesis(), "", ""), Err(HomeError::OtherSeed(_))));
        assert!(
            fs::read_to_string(home.file("seed.txt"))
                .unwrap()
                .contains(Seed::from_entropy([1; 32]).words().as_str())
        );
        home.create(&Seed::from_entropy([1; 32]), &identity, &genesis(), "", "").unwrap();
        fs::write(home.file("identity.toml"), "version = 1").unwrap();
        assert!(matches!(home.identity(), Err(HomeError::Damaged { .. })));
        assert!(matches!(Home::new("/nonexistent".into()).identity(), Err(HomeError::Missing(_))));
    }

    #[test]
    fn one_process_holds_the_lock() {
        let (_dir, home) = fixture();
        let lock = home.lock().unwrap();
        assert!(matches!(home.lock(), Err(HomeError::Locked(_))));
        drop(lock);
        home.lock().unwrap();
    }

    #[test]
    fn tickets_survive_copying_and_notice_mistakes() {
        let ticket = Ticket::V1 { genesis: genesis(), peers: vec!["/ip4/127.0.0.1/udp/1/quic-v1".into()] };
        let text = ticket.to_string();
        assert_eq!(format!(" {text}\n").parse::<Ticket>(), Ok(ticket.clone()));
        assert_eq!(text.to_uppercase().replacen("SPARE1", "spare1", 1).parse::<Ticket>(), Ok(ticket));
        let mut wrong = text.clone();
        wrong.replace_range(20..21, if &text[20..21] == "a" { "b" } else { "a" });
        assert!(wrong.parse::<Ticket>().unwrap_err().to_string().contains("checksum"));
        assert!("hello".parse::<Ticket>().is_err());
        assert!(text[..text.len() / 2].parse::<Ticket>().is_err());
    }
}
