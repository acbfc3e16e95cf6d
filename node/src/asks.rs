//! The asks this node knows: the newest valid one of each provider.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use spare_market::ask::{Ask, AskError, AskV1};
use spare_market::grant::{Authority, GrantError, Scope};
use spare_market::keys::PublicKey;
use spare_market::signed::{NetworkId, SignedBytes, SignedError};

use crate::limits::{ASKS_MAX, ASKS_PER_ANSWER_MAX};
use crate::meta::{Batch, Meta, MetaError, Table};

const KEY_PREFIX: &[u8] = b"ask ";

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
    #[error("{ASKS_MAX} providers are known, no more are kept")]
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

    /// The address that stands for its network.
    pub fn ip(&self) -> IpAddr {
        self.direct_addr().map_or(IpAddr::from([0, 0, 0, 0]), |addr| addr.ip())
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
        let mut known = Vec::new();
        book.meta.scan::<SignedBytes>(Table::State, KEY_PREFIX, |_, raw| {
            known.push(raw);
            ControlFlow::Continue(())
        })?;
        for raw in known {
            if let Ok(provider) = book.check(raw, now_s) {
                book.providers.lock().expect("no holder panics").insert(provider.node, provider);
            }
        }
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
        match providers.get(&node) {
            Some(known) if known.ask.made_s >= provider.ask.made_s => return Err(RejectedAsk::Old),
            None if providers.len() >= ASKS_MAX => {
                providers.retain(|_, p| p.ask.valid_until_s > now_s);
                if providers.len() >= ASKS_MAX {
                    return Err(RejectedAsk::Full);
                }
            }
            _ => {}
        }
        let key = [KEY_PREFIX, &node.to_bytes()].concat();
        if let Err(error) = self.meta.note(Batch::default().put(Table::State, &key, &provider.raw)) {
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
        let valid = self.valid(now_s);
        let more = valid.len() > skip.saturating_add(ASKS_PER_ANSWER_MAX);
        (valid.into_iter().skip(skip).take(ASKS_PER_ANSWER_MAX).map(|p| p.raw).collect(), more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::home::Identity;
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
}
