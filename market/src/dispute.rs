//! Disputes: how the ledger finds out whose result of a job is right, without running anything.
//!
//! ```text
//! client     Dispute, with a bond    what this receipt says did not come out of the work that this order names
//! verifiers  (off the ledger)        those that the order names fetch the work and run it again
//!            Commit                  a hash that hides what was found, until all have or COMMIT_TICKS are over
//!            Reveal                  what was found, until all who committed have or REVEAL_TICKS more are over
//! anybody    Decide                  where the last reveal has not done so
//! ```
//!
//! **Who wins.** What more than half of the *named* verifiers found is taken for right; who says nothing counts against every result. So a few that can be reached
//! decide nothing in the name of those that cannot.
//!
//! | most found | the provider's collateral | verifiers that found it | the client | the provider |
//! |---|---|---|---|---|
//! | what the receipt says | stays | [`VERIFIER_FEE`] each, of the bond | loses the bond | gets the rest of the bond |
//! | something else | loses the order's penalty, or what there is | [`VERIFIER_FEE`] each, of the penalty | gets its bond and a quarter of the penalty | |
//! | nothing in common | stays | [`VERIFIER_FEE`] for each that found anything, of the bond | gets the rest of its bond | |
//!
//! **Why these amounts.** A verifier gets the same fee whatever it found, also where the penalty has too little for it (then the bond makes up the difference): if one verdict
//! paid better than the other, it would be the one to find. Whoever finds what most do not find gets nothing, and so does who finds nothing, or commits and does not reveal.
//! At least half of a penalty is burned; client and verifiers get a quarter each at most. That is what makes two things a loss:
//! *Ordering from oneself* to get collateral out of a deal before a challenge takes it saves half of it at most, and half is what a client gets when a challenge is forfeited.
//! *Buying verifiers* costs a client less than it brings only as long as a quarter of the penalty pays for more than half of them. A provider refuses orders
//! whose penalty is above what it takes those names to be good for; it knows both before it begins.
//!
//! **Time.** Windows count ticks, as all that somebody has to answer in, so an outage of the market makes them longer. Running the work again may take minutes and fetching its bytes
//! as long, so [`COMMIT_TICKS`] leave hours by default; to reveal takes nothing but a transaction. When a job may be disputed at all goes by its receipt's time in seconds
//! ([`DISPUTE_WINDOW_S`]), because a ledger that remembers decided disputes has to be able to forget them.
//!
//! **Invariants.** A job is disputed once: the ledger remembers it for as long as its receipt could be handed in again. Nobody learns of a verdict while another can still be committed to.
//! The collateral of a deal does not leave it while a dispute is open.
//!
//! **Non-goals.** Running programs; knowing what a job cost; judging who withheld bytes from a verifier, which cannot be proven: that verifier says that it found nothing.

use serde::{Deserialize, Serialize};

use crate::amount::Amount;
use crate::deal::{CLOSING_PERIODS, Deal, DealId, Status};
use crate::job::{JOBS_UNPAID_MAX, JobId, JobReceipt, Order, OrderError};
use crate::keys::PublicKey;
use crate::signed::{Signed, SignedError};
use crate::tx::Blame;

/// What a verifier gets for a verdict: the step in which jobs are paid for. The ledger does not know what the work cost; whoever names verifiers for long work pays them besides.
pub const VERIFIER_FEE: Amount = JOBS_UNPAID_MAX;
/// What a client puts up for a dispute, in fees: those of as many verifiers as an order can name, and three more, so that a provider that was right has something for its trouble.
pub const BOND_FEES: u128 = 10;
/// What a client puts up for a dispute: a tenth of a credit.
pub const DISPUTE_BOND: Amount = Amount(BOND_FEES * VERIFIER_FEE.0);
/// What the client gets of a penalty, in ten-thousandths, and what verifiers get of it at most. The rest is burned.
pub const PENALTY_SHARE_BPS: u16 = 2_500;
/// Ticks after the one in which a dispute was made in which verifiers can commit.
pub const COMMIT_TICKS: u64 = 6;
/// Ticks after those in which they can reveal.
pub const REVEAL_TICKS: u64 = 3;
/// How long after its end a job can be disputed, in seconds: a week, by the ledger's time.
pub const DISPUTE_WINDOW_S: u64 = 7 * 24 * 3600;
/// Most disputes about one deal's jobs that the ledger remembers, open and decided ones together.
pub const DISPUTES_MAX: usize = 16;

/// What a verifier has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Nothing.
    Awaited,
    /// That it has one: [`commitment`].
    Committed([u8; 32]),
    /// Which: the hash of the [`Ran`](crate::job::Ran) that came out, or `None` when it could not get the work or not run it as the receipt's configuration has it.
    Revealed(Option<[u8; 32]>),
}

/// A verifier that the order names, and its part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The verifier's node.
    pub node: PublicKey,
    /// What it has said.
    pub verdict: Verdict,
}

/// How a dispute ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Most found what the receipt says.
    Right,
    /// Most found something else.
    Wrong {
        /// What they found.
        found: [u8; 32],
        /// Taken from the deal's collateral.
        penalty: Amount,
        /// What of it the client got.
        award: Amount,
        /// What of it nobody got.
        burned: Amount,
    },
    /// No result was found by more than half.
    Unproven,
}

/// How and when a dispute ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The tick in which it ended.
    pub tick: u64,
    /// How.
    pub outcome: Outcome,
    /// What verifiers got, all together.
    pub fees: Amount,
}

/// Where a dispute stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Entered by `Dispute`: verifiers can commit.
    Committing,
    /// Entered when all have committed, or their time is over: those who did can reveal.
    Revealing,
    /// Entered when no further verdict can come: anybody can have it decided.
    Due,
    /// Entered by `Decide`, or by the last reveal.
    Decided,
}

/// A dispute about a job, open or decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// The deal that the job was ordered under.
    pub deal: DealId,
    /// What is to be run again: [`Work::id`](crate::job::Work::id).
    pub work: [u8; 32],
    /// The configuration that the provider says it ran it with. A verifier that has another finds nothing that could be compared.
    pub configuration: [u8; 32],
    /// What came out, as the receipt says.
    pub told: [u8; 32],
    /// What came out, as the client says. Nothing is decided by it.
    pub finding: [u8; 32],
    /// What the order says that the provider loses if it is wrong.
    pub penalty: Amount,
    /// Unix time in seconds until which its receipt can be disputed, so until then the ledger remembers that it was.
    pub disputable_until_s: u64,
    /// The tick in which the dispute was made.
    pub made_tick: u64,
    /// What of the client's money lies here. Nothing once it is decided.
    pub bond: Amount,
    /// The verifiers, in order of key.
    pub seats: Vec<Seat>,
    /// How it ended, if it did.
    pub decision: Option<Decision>,
}

/// Who gets what when a dispute ends. Bond and penalty are what the parts come to, with what is burned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Award {
    /// How it ends.
    pub outcome: Outcome,
    /// The verifiers that get [`VERIFIER_FEE`] each.
    pub paid: Vec<PublicKey>,
    /// What the client gets, its bond included.
    pub to_client: Amount,
    /// What the provider gets.
    pub to_provider: Amount,
}

/// What `verifier` commits to: that it `found` this when it ran the work of `job`. The `nonce` is random, so that nobody can try out the few results that there may be;
/// the verifier's key is in it, so that nobody can copy another's.
pub fn commitment(job: JobId, verifier: &PublicKey, found: Option<[u8; 32]>, nonce: &[u8; 32]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 verdict v1");
    hasher.update(&job.0).update(&verifier.to_bytes());
    hasher.update(&[u8::from(found.is_some())]).update(&found.unwrap_or_default()).update(nonce);
    hasher.finalize().into()
}

impl Dispute {
    /// The dispute that a client of `deal` makes at `time_s`, in `tick`, about what `receipt` says of `order`, if these are what the deal's parties signed and have something to
    /// be decided between them. Who the verifiers are, and what was disputed before, is for the caller to look at.
    ///
    /// # Errors
    /// [`DisputeError`].
    pub fn of(
        order: &Signed<Order>,
        receipt: &Signed<JobReceipt>,
        finding: [u8; 32],
        deal: &Deal,
        (time_s, tick): (u64, u64),
    ) -> Result<Self, DisputeError> {
        let job = order.value().job_id();
        let JobReceipt::V1 { job: receipt_job, ran, ended_s } = receipt.value();
        if !deal.signers.contains(&order.signer()) {
            return Err(DisputeError::OrderSigner);
        }
        if receipt.signer() != deal.terms.node {
            return Err(DisputeError::ReceiptSigner);
        }
        order.value().check()?;
        let order = order.value().v1();
        if *receipt_job != job {
            return Err(DisputeError::OtherJob { order: job, receipt: *receipt_job });
        }
        if ran.work != order.work {
            return Err(DisputeError::OtherWork);
        }
        let told = ran.hash();
        if finding == told {
            return Err(DisputeError::Agreed);
        }
        if order.verifiers.is_empty() {
            return Err(DisputeError::NoVerifiers);
        }
        if order.penalty == Amount::ZERO {
            return Err(DisputeError::NoPenalty);
        }
        let disputable_until_s = ended_s.saturating_add(DISPUTE_WINDOW_S);
        if time_s > disputable_until_s {
            return Err(DisputeError::WindowOver { ended_s: *ended_s, until_s: disputable_until_s });
        }
        let seat = |node: &PublicKey| Seat { node: *node, verdict: Verdict::Awaited };
        Ok(Self {
            deal: order.deal,
            work: order.work,
            configuration: ran.configuration,
            told,
            finding,
            penalty: order.penalty,
            disputable_until_s,
            made_tick: tick,
            bond: DISPUTE_BOND,
            seats: order.verifiers.iter().map(seat).collect(),
            decision: None,
        })
    }

    /// Whether it is not decided.
    pub fn is_open(&self) -> bool {
        self.decision.is_none()
    }

    /// Whether the ledger can forget it at `time_s`: it is decided, and its receipt cannot be disputed any more.
    pub fn can_be_forgotten(&self, time_s: u64) -> bool {
        !self.is_open() && time_s > self.disputable_until_s
    }

    /// The last tick in which verifiers can commit.
    pub fn commit_until_tick(&self) -> u64 {
        self.made_tick + COMMIT_TICKS
    }

    /// The last tick in which they can reveal.
    pub fn reveal_until_tick(&self) -> u64 {
        self.commit_until_tick() + REVEAL_TICKS
    }

    /// Where it stands in `tick`.
    pub fn stage(&self, tick: u64) -> Stage {
        let any = |is: fn(&Verdict) -> bool| self.seats.iter().any(|seat| is(&seat.verdict));
        if !self.is_open() {
            Stage::Decided
        } else if tick <= self.commit_until_tick() && any(|verdict| *verdict == Verdict::Awaited) {
            Stage::Committing
        } else if tick <= self.reveal_until_tick() && any(|verdict| matches!(verdict, Verdict::Committed(_)))
        {
            Stage::Revealing
        } else {
            Stage::Due
        }
    }

    /// Whether `verifier` can do something about it in `tick`: commit while the stage is [`Stage::Committing`], reveal while it is [`Stage::Revealing`].
    pub fn awaits(&self, verifier: &PublicKey, tick: u64) -> bool {
        let verdict = self.seats.iter().find(|seat| seat.node == *verifier).map(|seat| seat.verdict);
        match self.stage(tick) {
            Stage::Committing => verdict == Some(Verdict::Awaited),
            Stage::Revealing => matches!(verdict, Some(Verdict::Committed(_))),
            Stage::Due | Stage::Decided => false,
        }
    }

    fn seat_mut(&mut self, verifier: &PublicKey) -> Result<&mut Seat, DisputeError> {
        self.seats.iter_mut().find(|seat| seat.node == *verifier).ok_or(DisputeError::NotAVerifier)
    }

    /// Has `verifier` commit to a verdict in `tick`.
    ///
    /// # Errors
    /// [`DisputeError`]; nothing has changed then.
    pub fn commit(&mut self, verifier: &PublicKey, hash: [u8; 32], tick: u64) -> Result<(), DisputeError> {
        let (stage, until_tick) = (self.stage(tick), self.commit_until_tick());
        let seat = self.seat_mut(verifier)?;
        if seat.verdict != Verdict::Awaited {
            return Err(DisputeError::Committed);
        }
        if stage != Stage::Committing {
            return Err(DisputeError::CommitsOver { until_tick });
        }
        seat.verdict = Verdict::Committed(hash);
        Ok(())
    }

    /// Has `verifier` reveal in `tick` what it committed to.
    ///
    /// # Errors
    /// [`DisputeError`]; nothing has changed then.
    pub fn reveal(
        &mut self,
        job: JobId,
        verifier: &PublicKey,
        found: Option<[u8; 32]>,
        nonce: &[u8; 32],
        tick: u64,
    ) -> Result<(), DisputeError> {
        let stage = self.stage(tick);
        let (commit_until, reveal_until) = (self.commit_until_tick(), self.reveal_until_tick());
        let seat = self.seat_mut(verifier)?;
        let committed = match seat.verdict {
            Verdict::Awaited => return Err(DisputeError::NotCommitted),
            Verdict::Revealed(_) => return Err(DisputeError::Revealed),
            Verdict::Committed(hash) => hash,
        };
        match stage {
            Stage::Committing => return Err(DisputeError::CommitsOpen { until_tick: commit_until }),
            Stage::Due | Stage::Decided => {
                return Err(DisputeError::RevealsOver { until_tick: reveal_until });
            }
            Stage::Revealing => {}
        }
        if commitment(job, verifier, found, nonce) != committed {
            return Err(DisputeError::OtherVerdict);
        }
        seat.verdict = Verdict::Revealed(found);
        Ok(())
    }

    /// What more than half of the named verifiers found, if they did.
    pub fn majority(&self) -> Option<[u8; 32]> {
        let found = |seat: &Seat| if let Verdict::Revealed(found) = seat.verdict { found } else { None };
        let votes = |result: &[u8; 32]| self.seats.iter().filter(|seat| found(seat) == Some(*result)).count();
        self.seats.iter().filter_map(found).find(|result| 2 * votes(result) > self.seats.len())
    }

    /// Who gets what when it is decided by what was revealed, while `collateral` is left in the deal.
    pub fn award(&self, collateral: Amount) -> Award {
        let majority = self.majority();
        let agrees = |seat: &&Seat| match (seat.verdict, majority) {
            (Verdict::Revealed(Some(found)), Some(most)) => found == most,
            (Verdict::Revealed(found), None) => found.is_some(),
            _ => false,
        };
        let paid: Vec<PublicKey> = self.seats.iter().filter(agrees).map(|seat| seat.node).collect();
        let fees = fees_of(paid.len());
        let left = self.bond.saturating_sub(fees);
        match majority {
            None => Award { outcome: Outcome::Unproven, paid, to_client: left, to_provider: Amount::ZERO },
            Some(found) if found == self.told => {
                Award { outcome: Outcome::Right, paid, to_client: Amount::ZERO, to_provider: left }
            }
            Some(found) => {
                let penalty = self.penalty.min(collateral);
                let award = penalty.share(PENALTY_SHARE_BPS);
                // As much again for the verifiers, if they need it; what it lacks comes out of the bond, which has enough for all.
                let of_penalty = fees.min(award);
                let burned = penalty.saturating_sub(award).saturating_sub(of_penalty);
                // No more than bond and collateral together, which were issued.
                let to_client = Amount(left.0 + of_penalty.0 + award.0);
                let outcome = Outcome::Wrong { found, penalty, award, burned };
                Award { outcome, paid, to_client, to_provider: Amount::ZERO }
            }
        }
    }
}

/// What `verifiers` get, all together.
pub fn fees_of(verifiers: usize) -> Amount {
    Amount(VERIFIER_FEE.0 * verifiers as u128)
}

/// Whether a job of `deal` can be disputed in `tick`, as far as the deal goes. Not any more from when a closing one's time is over, so that closing ends.
pub fn is_disputable(deal: &Deal, tick: u64) -> bool {
    match deal.status {
        Status::Open => true,
        Status::Closing { since_tick } => tick < since_tick + CLOSING_PERIODS,
    }
}

/// Why a dispute is not opened, a verdict not taken, or a decision not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DisputeError {
    /// The order does not hold.
    #[error("the order does not hold: {0}; hand in the bytes that were sent to the provider")]
    OrderSignature(SignedError),
    /// The order is signed by a node that put no money into the deal.
    #[error("the order is not signed by a node that funded its deal")]
    OrderSigner,
    /// The order is none.
    #[error(transparent)]
    Order(#[from] OrderError),
    /// The receipt does not hold.
    #[error("the receipt does not hold: {0}; hand in the bytes that the provider sent")]
    ReceiptSignature(SignedError),
    /// The receipt is somebody else's.
    #[error("the receipt is not signed by the provider's node of the order's deal")]
    ReceiptSigner,
    /// The receipt is for another job.
    #[error(
        "the receipt is for job {receipt}, the order makes job {order}; hand in those that belong together"
    )]
    OtherJob {
        /// The order's.
        order: JobId,
        /// The receipt's.
        receipt: JobId,
    },
    /// What came out came out of something else.
    #[error(
        "the receipt's result is of other work than the order's; a receipt like that is not to be paid for"
    )]
    OtherWork,
    /// The client says what the provider says.
    #[error("the finding is the receipt's own result, so there is nothing to dispute")]
    Agreed,
    /// Nobody could decide.
    #[error("the order names no verifiers, so nobody can decide; name some in the next order")]
    NoVerifiers,
    /// Nothing could be won.
    #[error("the order names no penalty, so nothing can be won; name one in the next order")]
    NoPenalty,
    /// The job ended too long ago.
    #[error("the job ended at unix time {ended_s} and could be disputed until {until_s}")]
    WindowOver {
        /// When it ended, as its receipt says.
        ended_s: u64,
        /// Until when it could be disputed.
        until_s: u64,
    },
    /// The sender's node has put no money into the deal.
    #[error("this node has put no money into the deal; top it up by the smallest amount, then dispute")]
    Signer,
    /// The job is or was disputed.
    #[error("job {job} is disputed or was; look at how that stands")]
    Disputed {
        /// The job.
        job: JobId,
    },
    /// As many of the deal's jobs are or were disputed as the ledger remembers.
    #[error(
        "{DISPUTES_MAX} jobs of this deal are or were disputed; wait until one is decided and older than a week"
    )]
    TooMany,
    /// A verifier is not known.
    #[error("verifier {verifier} is not registered on the ledger; it has to be before it can be of use")]
    Unregistered {
        /// The verifier.
        verifier: PublicKey,
    },
    /// A verifier belongs to one of the parties.
    #[error(
        "verifier {verifier} is a node of the client's or the provider's own account; name others in the next order"
    )]
    OwnCase {
        /// The verifier.
        verifier: PublicKey,
    },
    /// Two verifiers are one.
    #[error(
        "verifier {verifier} is of one account with another; name nodes of different accounts in the next order"
    )]
    SameAccount {
        /// The verifier.
        verifier: PublicKey,
    },
    /// There is no such dispute.
    #[error("there is no dispute about this job; if there was one, it is forgotten by now")]
    NoSuchDispute,
    /// The sender's node is not named.
    #[error("the order does not name this node as a verifier")]
    NotAVerifier,
    /// The verifier has committed.
    #[error("this node has committed to a verdict already; it can only reveal that")]
    Committed,
    /// It is too late to commit.
    #[error("verdicts could be committed to until tick {until_tick}, or until all were")]
    CommitsOver {
        /// The last tick in which they could.
        until_tick: u64,
    },
    /// It is too early to reveal.
    #[error("others can still commit; reveal after tick {until_tick}, or once all have committed")]
    CommitsOpen {
        /// The last tick in which they can.
        until_tick: u64,
    },
    /// The verifier has committed to nothing.
    #[error("this node has committed to no verdict, so it has none to reveal")]
    NotCommitted,
    /// The verifier has revealed.
    #[error("this node has revealed its verdict already")]
    Revealed,
    /// What is revealed is something else.
    #[error("this is not what the node committed to; reveal the same verdict with the same nonce")]
    OtherVerdict,
    /// It is too late to reveal.
    #[error("verdicts could be revealed until tick {until_tick}")]
    RevealsOver {
        /// The last tick in which they could.
        until_tick: u64,
    },
    /// It is too early to decide.
    #[error("verdicts are still awaited; decide after tick {until_tick}, or once all are revealed")]
    Undecided {
        /// The last tick in which they can come.
        until_tick: u64,
    },
    /// It is decided.
    #[error("the dispute is decided")]
    Decided,
    /// A deal cannot be settled yet.
    #[error("job {job} of this deal is disputed; settle once that is decided")]
    Open {
        /// The job.
        job: JobId,
    },
}

impl DisputeError {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OrderSignature(_) | Self::OrderSigner | Self::Order(_) => "bad_order",
            Self::ReceiptSignature(_) | Self::ReceiptSigner => "bad_receipt",
            Self::OtherJob { .. } | Self::OtherWork => "other_job",
            Self::Agreed => "nothing_to_dispute",
            Self::NoVerifiers => "no_verifiers",
            Self::NoPenalty => "no_penalty",
            Self::WindowOver { .. } => "dispute_too_late",
            Self::Signer => "not_a_signer",
            Self::Disputed { .. } => "disputed",
            Self::TooMany => "too_many_disputes",
            Self::Unregistered { .. } => "unknown_verifier",
            Self::OwnCase { .. } => "own_case",
            Self::SameAccount { .. } => "same_account",
            Self::NoSuchDispute => "no_such_dispute",
            Self::NotAVerifier => "not_a_verifier",
            Self::Committed => "committed",
            Self::CommitsOver { .. } => "commits_over",
            Self::CommitsOpen { .. } => "commits_open",
            Self::NotCommitted => "not_committed",
            Self::Revealed => "revealed",
            Self::OtherVerdict => "other_verdict",
            Self::RevealsOver { .. } => "reveals_over",
            Self::Undecided { .. } => "undecided",
            Self::Decided => "decided",
            Self::Open { .. } => "dispute_open",
        }
    }

    /// Who has to change something.
    pub fn blame(&self) -> Blame {
        match self {
            Self::OrderSigner
            | Self::Order(_)
            | Self::NoVerifiers
            | Self::NoPenalty
            | Self::Unregistered { .. }
            | Self::OwnCase { .. }
            | Self::SameAccount { .. } => Blame::Client,
            Self::OtherWork => Blame::Provider,
            Self::CommitsOpen { .. } | Self::Undecided { .. } | Self::Decided | Self::Open { .. } => {
                Blame::Nobody
            }
            _ => Blame::Sender,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(tag: u8) -> PublicKey {
        PublicKey::Ed25519([tag; 32])
    }

    fn dispute(verdicts: &[Verdict]) -> Dispute {
        let seat = |(i, verdict): (usize, &Verdict)| Seat { node: key(i as u8), verdict: *verdict };
        Dispute {
            deal: DealId([1; 32]),
            work: [2; 32],
            configuration: [3; 32],
            told: [0; 32],
            finding: [1; 32],
            penalty: Amount(1 << 60),
            disputable_until_s: 1000,
            made_tick: 5,
            bond: DISPUTE_BOND,
            seats: verdicts.iter().enumerate().map(seat).collect(),
            decision: None,
        }
    }

    fn found(result: u8) -> Verdict {
        Verdict::Revealed(Some([result; 32]))
    }

    #[test]
    fn most_means_more_than_half_of_those_named() {
        let nothing = Verdict::Revealed(None);
        let of = |verdicts: &[Verdict]| dispute(verdicts).majority();
        assert_eq!(of(&[found(1)]), Some([1; 32]));
        assert_eq!(of(&[found(1), found(2), found(1)]), Some([1; 32]));
        assert_eq!(of(&[found(1), found(1), Verdict::Awaited, Verdict::Committed([1; 32])]), None, "half");
        assert_eq!(of(&[found(1), nothing, nothing]), None, "one in three, though nobody says otherwise");
        assert_eq!(of(&[nothing, nothing, nothing]), None);
        assert_eq!(of(&[found(1), found(2), found(3)]), None);
        assert_eq!(of(&[found(2), found(0), found(2), found(2), found(1)]), Some([2; 32]));
    }

    #[test]
    fn a_commitment_is_one_verifiers_one_verdict_on_one_job() {
        let golden = commitment(JobId([1; 32]), &key(2), Some([3; 32]), &[4; 32]);
        assert_eq!(blake3::Hash::from_bytes(golden).to_hex().as_str(), GOLDEN_COMMITMENT);
        let others = [
            commitment(JobId([9; 32]), &key(2), Some([3; 32]), &[4; 32]),
            commitment(JobId([1; 32]), &key(9), Some([3; 32]), &[4; 32]),
            commitment(JobId([1; 32]), &key(2), Some([9; 32]), &[4; 32]),
            commitment(JobId([1; 32]), &key(2), None, &[4; 32]),
            commitment(JobId([1; 32]), &key(2), Some([3; 32]), &[9; 32]),
        ];
        assert!(!others.contains(&golden));
        let of_zeros = commitment(JobId([1; 32]), &key(2), Some([0; 32]), &[4; 32]);
        assert_ne!(of_zeros, others[3], "nothing is not a result of zeros");
    }

    const GOLDEN_COMMITMENT: &str = "24764d025e59ef090ae8bb8910b2ac99c936eb8b2367164dd3f527b77e88a06f";

    fn verdict() -> impl Strategy<Value = Verdict> {
        prop_oneof![
            Just(Verdict::Awaited),
            Just(Verdict::Committed([0; 32])),
            Just(Verdict::Revealed(None)),
            (0u8..3).prop_map(found),
        ]
    }

    proptest! {
        #[test]
        fn what_lies_in_a_dispute_is_paid_out_and_no_more(
            verdicts in proptest::collection::vec(verdict(), 1..=7),
            penalty in 0..1u128 << 45,
            collateral in 0..1u128 << 45,
        ) {
            let dispute = Dispute { penalty: Amount(penalty), ..dispute(&verdicts) };
            let award = dispute.award(Amount(collateral));
            let fees = fees_of(award.paid.len());
            let (mut lost, mut burned) = (Amount::ZERO, Amount::ZERO);
            if let Outcome::Wrong { found, penalty: taken, award: to_client, burned: gone } = award.outcome {
                prop_assert_ne!(found, dispute.told);
                prop_assert_eq!(taken.0, penalty.min(collateral));
                prop_assert!(2 * gone.0 >= taken.0, "half of a penalty is burned, so that none is worth having imposed");
                prop_assert!(4 * to_client.0 <= taken.0);
                (lost, burned) = (taken, gone);
            }
            prop_assert_eq!(DISPUTE_BOND.0 + lost.0, fees.0 + award.to_client.0 + award.to_provider.0 + burned.0);
            prop_assert!(award.to_provider == Amount::ZERO || award.outcome == Outcome::Right);
            // Whoever is paid found what most did, or anything where most found nothing in common.
            for seat in &dispute.seats {
                let agrees = match (seat.verdict, dispute.majority()) {
                    (Verdict::Revealed(Some(_)), None) => true,
                    (Verdict::Revealed(Some(result)), Some(most)) => result == most,
                    _ => false,
                };
                prop_assert_eq!(award.paid.contains(&seat.node), agrees);
            }
        }
    }
}
