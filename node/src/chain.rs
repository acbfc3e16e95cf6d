//! The ledger at this node: blocks and state in the metadata store, and the state in memory.
//!
//! Every node replays every block. A block, what it changed and the new tip are one synced write, so a crash leaves the ledger at one block
//! or the next. At start the state is read and its root compared with the one that the newest block was signed over.
//!
//! **Invariant:** memory is never ahead of the disk for anybody to see. If a block cannot be written, the ledger answers nothing any more
//! until the node is started anew.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use spare_market::block::{Block, BlockError, Changes, Header, Ledger, Outcome, RestoreError, Tip};
use spare_market::genesis::Genesis;
use spare_market::keys::SigningSecret;
use spare_market::signed::SignedBytes;
use spare_market::state::{Entry, Key, NotConserved};
use spare_market::tx::Event;
use spare_proofs::encode::{from_bytes, to_bytes};
use tokio::sync::watch;

use crate::crash;
use crate::meta::{Batch, Meta, MetaError, Table};

const TIP_KEY: &[u8] = b"ledger tip";
/// Longest key of an entry.
const KEY_MAX_BYTES: usize = 64;

/// Where the stored ledger ends.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct StoredTip {
    tip: Tip,
    state_root: [u8; 32],
}

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// What is stored is not a ledger.
    #[error("the stored ledger is damaged: {0}")]
    Restore(#[from] RestoreError),
    /// A block does not follow, or breaks a rule.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The rules have a bug.
    #[error(transparent)]
    NotConserved(#[from] NotConserved),
    /// A block could not be written before.
    #[error("the ledger could not be written to disk, and waits for the node to be started anew")]
    Broken,
}

/// The ledger at this node.
pub struct Chain {
    meta: Arc<Meta>,
    /// `None` once a block could not be written.
    ledger: Mutex<Option<Ledger>>,
    height: watch::Sender<u64>,
}

impl Chain {
    /// Opens the ledger of `genesis` that is kept in `meta`, or begins it.
    ///
    /// # Errors
    /// [`ChainError`] when what is stored does not have the root that was signed.
    pub fn open(meta: Arc<Meta>, genesis: Genesis) -> Result<Self, ChainError> {
        let stored: Option<StoredTip> = meta.get(Table::State, TIP_KEY)?;
        let ledger = match stored {
            None => Ledger::new(genesis).map_err(RestoreError::from)?,
            Some(StoredTip { tip, state_root }) => {
                let mut entries = Vec::new();
                meta.scan::<Entry>(Table::Ledger, b"", |key, entry| {
                    // A key that does not decode is missing from the root, which tells.
                    entries.extend(from_bytes::<Key>(key, KEY_MAX_BYTES).ok().map(|key| (key, entry)));
                    ControlFlow::Continue(())
                })?;
                Ledger::restore(genesis, tip, state_root, entries)?
            }
        };
        let height = watch::Sender::new(ledger.tip().height);
        Ok(Self { meta, ledger: Mutex::new(Some(ledger)), height })
    }

    fn lock(&self) -> MutexGuard<'_, Option<Ledger>> {
        self.ledger.lock().expect("no holder panics")
    }

    /// Looks at the ledger.
    ///
    /// # Errors
    /// [`ChainError::Broken`].
    pub fn view<T>(&self, look: impl FnOnce(&Ledger) -> T) -> Result<T, ChainError> {
        self.lock().as_ref().map(look).ok_or(ChainError::Broken)
    }

    /// The height of the newest block, and a way to wait for the next one.
    pub fn height(&self) -> watch::Receiver<u64> {
        self.height.subscribe()
    }

    /// Makes the next block of `txs`, if one is due or any is taken, and writes it. Returns what became of each. Blocks.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn make(
        &self,
        now_s: u64,
        txs: Vec<SignedBytes>,
        market_key: &SigningSecret,
    ) -> Result<Vec<Outcome>, ChainError> {
        let mut guard = self.lock();
        let ledger = guard.as_mut().ok_or(ChainError::Broken)?;
        let made = ledger.make_block(now_s, txs, market_key)?;
        if let Some(block) = &made.block {
            crash::point("market before block");
            self.write(&mut guard, block, made.changes)?;
            crash::point("market after block");
        }
        Ok(made.outcomes)
    }

    /// Replays the next block and writes it. Blocks.
    ///
    /// # Errors
    /// [`ChainError`]; nothing has changed then.
    pub fn accept(&self, block: &Block) -> Result<Vec<Event>, ChainError> {
        let mut guard = self.lock();
        let ledger = guard.as_mut().ok_or(ChainError::Broken)?;
        let replayed = ledger.accept(block)?;
        self.write(&mut guard, block, replayed.changes)?;
        Ok(replayed.events)
    }

    /// Writes what a block changed, with the block and the tip.
    fn write(&self, guard: &mut Option<Ledger>, block: &Block, changes: Changes) -> Result<(), ChainError> {
        let tip = guard.as_ref().ok_or(ChainError::Broken)?.tip();
        let Header::V1 { state_root, .. } = from_bytes(&block.header.bytes, block.header.bytes.len())
            .expect("a block that was made or taken has a header");
        let mut batch = Batch::default();
        for (key, entry) in changes {
            match entry {
                Some(entry) => batch.put(Table::Ledger, &to_bytes(&key), &entry),
                None => batch.delete(Table::Ledger, &to_bytes(&key)),
            };
        }
        batch.put(Table::Blocks, &tip.height.to_be_bytes(), block);
        batch.put(Table::State, TIP_KEY, &StoredTip { tip, state_root });
        if let Err(error) = self.meta.commit(&batch) {
            tracing::error!(%error, "a block could not be written: the ledger stops");
            *guard = None;
            return Err(error.into());
        }
        self.height.send_replace(tip.height);
        Ok(())
    }

    /// Blocks from height `from` on, as many as come to about `budget_bytes`.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn blocks(&self, from: u64, budget_bytes: usize) -> Result<Vec<Block>, ChainError> {
        let mut blocks = Vec::new();
        let mut bytes = 0;
        while bytes < budget_bytes {
            let height = from + blocks.len() as u64;
            let Some(block) = self.meta.get::<Block>(Table::Blocks, &height.to_be_bytes())? else { break };
            bytes += to_bytes(&block).len();
            blocks.push(block);
        }
        Ok(blocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spare_market::amount::Amount;
    use spare_market::genesis::GenesisV1;
    use spare_market::grant::Grant;
    use spare_market::keys::Seed;
    use spare_market::signed::Signed;
    use spare_market::tx::{Action, Tx};

    fn key(tag: u8) -> SigningSecret {
        Seed::from_entropy([tag; 32]).account_key()
    }

    fn genesis() -> Genesis {
        Genesis::V1(GenesisV1 {
            market: key(1).public(),
            started_s: 0,
            period_s: 10,
            fee_bps: 0,
            salt: [0; 32],
        })
    }

    fn txs(chain: &Chain, amounts: &[u128]) -> Vec<SignedBytes> {
        let network = chain.view(Ledger::network).unwrap();
        let last = chain.view(|l| l.state().delegate(&key(1).public()).map(|d| d.number)).unwrap();
        let mut actions = Vec::new();
        if last.is_none() {
            let grant = Grant::V1 {
                delegate: key(1).public(),
                scopes: vec![],
                spend_cap: Amount(0),
                serial: 1,
                expires_s: u64::MAX,
            };
            let grant = Signed::new(grant, network, &key(2)).raw().clone();
            actions.push(Action::Register { grant });
        }
        let account = key(2).public();
        actions.extend(amounts.iter().map(|amount| Action::Fund { account, amount: Amount(*amount) }));
        let numbered = (last.unwrap_or(0) + 1..).zip(actions);
        let sign = |(number, action)| Signed::new(Tx::V1 { number, action }, network, &key(1)).raw().clone();
        numbered.map(sign).collect()
    }

    #[test]
    fn a_ledger_survives_reopening_is_followed_and_notices_a_flipped_bit() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |i: usize| Chain::open(Arc::new(Meta::open(dirs[i].path()).unwrap()), genesis());
        let chain = open(0).unwrap();
        for (now_s, amounts) in [(5, &[1, 2][..]), (6, &[]), (15, &[]), (20, &[3])] {
            chain.make(now_s, txs(&chain, amounts), &key(1)).unwrap();
        }
        assert!(chain.make(21, txs(&chain, &[1 << 101]), &key(1)).unwrap()[0].is_err(), "and makes no block");
        let funded = |chain: &Chain| chain.view(|l| l.state().account(&key(2).public()).free).unwrap();
        assert_eq!((funded(&chain), *chain.height().borrow()), (Amount(6), 3));
        drop(chain);
        let chain = open(0).unwrap();
        assert_eq!(funded(&chain), Amount(6));
        let follower = open(1).unwrap();
        assert_eq!(chain.blocks(1, 1).unwrap().len(), 1, "within the budget");
        for block in chain.blocks(1, usize::MAX).unwrap() {
            follower.accept(&block).unwrap();
        }
        assert_eq!(follower.view(Ledger::tip).unwrap(), chain.view(Ledger::tip).unwrap());
        assert!(follower.accept(&chain.blocks(3, 1).unwrap()[0]).is_err(), "taken once");
        drop(chain);
        let meta = Meta::open(dirs[0].path()).unwrap();
        let account = to_bytes(&Key::Account(key(2).public()));
        let Some(Entry::Account(mut entry)) = meta.get::<Entry>(Table::Ledger, &account).unwrap() else {
            panic!("the account is stored");
        };
        entry.free.0 ^= 1;
        meta.commit(Batch::default().put(Table::Ledger, &account, &Entry::Account(entry))).unwrap();
        drop(meta);
        assert!(matches!(open(0), Err(ChainError::Restore(RestoreError::Root(3)))));
    }
}
