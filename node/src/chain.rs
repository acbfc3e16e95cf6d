//! The ledger at this node: blocks and state in the metadata store, and the state in memory.
//!
//! Every node replays every block, from the first one or from a snapshot that the market signed. A block, what it changed and the new tip are one
//! synced write, so a crash leaves the ledger at one block or the next. At start the state is read and its root compared with the one that the
//! newest block was signed over.
//!
//! **Invariant:** memory is never ahead of the disk for anybody to see. If a block cannot be written, the ledger answers nothing any more
//! until the node is started anew.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, RwLock};

use spare_market::block::{Block, BlockError, Ledger, Next, Operator, Outcome, RestoreError};
use spare_market::genesis::Genesis;
use spare_market::signed::SignedBytes;
use spare_market::state::{Entry, Key, NotConserved};
use spare_market::tx::Event;
use spare_proofs::encode::{from_bytes, to_bytes};
use tokio::sync::watch;

use crate::crash;
use crate::meta::{Batch, Meta, MetaError, Table};

/// The newest block's signed header.
const TIP_KEY: &[u8] = b"ledger tip";
/// Longest key of an entry.
const KEY_MAX_BYTES: usize = 96;
/// Entries in a part of a snapshot. An entry has less than a kilobyte.
const PART_ENTRIES: usize = 128;

/// Why the ledger cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// The metadata store failed.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// What is stored, or was fetched, is not a ledger.
    #[error("this is not the market's ledger: {0}")]
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
    /// There is a ledger here already.
    #[error("this node has a ledger already")]
    Begun,
}

/// A part of a snapshot.
#[derive(Debug)]
pub enum SnapshotPart {
    /// Comes first: the header of the block that the state is after.
    Header(SignedBytes),
    /// Some entries of the state.
    Entries(Vec<(Key, Entry)>),
}

/// The ledger at this node.
pub struct Chain {
    meta: Arc<Meta>,
    /// As it is on disk, for everybody to see; `None` once a block could not be written.
    ledger: RwLock<Option<Ledger>>,
    /// Held by whoever works on the next block.
    writing: Mutex<()>,
    height: watch::Sender<u64>,
}

impl Chain {
    /// Opens the ledger of `genesis` that is kept in `meta`, or begins it.
    ///
    /// # Errors
    /// [`ChainError`] when what is stored does not have the root that was signed.
    pub fn open(meta: Arc<Meta>, genesis: Genesis) -> Result<Self, ChainError> {
        let header: Option<SignedBytes> = meta.get(Table::State, TIP_KEY)?;
        let ledger = match header {
            None => Ledger::new(genesis).map_err(RestoreError::from)?,
            Some(header) => {
                let mut entries = Vec::new();
                meta.scan::<Entry>(Table::Ledger, b"", |key, entry| {
                    entries.extend(decode_key(key).map(|key| (key, entry)));
                    ControlFlow::Continue(())
                })?;
                Ledger::restore(genesis, &header, entries)?
            }
        };
        let height = watch::Sender::new(ledger.tip().height);
        Ok(Self { meta, ledger: RwLock::new(Some(ledger)), writing: Mutex::default(), height })
    }

    /// Looks at the ledger. This waits for no disk.
    ///
    /// # Errors
    /// [`ChainError::Broken`].
    pub fn view<T>(&self, look: impl FnOnce(&Ledger) -> T) -> Result<T, ChainError> {
        self.ledger.read().expect("no holder panics").as_ref().map(look).ok_or(ChainError::Broken)
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
        operator: &Operator,
    ) -> Result<Vec<Outcome>, ChainError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let made = self.view(|ledger| ledger.make(now_s, txs, operator))??;
        if let Some(next) = made.next {
            crash::point("market before block");
            self.write(next)?;
            crash::point("market after block");
        }
        Ok(made.outcomes)
    }

    /// Replays the next block and writes it. Blocks.
    ///
    /// # Errors
    /// [`ChainError`]; nothing has changed then.
    pub fn accept(&self, block: Block) -> Result<Vec<Event>, ChainError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let (next, events) = self.view(|ledger| ledger.replay(block))??;
        self.write(next)?;
        Ok(events)
    }

    /// Writes what a block changes, with the block and its header as the tip; then everybody sees it.
    fn write(&self, next: Next) -> Result<(), ChainError> {
        let mut batch = Batch::default();
        for (key, entry) in next.changes() {
            match entry {
                Some(entry) => batch.put(Table::Ledger, &to_bytes(key), entry),
                None => batch.delete(Table::Ledger, &to_bytes(key)),
            };
        }
        let height = next.height();
        batch.put(Table::Blocks, &height.to_be_bytes(), &next.block);
        batch.put(Table::State, TIP_KEY, &next.block.header);
        let written = self.meta.commit(&batch);
        let mut guard = self.ledger.write().expect("no holder panics");
        match written {
            Ok(()) => drop(guard.as_mut().ok_or(ChainError::Broken)?.take(next)),
            Err(error) => {
                tracing::error!(%error, "a block could not be written: the ledger stops");
                *guard = None;
                return Err(error.into());
            }
        }
        drop(guard);
        self.height.send_replace(height);
        Ok(())
    }

    /// Begins with a state that was fetched, after the block of `header`. Blocks.
    ///
    /// # Errors
    /// [`ChainError`], also when there is a ledger here already; nothing has changed then.
    pub fn restore(&self, header: &SignedBytes, entries: Vec<(Key, Entry)>) -> Result<(), ChainError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let (genesis, height) = self.view(|ledger| (ledger.genesis().clone(), ledger.tip().height))?;
        if height > 0 {
            return Err(ChainError::Begun);
        }
        let mut batch = Batch::default();
        for (key, entry) in &entries {
            batch.put(Table::Ledger, &to_bytes(key), entry);
        }
        batch.put(Table::State, TIP_KEY, header);
        let ledger = Ledger::restore(genesis, header, entries)?;
        self.meta.commit(&batch)?;
        let height = ledger.tip().height;
        *self.ledger.write().expect("no holder panics") = Some(ledger);
        self.height.send_replace(height);
        Ok(())
    }

    /// Hands over the state after the newest block, whatever blocks come meanwhile, until `take` says stop; nothing if there is no block yet.
    /// Blocks.
    ///
    /// # Errors
    /// When the metadata store fails.
    pub fn snapshot(&self, mut take: impl FnMut(SnapshotPart) -> ControlFlow<()>) -> Result<(), MetaError> {
        let frozen = self.meta.freeze();
        let Some(header) = frozen.get::<SignedBytes>(Table::State, TIP_KEY)? else { return Ok(()) };
        if take(SnapshotPart::Header(header)).is_break() {
            return Ok(());
        }
        let mut entries = Vec::new();
        frozen.scan::<Entry>(Table::Ledger, |key, entry| {
            entries.extend(decode_key(key).map(|key| (key, entry)));
            if entries.len() < PART_ENTRIES {
                return ControlFlow::Continue(());
            }
            take(SnapshotPart::Entries(std::mem::take(&mut entries)))
        })?;
        if !entries.is_empty() {
            let _ = take(SnapshotPart::Entries(entries));
        }
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

/// An entry's key. One that does not decode is missing from the root then, which tells.
fn decode_key(key: &[u8]) -> Option<Key> {
    from_bytes(key, KEY_MAX_BYTES).ok()
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use super::*;
    use spare_market::amount::Amount;
    use spare_market::genesis::GenesisV1;
    use spare_market::grant::Grant;
    use spare_market::keys::SigningSecret;
    use spare_market::signed::Signed;
    use spare_market::tx::{Action, Tx};
    use spare_proofs::cipher::Secret;

    fn key(tag: u8) -> SigningSecret {
        SigningSecret::from_secret(&Secret::new([tag; 32]))
    }

    static OPERATOR: LazyLock<Operator> = LazyLock::new(|| Operator::new(&Secret::new([1; 32])));

    fn genesis() -> Genesis {
        Genesis::V1(GenesisV1 {
            market: OPERATOR.public(),
            started_s: 0,
            period_s: 10,
            beacon: OPERATOR.first_beacon(),
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
            chain.make(now_s, txs(&chain, amounts), &OPERATOR).unwrap();
        }
        assert!(
            chain.make(21, txs(&chain, &[1 << 101]), &OPERATOR).unwrap()[0].is_err(),
            "and makes no block"
        );
        let funded = |chain: &Chain| chain.view(|l| l.state().account(&key(2).public()).free).unwrap();
        assert_eq!((funded(&chain), *chain.height().borrow()), (Amount(6), 3));
        drop(chain);
        let chain = open(0).unwrap();
        assert_eq!(funded(&chain), Amount(6));
        let follower = open(1).unwrap();
        assert_eq!(chain.blocks(1, 1).unwrap().len(), 1, "within the budget");
        for block in chain.blocks(1, usize::MAX).unwrap() {
            follower.accept(block).unwrap();
        }
        assert_eq!(follower.view(Ledger::tip).unwrap(), chain.view(Ledger::tip).unwrap());
        assert!(follower.accept(chain.blocks(3, 1).unwrap().remove(0)).is_err(), "taken once");
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

    #[test]
    fn a_snapshot_is_the_state_of_its_moment_and_another_ledger_begins_with_it() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let open = |i: usize| Chain::open(Arc::new(Meta::open(dirs[i].path()).unwrap()), genesis());
        let chain = open(0).unwrap();
        chain.snapshot(|_| panic!("there is nothing to hand over")).unwrap();
        chain.make(5, txs(&chain, &[1, 2]), &OPERATOR).unwrap();
        let (mut header, mut entries) = (None, Vec::new());
        chain
            .snapshot(|part| {
                match part {
                    SnapshotPart::Header(signed) => {
                        header = Some(signed);
                        // What comes meanwhile is not part of it.
                        chain.make(6, txs(&chain, &[4]), &OPERATOR).unwrap();
                    }
                    SnapshotPart::Entries(more) => entries.extend(more),
                }
                ControlFlow::Continue(())
            })
            .unwrap();
        let (header, root) = (header.unwrap(), chain.view(|l| l.state().root()).unwrap());
        let joiner = open(1).unwrap();
        assert!(matches!(joiner.restore(&header, entries[1..].to_vec()), Err(ChainError::Restore(_))));
        let forged = SignedBytes { bytes: header.bytes.iter().map(|b| b ^ 1).collect(), ..header.clone() };
        assert!(matches!(joiner.restore(&forged, entries.clone()), Err(ChainError::Restore(_))));
        assert_eq!(*joiner.height().borrow(), 0, "nothing was taken");
        joiner.restore(&header, entries.clone()).unwrap();
        assert!(matches!(joiner.restore(&header, entries), Err(ChainError::Begun)));
        assert!(joiner.blocks(1, 1).unwrap().is_empty(), "what was before it does not have");
        joiner.accept(chain.blocks(2, 1).unwrap().remove(0)).unwrap();
        assert_eq!(joiner.view(|l| l.state().root()).unwrap(), root);
        drop(joiner);
        assert_eq!(open(1).unwrap().view(|l| l.state().root()).unwrap(), root, "also when it is opened anew");
    }
}
