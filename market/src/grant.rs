//! Grants: an account lets a node key act for it, within scopes and until a time.

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::keys::PublicKey;
use crate::signed::{NetworkId, Signable, Signed, SignedBytes, SignedError};

/// Something a delegate may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Store and delete shards, and write the index.
    Store,
    /// Read shards and the index.
    Read,
    /// Offer and serve capacity in the account's name, and pledge collateral.
    Provide,
    /// Open and fund deals within the grant's cap, and sign the heads and vouchers of those deals.
    Spend,
}

/// An account's grant to a node key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grant {
    /// The first version.
    V1 {
        /// The node key that may act.
        delegate: PublicKey,
        /// What it may do, strictly ascending.
        scopes: Vec<Scope>,
        /// Most it may put into deals, over its whole life.
        spend_cap: Amount,
        /// Of two grants to one node key, the one with the higher number holds. One without scopes revokes.
        serial: u64,
        /// Unix time in seconds after which the grant is void.
        expires_s: u64,
    },
}

impl Signable for Grant {
    const DOMAIN: &'static str = "spare 2026 grant v1";
    const MAX_BYTES: usize = 256;
}

/// Why a grant does not let a node act.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// The record itself does not hold.
    #[error("the grant does not hold: {0}")]
    Signed(#[from] SignedError),
    /// It names another node key.
    #[error("the grant is for another node key")]
    OtherDelegate,
    /// It has expired.
    #[error("the grant expired at unix time {0}")]
    Expired(u64),
    /// Its scopes are not in order.
    #[error("the grant's scopes are not strictly ascending")]
    Unordered,
}

/// A grant that was checked: this node may act for this account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// The account that granted.
    pub account: PublicKey,
    scopes: Vec<Scope>,
    expires_s: u64,
}

impl Authority {
    /// Checks `raw` as a grant to `delegate` at unix time `now_s`.
    ///
    /// # Errors
    /// [`GrantError`] when it does not let that node act now.
    pub fn from_grant(
        raw: SignedBytes,
        network: NetworkId,
        delegate: PublicKey,
        now_s: u64,
    ) -> Result<Self, GrantError> {
        let grant: Signed<Grant> = raw.check(network)?;
        let Grant::V1 { delegate: granted, scopes, expires_s, .. } = grant.value();
        if *granted != delegate {
            return Err(GrantError::OtherDelegate);
        }
        if now_s >= *expires_s {
            return Err(GrantError::Expired(*expires_s));
        }
        if scopes.windows(2).any(|w| w[0] >= w[1]) {
            return Err(GrantError::Unordered);
        }
        Ok(Self { account: grant.signer(), scopes: scopes.clone(), expires_s: *expires_s })
    }

    /// The number of a grant, or 0 if these bytes are none. Says nothing of its signature.
    pub fn serial(grant: &SignedBytes) -> u64 {
        let grant = spare_proofs::encode::from_bytes::<Grant>(&grant.bytes, Grant::MAX_BYTES);
        grant.map_or(0, |Grant::V1 { serial, .. }| serial)
    }

    /// Whether the delegate may do `scope` at unix time `now_s`.
    pub fn allows(&self, scope: Scope, now_s: u64) -> bool {
        now_s < self.expires_s && self.scopes.contains(&scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::Seed;

    const HOME: NetworkId = NetworkId([1; 32]);

    fn granted(scopes: Vec<Scope>) -> SignedBytes {
        let grant =
            Grant::V1 { delegate: node(9), scopes, spend_cap: Amount::ZERO, serial: 1, expires_s: 100 };
        Signed::new(grant, HOME, &Seed::from_entropy([1; 32]).account_key()).raw().clone()
    }

    fn node(tag: u8) -> PublicKey {
        Seed::from_entropy([tag; 32]).account_key().public()
    }

    #[test]
    fn a_grant_serves_its_delegate_in_its_scope_and_time() {
        let authority = Authority::from_grant(granted(vec![Scope::Read]), HOME, node(9), 99).unwrap();
        assert_eq!(authority.account, node(1));
        assert!(authority.allows(Scope::Read, 99));
        assert!(!authority.allows(Scope::Read, 100), "expired while connected");
        assert!(!authority.allows(Scope::Store, 99));
        let at = |raw, delegate, now| Authority::from_grant(raw, HOME, delegate, now);
        assert_eq!(at(granted(vec![]), node(8), 99), Err(GrantError::OtherDelegate));
        assert_eq!(at(granted(vec![]), node(9), 100), Err(GrantError::Expired(100)));
        assert_eq!(at(granted(vec![Scope::Read, Scope::Store]), node(9), 1), Err(GrantError::Unordered));
    }
}
