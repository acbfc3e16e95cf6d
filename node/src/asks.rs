//! The asks this node knows: the newest valid one of each provider.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use libp2p::Multiaddr;
use libp2p::multiaddr::Protocol;
use spare_market::ask::{Ask, AskError, AskV1};
use spare_market::grant::{Authority, GrantError, Scope};
use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use spare_market::signed::{NetworkId, SignedBytes, SignedError};

use crate::discover::{ip_of, is_relayed, peer_of};
use crate::limits::{ASKS_MAX, ASKS_PER_ANSWER_BYTES, ASKS_PER_ANSWER_MAX, ASKS_PER_SUBNET_MAX};
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::transport::peer_id;

const KEY_PREFIX: &[u8] = b"ask ";

fn row_key(node: &PublicKey) -> Vec<u8> {
    [KEY_PREFIX, &node.to_bytes()].concat()
}

/// Why an ask is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RejectedAsk {
    /// The record does not hold.
    #[error(transparent)]
    Signed(#[from] SignedError),
    /// The node has no authority to offer.
    #[error(transparent)]
    Grant(#[from] GrantError),
    /// The grant does not cover providing.
    #[error("the grant does not cover providing")]
    Scope,
    /// The fields are out of bounds or time.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// An ask of this provider that is as new or newer is known.
    #[error("a newer ask is known")]
    Old,
    /// As many providers are known as are kept.
    #[error("{ASKS_MAX} providers are known, or {ASKS_PER_SUBNET_MAX} in its network; no more are kept")]
    Full,
}

/// A provider as known by its newest ask.
#[derive(Debug, Clone)]
pub struct Provider {
    /// Its node key.
    pub node: PublicKey,
    /// Its account.
    pub account: PublicKey,
    /// What it offers.
    pub ask: AskV1,
    /// The signed ask, to pass on.
    pub raw: SignedBytes,
}

impl Provider {
    /// The address at which direct transfers reach it.
    pub fn direct_addr(&self) -> Option<SocketAddr> {
        self.ask.direct.first().copied()
    }

    /// The address that stands for its network: where direct transfers reach it, or where it says that its NAT is.
    pub fn ip(&self) -> IpAddr {
        let behind = || {
            let multiaddr = |text: &String| text.parse::<Multiaddr>().ok();
            self.ask.libp2p.iter().filter_map(multiaddr).find(|a| !is_relayed(a)).and_then(|a| ip_of(&a))
        };
        self.direct_addr().map(|addr| addr.ip()).or_else(behind).unwrap_or(IpAddr::from([0, 0, 0, 0]))
    }

    /// Where libp2p can dial it without a relay.
    pub fn plain_addrs(&self) -> Vec<Multiaddr> {
        let addrs = self.ask.libp2p.iter().filter_map(|text| text.parse().ok());
        addrs.filter(|addr| !is_relayed(addr) && peer_of(addr).is_some()).collect()
    }

    /// Where libp2p is to dial it: through relays, if it names any, since then it cannot be reached otherwise. Nothing if nobody can reach it.
    pub fn libp2p_addrs(&self) -> Vec<Multiaddr> {
        let parsed = self.ask.libp2p.iter().filter_map(|text| text.parse::<Multiaddr>().ok());
        let circuits: Vec<Multiaddr> = parsed.filter(is_relayed).collect();
        if circuits.is_empty() {
            return self.plain_addrs();
        }
        let Some(peer) = peer_id(&self.node) else { return Vec::new() };
        // An ask leaves out its own name at the end, which would not fit.
        circuits.into_iter().map(|addr| addr.with(Protocol::P2p(peer))).collect()
    }
}

/// The newest valid ask of each provider, kept over restarts.
pub struct AskBook {
    network: NetworkId,
    meta: Arc<Meta>,
    providers: Mutex<HashMap<PublicKey, Provider>>,
}

impl AskBook {
    /// Opens the book, with the asks known before.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn open(network: NetworkId, meta: Arc<Meta>, now_s: u64) -> Result<Self, MetaError> {
        let book = Self { network, meta, providers: Mutex::default() };
        let mut obsolete = Batch::default();
        book.meta.scan::<SignedBytes>(Table::State, KEY_PREFIX, |rest, raw| {
            match book.check(raw, now_s) {
                Ok(provider) => {
                    book.providers.lock().expect("no holder panics").insert(provider.node, provider);
                }
                Err(_) => drop(obsolete.delete(Table::State, &[KEY_PREFIX, rest].concat())),
            }
            ControlFlow::Continue(())
        })?;
        book.meta.note(&obsolete)?;
        Ok(book)
    }

    fn check(&self, raw: SignedBytes, now_s: u64) -> Result<Provider, RejectedAsk> {
        let signed = raw.check::<Ask>(self.network)?;
        let Ask::V1(ask) = signed.value();
        ask.check(now_s)?;
        let authority = Authority::from_grant(ask.grant.clone(), self.network, signed.signer(), now_s)?;
        if !authority.allows(Scope::Provide, now_s) {
            return Err(RejectedAsk::Scope);
        }
        Ok(Provider {
            node: signed.signer(),
            account: authority.account,
            ask: ask.clone(),
            raw: signed.raw().clone(),
        })
    }

    /// Takes an ask if it holds and is news.
    ///
    /// # Errors
    /// [`RejectedAsk`].
    pub fn take(&self, raw: SignedBytes, now_s: u64) -> Result<PublicKey, RejectedAsk> {
        let provider = self.check(raw, now_s)?;
        let node = provider.node;
        let mut providers = self.providers.lock().expect("no holder panics");
        let mut batch = Batch::default();
        let is_full = |providers: &HashMap<PublicKey, Provider>| {
            let subnet = Subnet::from(provider.ip());
            let neighbours = providers.values().filter(|p| Subnet::from(p.ip()) == subnet && p.node != node);
            (providers.len() >= ASKS_MAX && !providers.contains_key(&node))
                || neighbours.count() >= ASKS_PER_SUBNET_MAX
        };
        if providers.get(&node).is_some_and(|known| known.ask.made_s >= provider.ask.made_s) {
            return Err(RejectedAsk::Old);
        }
        if is_full(&providers) {
            providers.retain(|gone, p| {
                let holds = p.ask.valid_until_s > now_s;
                if !holds {
                    batch.delete(Table::State, &row_key(gone));
                }
                holds
            });
            if is_full(&providers) {
                return Err(RejectedAsk::Full);
            }
        }
        if let Err(error) = self.meta.note(batch.put(Table::State, &row_key(&node), &provider.raw)) {
            tracing::warn!(%error, "an ask could not be kept for the next start");
        }
        providers.insert(node, provider);
        Ok(node)
    }

    /// The provider `node`, whether or not its ask still holds: its addresses are worth a try.
    pub fn get(&self, node: &PublicKey) -> Option<Provider> {
        self.providers.lock().expect("no holder panics").get(node).cloned()
    }

    /// All providers whose asks hold at unix time `now_s`, in order of node key.
    pub fn valid(&self, now_s: u64) -> Vec<Provider> {
        let providers = self.providers.lock().expect("no holder panics");
        let mut valid: Vec<Provider> =
            providers.values().filter(|p| p.ask.valid_until_s > now_s).cloned().collect();
        valid.sort_by_key(|p| p.node);
        valid
    }

    /// One answer's worth of valid asks after the first `skip`, and whether there are more.
    pub fn page(&self, skip: usize, now_s: u64) -> (Vec<SignedBytes>, bool) {
        let mut rest = self.valid(now_s).into_iter().skip(skip).map(|p| p.raw);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while page.len() < ASKS_PER_ANSWER_MAX && bytes < ASKS_PER_ANSWER_BYTES {
            let Some(raw) = rest.next() else { break };
            bytes += spare_proofs::encode::to_bytes(&raw).len();
            page.push(raw);
        }
        (page, rest.next().is_some())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Identity;
    use spare_market::amount::{ReadPrice, StoragePrice};
    use spare_market::keys::{Seed, SigningSecret};
    use spare_market::signed::Signed;
    use spare_proofs::cipher::Secret;

    const HOME: NetworkId = NetworkId([1; 32]);

    fn ask(tag: u8, made_s: u64, change: impl FnOnce(&mut AskV1)) -> SignedBytes {
        let identity = Identity::new(&Seed::from_entropy([tag; 32]), HOME, Secret::new([tag; 32]), 0);
        let mut ask = AskV1 {
            grant: identity.grant.clone(),
            operator: "ann".into(),
            direct: vec!["127.0.0.1:1".parse().unwrap()],
            libp2p: vec![],
            offered_bytes: 10,
            free_bytes: 5,
            price: StoragePrice(1000),
            read_price: ReadPrice(0),
            region: String::new(),
            compute: None,
            made_s,
            valid_until_s: made_s + 100,
        };
        change(&mut ask);
        Signed::new(Ask::V1(ask), HOME, &identity.node_key()).raw().clone()
    }

    #[test]
    fn only_valid_news_is_taken_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Arc::new(Meta::open(dir.path()).unwrap());
        let book = AskBook::open(HOME, meta.clone(), 1000).unwrap();
        let node = book.take(ask(1, 1000, |_| ()), 1000).unwrap();
        assert!(matches!(book.take(ask(1, 999, |_| ()), 1000), Err(RejectedAsk::Old)));
        assert!(
            matches!(book.take(ask(2, 10, |_| ()), 1000), Err(RejectedAsk::Ask(AskError::NotNow))),
            "expired"
        );
        assert!(
            matches!(book.take(ask(2, 9000, |_| ()), 1000), Err(RejectedAsk::Ask(AskError::NotNow))),
            "from the future"
        );
        let error = book.take(ask(2, 1000, |a| a.operator = "x".repeat(65)), 1000);
        assert!(matches!(error, Err(RejectedAsk::Ask(AskError::Bounds))));
        let error = book.take(ask(2, 1000, |a| a.free_bytes = 11), 1000);
        assert!(matches!(error, Err(RejectedAsk::Ask(AskError::Bounds))), "more free than offered");
        for bad in ["/ip4/1.2.3.4/".repeat(10), "two words".into()] {
            let error = book.take(ask(2, 1000, |a| a.libp2p = vec![bad]), 1000);
            assert!(matches!(error, Err(RejectedAsk::Ask(AskError::Bounds))), "an address that is none");
        }
        let stolen = Identity::new(&Seed::from_entropy([9; 32]), HOME, Secret::new([9; 32]), 0).grant;
        assert!(matches!(
            book.take(ask(2, 1000, |a| a.grant = stolen), 1000),
            Err(RejectedAsk::Grant(GrantError::OtherDelegate))
        ));
        assert_eq!(book.valid(1000).len(), 1);
        assert_eq!(book.valid(1100).len(), 0);
        drop(book);
        let book = AskBook::open(HOME, meta, 1001).unwrap();
        assert_eq!(book.get(&node).unwrap().ask.made_s, 1000);
        assert_eq!(node, SigningSecret::from_secret(&Secret::new([1; 32])).public());
    }

    #[test]
    fn the_longest_asks_fit_a_frame_page_by_page_and_a_network_gets_its_share() {
        let dir = tempfile::tempdir().unwrap();
        let meta = Arc::new(Meta::open(dir.path()).unwrap());
        let book = AskBook::open(HOME, meta.clone(), 1000).unwrap();
        let longest = |tag: u8, subnet: u8| {
            ask(tag, 1000, |a| {
                a.operator = "x".repeat(64);
                a.region = "y".repeat(32);
                a.libp2p = vec!["a".repeat(128); 8];
                a.direct = vec![format!("10.0.{subnet}.1:65535").parse().unwrap(); 8];
            })
        };
        for tag in 0..=250 {
            book.take(longest(tag, tag), 1000).unwrap();
        }
        let mut seen = 0;
        loop {
            let (asks, more) = book.page(seen, 1000);
            seen += asks.len();
            // Panics if it does not fit.
            crate::frames::encode(&crate::frames::Response::Asks { asks, more });
            if !more {
                break;
            }
        }
        assert_eq!(seen, 251);

        let book = AskBook::open(HOME, Arc::new(Meta::open(&dir.path().join("2")).unwrap()), 1000).unwrap();
        for tag in 0..ASKS_PER_SUBNET_MAX as u8 {
            book.take(longest(tag, 7), 1000).unwrap();
        }
        assert!(matches!(book.take(longest(200, 7), 1000), Err(RejectedAsk::Full)));
        book.take(longest(201, 8), 1000).unwrap();
        book.take(ask(200, 1100, |a| a.direct = vec!["10.0.7.1:1".parse().unwrap()]), 1101).unwrap();
        assert_eq!(book.valid(1101).len(), 1, "what expired made room");
        let rows = book.meta.all::<SignedBytes>(Table::State, KEY_PREFIX).unwrap();
        assert_eq!(rows.len(), 1, "also on disk");
    }
}
