//! What this client holds against providers: their standing with it, and evidence. Durable, and known to nobody else.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use spare_market::keys::PublicKey;
use spare_market::standing::{Fault, Place, Standing};
use spare_proofs::tree::Root;

use crate::evidence::Evidence;
use crate::frames::RefusalCode;
use crate::meta::{Batch, Meta, MetaError, Table};
use crate::peers::PeerError;
use crate::unix_now_s;

/// Most pieces of evidence that are kept.
const EVIDENCE_KEPT_MAX: usize = 1024;
/// The standing of providers.
pub struct Standings {
    meta: Arc<Meta>,
    spacing_s: u64,
    by_node: Mutex<BTreeMap<PublicKey, Standing>>,
}

/// How a read failed, if that is the provider's fault.
pub fn fault_of(error: &PeerError) -> Option<Fault> {
    match error {
        PeerError::Refused(refusal) => match refusal.code {
            RefusalCode::NotHere | RefusalCode::Unavailable => Some(Fault::Lost),
            RefusalCode::Busy => Some(Fault::Silent),
            // For this client to mend, before it is held against anybody.
            RefusalCode::PaymentDue | RefusalCode::Unfunded => None,
            _ => Some(Fault::Refused),
        },
        PeerError::WrongBytes(_) | PeerError::SignedWrongBytes { .. } => Some(Fault::WrongBytes),
        PeerError::Signature(_) | PeerError::Protocol(_) => Some(Fault::Refused),
        PeerError::Dial(_) | PeerError::Stalled | PeerError::Frame(_) => Some(Fault::Silent),
        PeerError::GivenUp => None,
    }
}

impl Standings {
    /// The standings in `meta`. Strikes are `spacing_s` seconds apart.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn open(meta: Arc<Meta>, spacing_s: u64) -> Result<Self, MetaError> {
        let mut by_node = BTreeMap::new();
        for (key, standing) in meta.all::<Standing>(Table::Standings, b"")? {
            if let Ok(key) = key.as_slice().try_into() {
                by_node.insert(PublicKey::Ed25519(key), standing);
            }
        }
        Ok(Self { meta, spacing_s, by_node: Mutex::new(by_node) })
    }

    /// Seconds between strikes.
    pub fn spacing_s(&self) -> u64 {
        self.spacing_s
    }

    /// The standing of `node`.
    pub fn of(&self, node: &PublicKey) -> Standing {
        self.by_node.lock().expect("no holder panics").get(node).cloned().unwrap_or_default()
    }

    /// All that is held against anybody.
    pub fn all(&self) -> BTreeMap<PublicKey, Standing> {
        self.by_node.lock().expect("no holder panics").clone()
    }

    /// Changes a standing, and notes it if it is another then.
    fn change<T>(&self, node: &PublicKey, change: impl FnOnce(&mut Standing) -> T) -> T {
        let mut by_node = self.by_node.lock().expect("no holder panics");
        let known = by_node.get(node).cloned().unwrap_or_default();
        let mut next = known.clone();
        let result = change(&mut next);
        if next != known {
            let mut batch = Batch::default();
            if next == Standing::default() {
                batch.delete(Table::Standings, node.key_bytes());
                by_node.remove(node);
            } else {
                batch.put(Table::Standings, node.key_bytes(), &next);
                by_node.insert(*node, next);
            }
            if let Err(error) = self.meta.note(&batch) {
                tracing::error!(%error, "a provider's standing could not be noted");
            }
        }
        result
    }

    /// Notes that `place` was read from `node`.
    pub fn answered(&self, node: &PublicKey, place: &Place) {
        if self.of(node).contained().is_some() {
            self.change(node, |standing| standing.answered(place));
        }
    }

    /// Notes that `place` could not be read from `node`. Returns whether that was a strike.
    pub fn failed(&self, node: &PublicKey, place: Place, fault: Fault, why: &str) -> bool {
        let is_strike =
            self.change(node, |standing| standing.failed(unix_now_s(), place, fault, why, self.spacing_s));
        if is_strike {
            let strikes = self.of(node).strikes(unix_now_s()).count();
            tracing::warn!(%node, why, strikes, "a provider {}, again and again: a strike", fault.sentence());
        }
        is_strike
    }

    /// Notes that `node` signed a wrong result of the work with this hash.
    pub fn was_wrong(&self, node: &PublicKey, work: [u8; 32], why: &str) {
        tracing::warn!(%node, why, "a provider {}", Fault::WrongResult.sentence());
        self.change(node, |standing| standing.was_wrong(unix_now_s(), Root::from_bytes(work), why));
    }

    /// Notes that `node` was paid for the work with this hash and left it unfinished.
    pub fn abandoned(&self, node: &PublicKey, work: [u8; 32], why: &str) {
        tracing::warn!(%node, why, "a provider {}", Fault::Abandoned.sentence());
        self.change(node, |standing| standing.abandoned(unix_now_s(), Root::from_bytes(work), why));
    }

    /// Notes that `node` was told what is held against it.
    pub fn told(&self, node: &PublicKey) {
        self.change(node, Standing::told);
    }

    /// Keeps evidence, synced. Returns its name.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn keep_evidence(&self, evidence: &Evidence) -> Result<String, MetaError> {
        let id = evidence.id();
        let mut count = 0;
        self.meta.keys(Table::Evidence, |_| count += 1)?;
        if count < EVIDENCE_KEPT_MAX {
            self.meta.commit(Batch::default().put(Table::Evidence, id.as_bytes(), evidence))?;
        }
        Ok(id)
    }

    /// All evidence, with its names.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn evidence(&self) -> Result<Vec<(String, Evidence)>, MetaError> {
        let all = self.meta.all::<Evidence>(Table::Evidence, b"")?;
        Ok(all
            .into_iter()
            .map(|(id, evidence)| (String::from_utf8_lossy(&id).into_owned(), evidence))
            .collect())
    }
}
