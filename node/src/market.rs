//! The market at this node.
//!
//! **Participants.** The *market* is one node, named in the genesis: its sequencer puts transactions in order, makes blocks and signs them.
//! Every other node *follows*: it fetches blocks from the market, or from any peer that has them, and replays each one itself. One that is new to
//! a long ledger begins with a *snapshot*: it takes the market's word, signed, for what was before, and replays from there. A *wallet* numbers
//! and signs what this node has to say to the ledger, and waits until the block that holds it has arrived here.
//!
//! ```text
//! wallet -> Submit -> sequencer -> block -> one synced write -> answer
//!                                   `-> Blocks -> follower -> replay -> one synced write
//! ```
//!
//! **Non-goals.** Several markets that agree on one order. The market can leave transactions out, or stop; it cannot break a rule without every
//! follower noticing at that block.

use std::sync::Arc;
use std::time::Duration;

use rand::seq::SliceRandom;
use spare_market::block::{BLOCK_TXS_MAX, Block, Ledger, Operator, fitting};
use spare_market::genesis::Genesis;
use spare_market::keys::{PublicKey, SigningSecret};
use spare_market::signed::{Signed, SignedBytes};
use spare_market::tx::{Action, Blame, Refused, Tx};
use spare_proofs::cipher::Secret;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};

use crate::chain::{Chain, ChainError};
use crate::discover::Addresses;
use crate::limits::{
    BLOCK_SOURCES_MAX, BLOCKS_MAX_BYTES, BLOCKS_PER_ANSWER_BYTES, BLOCKS_WAIT, SNAPSHOT_MAX_BYTES,
    SUBMISSIONS_MAX, SUBMIT_TIMEOUT, bulk_timeout,
};
use crate::peers::{PeerError, Peers};
use crate::unix_now_s;

/// Seconds beyond two periods without a block, after which the market counts as away.
pub const AWAY_S: u64 = 60;

/// Pause of a follower that got nothing.
const FOLLOW_PAUSE: Duration = Duration::from_secs(1);
/// Tries of a transaction whose number another one of this node took.
const TRIES_MAX: usize = 10;
/// How long the ledger here may take to show a further block, when it lags behind the market's.
const CATCH_UP: Duration = Duration::from_secs(3);

/// A transaction refused by the ledger, as it is told to whoever submitted it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ledger refused ({code}): {detail}")]
pub struct NotTaken {
    /// Stable, for programs.
    pub code: String,
    /// Who has to change something.
    pub blame: Blame,
    /// For people.
    pub detail: String,
}

impl From<Refused> for NotTaken {
    fn from(refused: Refused) -> Self {
        Self { code: refused.code().to_owned(), blame: refused.blame(), detail: refused.to_string() }
    }
}

/// Why a transaction was not taken, or is not known to be.
#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    /// The ledger refused it.
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    /// The market could not be reached.
    #[error("the market cannot be reached: {0}")]
    Peer(#[from] PeerError),
    /// This node is not the market.
    #[error("this node is not the market, {0} is")]
    NotTheMarket(PublicKey),
    /// The market has too much to do, or stops.
    #[error("the market is busy; try again")]
    Busy,
    /// The transaction was taken, but its block has not arrived here.
    #[error("the transaction is in block {height}, which has not arrived here yet")]
    Slow {
        /// The block's height.
        height: u64,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A transaction on its way to a block.
struct Submission {
    tx: SignedBytes,
    answer: oneshot::Sender<Result<u64, NotTaken>>,
}

/// The ledger, and where transactions go.
pub struct Market {
    /// The ledger.
    pub chain: Arc<Chain>,
    /// The market's node.
    pub node: PublicKey,
    /// To the sequencer, if it is at this node.
    submissions: Option<mpsc::Sender<Submission>>,
}

impl Market {
    /// The market of `genesis`, whose ledger is `chain`. If its key is made from `node_secret`, this starts the sequencer.
    pub fn start(chain: Arc<Chain>, genesis: &Genesis, node_secret: &Secret) -> Self {
        let node = genesis.v1().market;
        let is_here = SigningSecret::from_secret(node_secret).public() == node;
        let submissions = is_here.then(|| {
            let (sender, receiver) = mpsc::channel(SUBMISSIONS_MAX);
            tokio::spawn(sequence(chain.clone(), genesis.clone(), Operator::new(node_secret), receiver));
            sender
        });
        Self { chain, node, submissions }
    }

    /// Whether the sequencer is at this node.
    pub fn is_here(&self) -> bool {
        self.submissions.is_some()
    }

    /// Puts a transaction into a block. Returns the block's height once it is durable.
    ///
    /// # Errors
    /// [`SubmitError`]; `NotTheMarket` at any other node.
    pub async fn submit(&self, tx: SignedBytes) -> Result<u64, SubmitError> {
        let sender = self.submissions.as_ref().ok_or(SubmitError::NotTheMarket(self.node))?;
        let (answer, answered) = oneshot::channel();
        sender.try_send(Submission { tx, answer }).map_err(|_| SubmitError::Busy)?;
        Ok(answered.await.map_err(|_| SubmitError::Busy)??)
    }
}

/// Makes blocks: of what was submitted, as soon as something is, and at least one in each period.
async fn sequence(
    chain: Arc<Chain>,
    genesis: Genesis,
    operator: Operator,
    mut submissions: mpsc::Receiver<Submission>,
) {
    let operator = Arc::new(operator);
    let mut batch: Vec<Submission> = Vec::new();
    loop {
        // What did not fit the last block comes first.
        if batch.is_empty() {
            tokio::select! {
                taken = submissions.recv_many(&mut batch, BLOCK_TXS_MAX) => if taken == 0 { return },
                () = sleep(until_next_period(&chain, &genesis)) => {}
            }
        }
        let (mut txs, mut answers): (Vec<_>, Vec<_>) = batch.drain(..).map(|s| (s.tx, s.answer)).unzip();
        let fitting = fitting(&txs);
        let rest = txs.split_off(fitting).into_iter().zip(answers.split_off(fitting));
        batch.extend(rest.map(|(tx, answer)| Submission { tx, answer }));
        let (at, by) = (chain.clone(), operator.clone());
        let made = tokio::task::spawn_blocking(move || at.make(unix_now_s(), txs, &by));
        // It is cancelled when the node stops.
        let Ok(made) = made.await else { return };
        match made {
            Ok(outcomes) => {
                let height = *chain.height().borrow();
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    // Whoever asked may be gone.
                    let _ = answer.send(outcome.map(|_| height).map_err(NotTaken::from));
                }
            }
            Err(error) => {
                tracing::error!(%error, "no further blocks are made");
                return;
            }
        }
    }
}

/// Time until a block is due even if nothing is submitted: the start of the first period that has none.
fn until_next_period(chain: &Chain, genesis: &Genesis) -> Duration {
    let v1 = genesis.v1();
    let next = match chain.view(Ledger::tip) {
        Ok(tip) if tip.height > 0 => genesis.period_at(tip.time_s) + 1,
        _ => genesis.period_at(unix_now_s()),
    };
    let starts_s = v1.started_s.saturating_add(next.saturating_mul(v1.period_s.into()));
    Duration::from_secs(starts_s.saturating_sub(unix_now_s()))
}

/// Fetches the ledger's blocks, and its state for a node that is new.
pub struct Follower {
    market: Arc<Market>,
    peers: Arc<Peers>,
    addresses: Arc<Addresses>,
    /// Blocks from which on a new node takes a snapshot instead of replaying them all.
    snapshot_after: u64,
}

impl Follower {
    /// Puts the parts together.
    pub fn new(
        market: Arc<Market>,
        peers: Arc<Peers>,
        addresses: Arc<Addresses>,
        snapshot_after: u64,
    ) -> Self {
        Self { market, peers, addresses, snapshot_after }
    }

    /// Fetches blocks and replays them, for as long as the node runs.
    pub async fn run(self: Arc<Self>) {
        loop {
            let mut is_ahead = false;
            for node in self.sources() {
                if self.follow_from(&node).await {
                    is_ahead = true;
                    break;
                }
            }
            if !is_ahead {
                sleep(FOLLOW_PAUSE).await;
            }
        }
    }

    /// Whom to ask: the market, and if it does not answer, some other peers, each time others, so that nobody stands in the way for long.
    fn sources(&self) -> Vec<PublicKey> {
        let mut others = self.addresses.connected();
        others.retain(|node| *node != self.market.node);
        others.shuffle(&mut rand::rng());
        others.truncate(BLOCK_SOURCES_MAX);
        others.insert(0, self.market.node);
        others
    }

    /// Takes the next blocks from `node`. Returns whether the ledger here grew, or the market itself has nothing newer.
    async fn follow_from(&self, node: &PublicKey) -> bool {
        let is_market = *node == self.market.node;
        let from = *self.market.chain.height().borrow() + 1;
        // Only the market is waited for: the others have no news that it does not have.
        let (blocks, height) = match self.ask(node, from, is_market).await {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%node, %error, "a peer gave no blocks");
                return false;
            }
        };
        if from == 1 && height > self.snapshot_after && self.begin_from(node).await {
            return true;
        }
        if blocks.is_empty() {
            return is_market;
        }
        for block in blocks {
            let chain = self.market.chain.clone();
            let taken = tokio::task::spawn_blocking(move || chain.accept(block));
            // It is cancelled when the node stops.
            let Ok(taken) = taken.await else { return false };
            if let Err(error) = taken {
                tracing::warn!(%node, %error, from, "a block is not taken");
                break;
            }
        }
        *self.market.chain.height().borrow() >= from
    }

    async fn ask(&self, node: &PublicKey, from: u64, wait: bool) -> Result<(Vec<Block>, u64), PeerError> {
        let asking = self.peers.with_session(node, async |session| session.blocks(from, wait).await);
        let limit = BLOCKS_WAIT + bulk_timeout(BLOCKS_MAX_BYTES as u64);
        timeout(limit, asking).await.unwrap_or(Err(PeerError::Stalled))
    }

    /// Takes over the state that `node` has, which the market has to have signed. Returns whether that went well.
    async fn begin_from(&self, node: &PublicKey) -> bool {
        let asking = self.peers.with_session(node, async |session| session.snapshot().await);
        let limit = bulk_timeout(SNAPSHOT_MAX_BYTES as u64);
        let fetched = timeout(limit, asking).await.unwrap_or(Err(PeerError::Stalled));
        let (header, entries) = match fetched {
            Ok(snapshot) => snapshot,
            Err(error) => {
                tracing::warn!(%node, %error, "a peer gave no snapshot of the ledger");
                return false;
            }
        };
        let chain = self.market.chain.clone();
        let taken = tokio::task::spawn_blocking(move || chain.restore(&header, entries));
        let Ok(taken) = taken.await else { return false };
        match taken {
            Ok(()) => {
                let height = *self.market.chain.height().borrow();
                tracing::info!(%node, height, "the ledger begins with a snapshot");
                true
            }
            Err(error) => {
                tracing::warn!(%node, %error, "a snapshot of the ledger is not taken");
                false
            }
        }
    }

    /// Blocks from height `from` on: those that are here, or where the ledger began with a later one, other peers'.
    ///
    /// # Errors
    /// [`ChainError`] when the metadata store fails.
    pub async fn blocks(&self, from: u64) -> Result<Vec<Block>, ChainError> {
        let chain = self.market.chain.clone();
        let reading = tokio::task::spawn_blocking(move || chain.blocks(from, BLOCKS_PER_ANSWER_BYTES));
        let here = reading.await.expect("reading blocks does not panic")?;
        if !here.is_empty() || *self.market.chain.height().borrow() < from {
            return Ok(here);
        }
        for node in self.sources() {
            match self.ask(&node, from, false).await {
                Ok((blocks, _)) if !blocks.is_empty() => return Ok(blocks),
                Ok(_) => {}
                Err(error) => tracing::debug!(%node, %error, "a peer gave no blocks"),
            }
        }
        Ok(Vec::new())
    }
}

/// Signs and submits this node's transactions, one after another.
pub struct Wallet {
    market: Arc<Market>,
    peers: Arc<Peers>,
    node_key: SigningSecret,
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl Wallet {
    /// The wallet of the node with `node_key`.
    pub fn new(market: Arc<Market>, peers: Arc<Peers>, node_key: SigningSecret) -> Self {
        Self { market, peers, node_key, one_at_a_time: tokio::sync::Mutex::default() }
    }

    /// Has the ledger do `action`, and waits until its block has arrived here.
    ///
    /// # Errors
    /// [`SubmitError`]. After `Peer` or `Slow` the transaction may have been taken all the same.
    pub async fn send(&self, action: Action) -> Result<u64, SubmitError> {
        self.send_all(vec![action]).await.pop().expect("one action has one outcome")
    }

    /// Has the ledger do one action after the other, and waits until the last one's block has arrived here. Says of each what became of it.
    pub async fn send_all(&self, actions: Vec<Action>) -> Vec<Result<u64, SubmitError>> {
        let _one_at_a_time = self.one_at_a_time.lock().await;
        let mut number = None;
        let mut outcomes = Vec::with_capacity(actions.len());
        for action in actions {
            outcomes.push(self.send_one(action, &mut number).await);
        }
        let newest = outcomes.iter().filter_map(|outcome| outcome.as_ref().ok()).max().copied();
        if let Some(height) = newest {
            let mut arrived = self.market.chain.height();
            if timeout(SUBMIT_TIMEOUT, arrived.wait_for(|newest| *newest >= height)).await.is_err() {
                for outcome in outcomes.iter_mut().filter(|outcome| outcome.is_ok()) {
                    *outcome = Err(SubmitError::Slow { height });
                }
            }
        }
        outcomes
    }

    /// Submits an action under the next number: the one after `number`, which was taken just now, or after the last one in the ledger here.
    async fn send_one(&self, action: Action, number: &mut Option<u64>) -> Result<u64, SubmitError> {
        let last = |l: &Ledger| l.state().delegate(&self.node_key.public()).map_or(0, |d| d.number);
        let mut tries = 0;
        loop {
            tries += 1;
            let next = match *number {
                Some(number) => number + 1,
                None => self.market.chain.view(last)? + 1,
            };
            let sent = self.submit(action.clone(), next).await;
            match &sent {
                Ok(_) => *number = Some(next),
                // The ledger here lags behind the market's; it will have caught up in a moment.
                Err(SubmitError::NotTaken(refused))
                    if refused.code == "wrong_number" && tries < TRIES_MAX =>
                {
                    *number = None;
                    let _ = timeout(CATCH_UP, self.market.chain.height().changed()).await;
                    continue;
                }
                // Whether it was taken is not known.
                Err(SubmitError::Peer(_)) => *number = None,
                Err(_) => {}
            }
            return sent;
        }
    }

    async fn submit(&self, action: Action, number: u64) -> Result<u64, SubmitError> {
        let tx = Signed::new(Tx::V1 { number, action }, self.peers.network(), &self.node_key).raw().clone();
        if self.market.is_here() {
            return self.market.submit(tx).await;
        }
        let node = self.market.node;
        Ok(self.peers.with_session(&node, async |session| session.submit(&tx).await).await??)
    }

    /// Registers this node under its account, as often as it takes, unless the ledger knows this grant or a newer one.
    pub async fn register(&self, grant: SignedBytes, serial: u64) {
        loop {
            let node = self.node_key.public();
            match self.market.chain.view(|l| l.state().delegate(&node).map(|d| d.serial)) {
                Ok(Some(known)) if known >= serial => return,
                Ok(_) => {}
                Err(_) => return,
            }
            match self.send(Action::Register { grant: grant.clone() }).await {
                Ok(height) => tracing::info!(height, "this node is registered on the ledger"),
                Err(SubmitError::NotTaken(refused)) if refused.code != "wrong_number" => {
                    tracing::error!(%refused, "this node cannot be registered on the ledger");
                    return;
                }
                Err(error) => {
                    tracing::debug!(%error, "this node is not registered on the ledger yet");
                    sleep(FOLLOW_PAUSE).await;
                }
            }
        }
    }
}
