//! Blocks: transactions in order, signed by the market. Anyone replays them and comes to the same state root.
//!
//! A block names the one before by hash, so the newest commits to all; its time never goes back; and it carries the root of the state after
//! it, so a market that breaks the rules is found out by the first one who replays.

use serde::{Deserialize, Serialize};
use spare_proofs::cipher::Secret;
use spare_proofs::encode::to_bytes;

use crate::beacon::{self, Beacon, BeaconChain};
use crate::genesis::{Genesis, GenesisError};
use crate::keys::{PublicKey, SigningSecret};
use crate::ledger::{self, Context};
use crate::signed::{NetworkId, Signable, Signed, SignedBytes, SignedError};
use crate::state::{Change, Changes, Draft, Entry, Key, NotConserved, State};
use crate::tx::{Event, Refused};

/// Most transactions of a block.
pub const BLOCK_TXS_MAX: usize = 1000;
/// Most bytes of a block's transactions.
pub const BLOCK_MAX_BYTES: usize = 4 << 20;

/// A block's header, signed by the market.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Header {
    /// The first version.
    V1 {
        /// The first block has height 1.
        height: u64,
        /// Unix time in seconds, not before that of the block before.
        time_s: u64,
        /// Hash of the header before, or zeros.
        previous: [u8; 32],
        /// Hash of all transactions in order.
        txs_hash: [u8; 32],
        /// Root of the state after this block.
        state_root: [u8; 32],
        /// The beacon of the period that this block's time lies in.
        beacon: Beacon,
    },
}

impl Signable for Header {
    const DOMAIN: &'static str = "spare 2026 block header v1";
    const MAX_BYTES: usize = 160;
}

/// A block.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Block {
    /// The signed header.
    pub header: SignedBytes,
    /// The transactions.
    pub txs: Vec<SignedBytes>,
}

/// The newest block, as far as the next one needs it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tip {
    /// Its height, 0 before the first.
    pub height: u64,
    /// Its time.
    pub time_s: u64,
    /// Hash of its header.
    pub hash: [u8; 32],
}

/// Why a block's header is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// The header does not hold.
    #[error("the block's header does not hold: {0}")]
    Signature(#[from] SignedError),
    /// The header is not signed by the market.
    #[error("the block is not signed by the market")]
    NotTheMarket,
}

/// Why a block is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The header does not hold, or is somebody else's.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The block does not follow the newest.
    #[error("block {height} does not follow block {tip}")]
    Order {
        /// Its height.
        height: u64,
        /// The newest.
        tip: u64,
    },
    /// The beacon is not that of the block's period.
    #[error("the beacon of block {height} does not follow")]
    Beacon {
        /// Its height.
        height: u64,
    },
    /// The transactions are not those of the header, or too many.
    #[error("block {height} does not hold the transactions that its header names")]
    Txs {
        /// Its height.
        height: u64,
    },
    /// A transaction is refused.
    #[error("transaction {index} of block {height} breaks the rules: {refused}")]
    Refused {
        /// The block's height.
        height: u64,
        /// Which transaction.
        index: usize,
        /// Why.
        refused: Refused,
    },
    /// The state after it is another than the header says.
    #[error("block {height} leads to another state than its header says")]
    Root {
        /// Its height.
        height: u64,
    },
    /// Money was made or lost.
    #[error(transparent)]
    NotConserved(#[from] NotConserved),
}

/// A ledger that cannot be taken up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// No market can have this genesis.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The header does not hold, or is somebody else's.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The entries are not the state that was committed to.
    #[error("the entries do not have the state root of block {0}")]
    Root(u64),
    /// Money was made or lost.
    #[error(transparent)]
    NotConserved(#[from] NotConserved),
}

fn txs_hash(txs: &[SignedBytes]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 block transactions v1");
    for tx in txs {
        let bytes = to_bytes(tx);
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(&bytes);
    }
    hasher.finalize().into()
}

fn header_hash(header: &SignedBytes) -> [u8; 32] {
    blake3::derive_key("spare 2026 block header hash v1", &header.bytes)
}

/// What the market's operator alone knows: the key that signs blocks, and all beacons.
pub struct Operator {
    key: SigningSecret,
    beacons: BeaconChain,
}

impl Operator {
    /// The operator of the market whose node key is made from `node_secret`. Computes for a tenth of a second.
    pub fn new(node_secret: &Secret) -> Self {
        let key = SigningSecret::from_secret(node_secret);
        Self { key, beacons: BeaconChain::new(&node_secret.derive("spare 2026 beacon secret v1", &[])) }
    }

    /// The market's node key.
    pub fn public(&self) -> PublicKey {
        self.key.public()
    }

    /// The beacon of period 0, for the genesis.
    pub fn first_beacon(&self) -> Beacon {
        self.beacons.at(0)
    }
}

/// How many of `txs` fit a block.
pub fn fitting(txs: &[SignedBytes]) -> usize {
    let mut left = BLOCK_MAX_BYTES;
    let fits = |tx: &&SignedBytes| match left.checked_sub(tx.bytes.len() + SIGNED_OVERHEAD_BYTES) {
        Some(less) => {
            left = less;
            true
        }
        None => false,
    };
    txs.iter().take(BLOCK_TXS_MAX).take_while(fits).count()
}

/// Bytes of a signed record beside what was signed: lengths, signer and signature.
const SIGNED_OVERHEAD_BYTES: usize = 128;

/// What became of a transaction that was submitted.
pub type Outcome = Result<Event, Refused>;

/// The next block, and what it changes. The ledger takes it with [`Ledger::take`], once it is durable.
#[derive(Debug)]
pub struct Next {
    /// The block.
    pub block: Block,
    tip: Tip,
    change: Change,
}

impl Next {
    /// The block's height.
    pub fn height(&self) -> u64 {
        self.tip.height
    }

    /// Entries that it changes, to be written to disk with the block.
    pub fn changes(&self) -> &Changes {
        self.change.entries()
    }
}

/// A block that was made.
#[derive(Debug)]
pub struct Made {
    /// The block; none when nothing was taken and none is due.
    pub next: Option<Next>,
    /// What became of each transaction submitted, in order.
    pub outcomes: Vec<Outcome>,
}

/// A ledger: its genesis, its state and its newest block.
#[derive(Debug, Clone)]
pub struct Ledger {
    genesis: Genesis,
    network: NetworkId,
    state: State,
    tip: Tip,
}

impl Ledger {
    /// The empty ledger of `genesis`.
    ///
    /// # Errors
    /// [`GenesisError`].
    pub fn new(genesis: Genesis) -> Result<Self, GenesisError> {
        genesis.check()?;
        Ok(Self { network: genesis.network(), genesis, state: State::default(), tip: Tip::default() })
    }

    /// The ledger after the block of `header`, from entries that were kept or fetched: the market signed their root. Whether the market kept
    /// the rules until then only a replay shows.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn restore(
        genesis: Genesis,
        header: &SignedBytes,
        entries: impl IntoIterator<Item = (Key, Entry)>,
    ) -> Result<Self, RestoreError> {
        let mut ledger = Self::new(genesis)?;
        let Header::V1 { height, time_s, state_root, .. } = ledger.check_header(header)?;
        ledger.state = State::of(entries);
        ledger.tip = Tip { height, time_s, hash: header_hash(header) };
        if ledger.state.root() != state_root {
            return Err(RestoreError::Root(height));
        }
        ledger.state.check_all()?;
        Ok(ledger)
    }

    /// What the market is.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The network.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The state after the newest block.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The newest block.
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// The period of the newest block.
    pub fn period(&self) -> u64 {
        self.genesis.period_at(self.tip.time_s)
    }

    /// Makes the next block of `submitted` transactions, which [fit](fitting), at unix time `now_s`. Those that are refused are left out. Without any, a block is made
    /// only if it is the first, or the first of its period: refused transactions leave no trace.
    ///
    /// # Errors
    /// [`NotConserved`]: a bug in the rules.
    pub fn make(
        &self,
        now_s: u64,
        submitted: Vec<SignedBytes>,
        operator: &Operator,
    ) -> Result<Made, NotConserved> {
        let (height, time_s) = (self.tip.height + 1, now_s.max(self.tip.time_s));
        let beacon = operator.beacons.at(self.genesis.period_at(time_s));
        let context = Context::new(&self.genesis, self.network, height, time_s);
        let mut draft = Draft::new(&self.state);
        ledger::begin_block(&mut draft, &context, beacon);
        let mut txs = Vec::with_capacity(submitted.len());
        let mut outcomes = Vec::with_capacity(submitted.len());
        for tx in submitted {
            let outcome = ledger::apply(&mut draft, &context, &tx);
            if outcome.is_ok() {
                txs.push(tx);
            }
            outcomes.push(outcome);
        }
        let is_due = self.tip.height == 0 || context.period > self.period();
        if txs.is_empty() && !is_due {
            return Ok(Made { next: None, outcomes });
        }
        let change = draft.finish()?;
        let header = Header::V1 {
            height,
            time_s,
            previous: self.tip.hash,
            txs_hash: txs_hash(&txs),
            state_root: change.root(),
            beacon,
        };
        let header = Signed::new(header, self.network, &operator.key).raw().clone();
        let tip = Tip { height, time_s, hash: header_hash(&header) };
        Ok(Made { next: Some(Next { block: Block { header, txs }, tip, change }), outcomes })
    }

    /// Replays the next block of somebody else's. Returns it with what each transaction did.
    ///
    /// # Errors
    /// [`BlockError`].
    pub fn replay(&self, block: Block) -> Result<(Next, Vec<Event>), BlockError> {
        let Header::V1 { height, time_s, previous, txs_hash: expected_txs, state_root, beacon } =
            self.check_header(&block.header)?;
        if height != self.tip.height + 1 || previous != self.tip.hash || time_s < self.tip.time_s {
            return Err(BlockError::Order { height, tip: self.tip.height });
        }
        if fitting(&block.txs) < block.txs.len() || txs_hash(&block.txs) != expected_txs {
            return Err(BlockError::Txs { height });
        }
        let context = Context::new(&self.genesis, self.network, height, time_s);
        let totals = self.state.totals();
        let (known, known_period) = match totals.beacons.last() {
            Some(known) => (*known, totals.period),
            None => (self.genesis.v1().beacon, 0),
        };
        if !beacon::follows((&beacon, context.period), (&known, known_period)) {
            return Err(BlockError::Beacon { height });
        }
        let mut draft = Draft::new(&self.state);
        ledger::begin_block(&mut draft, &context, beacon);
        let mut events = Vec::with_capacity(block.txs.len());
        for (index, tx) in block.txs.iter().enumerate() {
            let event = ledger::apply(&mut draft, &context, tx);
            events.push(event.map_err(|refused| BlockError::Refused { height, index, refused })?);
        }
        let change = draft.finish()?;
        if change.root() != state_root {
            return Err(BlockError::Root { height });
        }
        let tip = Tip { height, time_s, hash: header_hash(&block.header) };
        Ok((Next { block, tip, change }, events))
    }

    /// Replays and takes the next block of somebody else's.
    ///
    /// # Errors
    /// [`BlockError`]; nothing has changed then.
    pub fn accept(&mut self, block: Block) -> Result<Vec<Event>, BlockError> {
        let (next, events) = self.replay(block)?;
        self.take(next);
        Ok(events)
    }

    /// Takes the next block, which was made or replayed for the state that this ledger is in, and returns it.
    pub fn take(&mut self, next: Next) -> Block {
        debug_assert_eq!(next.tip.height, self.tip.height + 1, "made for another state");
        self.state.take(next.change);
        self.tip = next.tip;
        next.block
    }

    fn check_header(&self, header: &SignedBytes) -> Result<Header, HeaderError> {
        let signed = header.clone().check::<Header>(self.network)?;
        if signed.signer() != self.genesis.v1().market {
            return Err(HeaderError::NotTheMarket);
        }
        Ok(*signed.value())
    }
}
