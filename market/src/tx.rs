//! Transactions: what may be said to the ledger, and why it may be refused.
//!
//! A transaction is signed by a node key that its account has granted to, and numbered: the ledger takes each signer's numbers in order,
//! so nothing is taken twice. Records inside (terms, heads, vouchers, grants) carry their own signatures, since others made them.

use serde::{Deserialize, Serialize};

use spare_proofs::opening::SetOpening;

use crate::amount::Amount;
use crate::claim::ShowError;
use crate::deal::DealId;
use crate::dispute::{DisputeError, Outcome};
use crate::head::{FullHead, HeadError};
use crate::job::JobId;
use crate::keys::PublicKey;
use crate::signed::{Signable, SignedBytes, SignedError};
use crate::voucher::VoucherError;

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Tx {
    /// The first version.
    V1 {
        /// The signer's number for it: one more than that of its last transaction taken, from 1.
        number: u64,
        /// What is to be done.
        action: Action,
    },
}

/// What a transaction does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Makes a node key act for an account, or changes or revokes what it may do.
    Register {
        /// The account's signed grant.
        grant: SignedBytes,
    },
    /// Issues credits. For the market's key alone.
    Fund {
        /// Who gets them.
        account: PublicKey,
        /// How many.
        amount: Amount,
    },
    /// Takes up a provider's terms: the client's escrow and the provider's collateral are put aside.
    Open {
        /// The terms, signed by the provider's node.
        terms: SignedBytes,
        /// The client's money.
        escrow: Amount,
    },
    /// Adds to a deal's escrow.
    TopUp {
        /// The deal.
        deal: DealId,
        /// The client's money.
        amount: Amount,
    },
    /// Puts a newer head on the ledger, by either party.
    Anchor {
        /// The head, signed by both.
        head: FullHead,
    },
    /// Pays a provider what a voucher promises beyond what was paid.
    Redeem {
        /// The voucher, signed by the client.
        voucher: SignedBytes,
    },
    /// Starts closing a deal, by either party.
    Close {
        /// The deal.
        deal: DealId,
        /// The newest head that the closing party has.
        head: Option<FullHead>,
    },
    /// Ends a closing deal once its time is over. Anybody may.
    Settle {
        /// The deal.
        deal: DealId,
    },
    /// Adds to a deal's collateral.
    Pledge {
        /// The deal.
        deal: DealId,
        /// The provider's money.
        amount: Amount,
    },
    /// Begins to claim for a deal, by its provider: no voucher came. Voids vouchers that are not redeemed.
    StartClaims {
        /// The deal.
        deal: DealId,
    },
    /// Ends that, by the deal's provider: vouchers come again.
    EndClaims {
        /// The deal.
        deal: DealId,
    },
    /// Claims what storage cost since the last tick, under all deals of the signer that are claimed for.
    Claim {
        /// The running tick, whose beacon says what is to be shown.
        tick: u64,
        /// What is shown, in order of the draws.
        openings: Vec<SetOpening>,
    },
    /// Has it on record that a node did not claim in ticks that are over. Anybody may.
    Lapse {
        /// The node.
        node: PublicKey,
    },
    /// Has a deal's provider show that it holds what the deal's newest head on the ledger covers, for a bond.
    Challenge {
        /// The deal.
        deal: DealId,
    },
    /// Answers a challenge, by the deal's provider. Nothing needs to be shown if a newer head is on the ledger.
    Answer {
        /// The deal.
        deal: DealId,
        /// Who challenged.
        challenger: PublicKey,
        /// What is shown, in order of the draws.
        openings: Vec<SetOpening>,
    },
    /// Ends a challenge that was not answered in time. Anybody may.
    Forfeit {
        /// The deal.
        deal: DealId,
        /// Who challenged.
        challenger: PublicKey,
    },
    /// Says that a job's result is wrong, by a client's node that put money into its deal, for a bond. The verifiers that the order names decide.
    Dispute {
        /// The order, signed for the client.
        order: SignedBytes,
        /// The receipt, signed by the provider's node.
        receipt: SignedBytes,
        /// The hash of what the client says came out.
        finding: [u8; 32],
    },
    /// Commits a named verifier to a verdict that nobody can see yet.
    Commit {
        /// The job.
        job: JobId,
        /// The [`commitment`](crate::dispute::commitment).
        hash: [u8; 32],
    },
    /// Says what a verifier committed to. The last one decides.
    Reveal {
        /// The job.
        job: JobId,
        /// The hash of what came out, or `None` when it could not get the work or not run it.
        found: Option<[u8; 32]>,
        /// What the commitment was made with.
        nonce: [u8; 32],
    },
    /// Ends a dispute in which no further verdict can come. Anybody may.
    Decide {
        /// The job.
        job: JobId,
    },
}

impl Signable for Tx {
    const DOMAIN: &'static str = "spare 2026 transaction v1";
    const MAX_BYTES: usize = 80 * 1024;
}

/// What a transaction changed, for people and for whoever waits for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A node key acts for an account.
    Registered {
        /// The node key.
        delegate: PublicKey,
        /// The account.
        account: PublicKey,
    },
    /// Credits were issued.
    Funded {
        /// Who got them.
        account: PublicKey,
        /// How many.
        amount: Amount,
    },
    /// A deal was opened.
    Opened {
        /// The deal.
        deal: DealId,
    },
    /// A deal's escrow grew.
    ToppedUp {
        /// The deal.
        deal: DealId,
        /// By how much.
        amount: Amount,
    },
    /// A deal's newest head on the ledger changed.
    Anchored {
        /// The deal.
        deal: DealId,
        /// The head's number.
        seq: u64,
    },
    /// A provider was paid.
    Paid {
        /// The deal.
        deal: DealId,
        /// What left the escrow.
        amount: Amount,
        /// The market's share of it.
        fee: Amount,
        /// What the voucher promises and the escrow could not cover.
        short: Amount,
    },
    /// A deal is closing.
    Closing {
        /// The deal.
        deal: DealId,
    },
    /// A deal was closed and settled.
    Closed {
        /// The deal.
        deal: DealId,
        /// What the client got back.
        returned: Amount,
    },
    /// A deal's collateral grew.
    Pledged {
        /// The deal.
        deal: DealId,
        /// By how much.
        amount: Amount,
    },
    /// A deal is claimed for from now on.
    ClaimsStarted {
        /// The deal.
        deal: DealId,
    },
    /// A deal is not claimed for any more.
    ClaimsEnded {
        /// The deal.
        deal: DealId,
    },
    /// A provider showed what it holds and was paid.
    Claimed {
        /// Its node.
        node: PublicKey,
        /// Deals claimed for.
        deals: u64,
        /// What left the escrows.
        amount: Amount,
        /// The market's share of it, the cost of claiming included.
        fee: Amount,
    },
    /// A node did not claim in ticks that are over.
    Silent {
        /// The node.
        node: PublicKey,
        /// Taken from its collateral.
        burned: Amount,
    },
    /// A deal is challenged.
    Challenged {
        /// The deal.
        deal: DealId,
        /// By whom.
        challenger: PublicKey,
    },
    /// A challenge was answered, or stands for nothing any more.
    Answered {
        /// The deal.
        deal: DealId,
        /// Who challenged.
        challenger: PublicKey,
        /// What of the bond the challenger lost.
        lost: Amount,
    },
    /// A challenge was not answered in time.
    Forfeited {
        /// The deal.
        deal: DealId,
        /// Who challenged.
        challenger: PublicKey,
        /// Taken from the collateral.
        penalty: Amount,
        /// What of it the challenger got; the client got the rest.
        award: Amount,
    },
    /// A job's result is disputed.
    Disputed {
        /// The job's deal.
        deal: DealId,
        /// The job.
        job: JobId,
    },
    /// A verifier is committed to a verdict.
    Committed {
        /// The job.
        job: JobId,
        /// The verifier's node.
        verifier: PublicKey,
    },
    /// A verifier has said what it found, and others are still to say it.
    Revealed {
        /// The job.
        job: JobId,
        /// The verifier's node.
        verifier: PublicKey,
        /// What it found.
        found: Option<[u8; 32]>,
    },
    /// A dispute is decided.
    Decided {
        /// The job's deal.
        deal: DealId,
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
        /// What verifiers got, all together.
        fees: Amount,
    },
}

/// Whose fault a refusal is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Blame {
    /// Whoever sent the transaction.
    Sender,
    /// The client of the deal: what it signed does not hold.
    Client,
    /// The provider of the deal: what it signed does not hold.
    Provider,
    /// Nobody: it is too early, or somebody was faster.
    Nobody,
}

/// Why the ledger refuses a transaction. Nothing has changed then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The transaction itself does not hold.
    #[error("the transaction does not hold: {0}")]
    Signed(#[from] SignedError),
    /// The signer is not registered.
    #[error("the signer is not registered on the ledger")]
    UnknownSigner,
    /// The number is not the signer's next.
    #[error("the signer's next transaction is number {expected}, not {got}")]
    Number {
        /// Expected.
        expected: u64,
        /// Given.
        got: u64,
    },
    /// The signer's grant has expired.
    #[error("the signer's grant has expired")]
    Expired,
    /// The signer's grant does not cover this.
    #[error("the signer's grant does not cover this")]
    Scope,
    /// More than the signer may still spend.
    #[error("the signer's grant has {left} credits left to spend")]
    SpendCap {
        /// What is left.
        left: Amount,
    },
    /// A grant does not hold.
    #[error("the grant does not hold: {0}")]
    Grant(String),
    /// The node key acts for another account.
    #[error("the node key acts for another account")]
    OtherAccount,
    /// A grant with a higher number is known.
    #[error("a newer grant to this node key is known")]
    OldGrant,
    /// Only the market may.
    #[error("only the market's key may do this")]
    NotTheMarket,
    /// More than may ever be issued.
    #[error("this exceeds the most that may ever be issued")]
    Supply,
    /// The account has too little.
    #[error("the account has {free} credits, {needed} are needed")]
    Funds {
        /// What is free.
        free: Amount,
        /// What is needed.
        needed: Amount,
    },
    /// The provider has too little for its collateral.
    #[error("the provider has {free} credits, its collateral is {needed}")]
    Collateral {
        /// What is free.
        free: Amount,
        /// What is needed.
        needed: Amount,
    },
    /// The terms do not hold.
    #[error("the provider's terms do not hold: {0}")]
    Terms(String),
    /// The terms have expired, or run longer than terms may.
    #[error("the provider's terms cannot be taken up at this time")]
    TermsExpired,
    /// The deal is there already.
    #[error("this deal is open already")]
    DealExists,
    /// There is no such deal.
    #[error("there is no such deal; it may have been closed")]
    NoSuchDeal,
    /// The signer is neither of the deal's parties.
    #[error("the signer is not a party to this deal")]
    NotAParty,
    /// The deal is closing.
    #[error("the deal is closing")]
    Closing,
    /// The amount is nothing.
    #[error("the amount is nothing")]
    Nothing,
    /// As many nodes of the client have put money into the deal as may.
    #[error("too many nodes of this client have put money into this deal")]
    Signers,
    /// A head does not hold.
    #[error("the head does not hold: {0}")]
    HeadSignature(SignedError),
    /// A head is signed by a node that put no money into the deal.
    #[error("the head is not signed by a node that funded this deal")]
    HeadSigner,
    /// A head does not supersede the newest.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// A voucher does not hold.
    #[error("the voucher does not hold: {0}")]
    VoucherSignature(SignedError),
    /// A voucher is signed by a node that put no money into the deal.
    #[error("the voucher is not signed by a node that funded this deal")]
    VoucherSigner,
    /// A voucher pays for a period that is not over.
    #[error("the voucher pays for period {through}, which is not over")]
    VoucherEarly {
        /// The last period that it pays for.
        through: u64,
    },
    /// A voucher does not improve on what was paid.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// The escrow is empty.
    #[error("the deal's escrow is empty")]
    EscrowEmpty,
    /// It is too early.
    #[error("it is too early for this")]
    NotDue,
    /// There is no head on the ledger, or it covers nothing.
    #[error("the ledger has no head of this deal that covers anything")]
    NoHead,
    /// The deal is claimed for already.
    #[error("the deal is claimed for already")]
    Claiming,
    /// A claim is for another tick, or this one's was made.
    #[error("the claim is for tick {got}; the next one to claim in is {expected}")]
    ClaimTick {
        /// Expected.
        expected: u64,
        /// Given.
        got: u64,
    },
    /// There is nothing that could be claimed.
    #[error("there is nothing that this node could claim")]
    NothingToClaim,
    /// What is shown is not what was drawn.
    #[error(transparent)]
    Show(#[from] ShowError),
    /// The deal has no collateral, so a challenge or a dispute has nothing to win.
    #[error("the deal has no collateral")]
    NoCollateral,
    /// An account neither challenges itself nor disputes with itself.
    #[error("the deal's provider is this account itself")]
    OwnDeal,
    /// This account's challenge of this deal is open.
    #[error("this account has challenged this deal already")]
    ChallengeExists,
    /// There is no such challenge.
    #[error("there is no such challenge; it may have been dealt with")]
    NoSuchChallenge,
    /// The time for an answer is over.
    #[error("the time for an answer is over")]
    TooLate,
    /// A dispute about a job does not go that way.
    #[error(transparent)]
    Dispute(#[from] DisputeError),
}

impl Refused {
    /// Stable, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Signed(_) => "bad_transaction",
            Self::UnknownSigner => "unknown_signer",
            Self::Number { .. } => "wrong_number",
            Self::Expired => "grant_expired",
            Self::Scope => "scope",
            Self::SpendCap { .. } => "spend_cap",
            Self::Grant(_) => "bad_grant",
            Self::OtherAccount => "other_account",
            Self::OldGrant => "old_grant",
            Self::NotTheMarket => "not_the_market",
            Self::Supply => "supply",
            Self::Funds { .. } => "funds",
            Self::Collateral { .. } => "collateral",
            Self::Terms(_) => "bad_terms",
            Self::TermsExpired => "terms_expired",
            Self::DealExists => "deal_exists",
            Self::NoSuchDeal => "no_such_deal",
            Self::NotAParty => "not_a_party",
            Self::Closing => "closing",
            Self::Nothing => "nothing",
            Self::Signers => "too_many_signers",
            Self::HeadSignature(_) | Self::HeadSigner => "bad_head",
            Self::Head(HeadError::Stale { .. }) => "stale_head",
            Self::Head(HeadError::Forked { .. }) => "forked_head",
            Self::Head(_) => "head_out_of_bounds",
            Self::VoucherSignature(_) | Self::VoucherSigner => "bad_voucher",
            Self::VoucherEarly { .. } => "voucher_early",
            Self::Voucher(VoucherError::Epoch { .. }) => "voucher_epoch",
            Self::Voucher(_) => "stale_voucher",
            Self::EscrowEmpty => "escrow_empty",
            Self::NotDue => "not_due",
            Self::NoHead => "no_head",
            Self::Claiming => "claiming",
            Self::ClaimTick { .. } => "claim_tick",
            Self::NothingToClaim => "nothing_to_claim",
            Self::Show(_) => "not_shown",
            Self::NoCollateral => "no_collateral",
            Self::OwnDeal => "own_deal",
            Self::ChallengeExists => "challenge_exists",
            Self::NoSuchChallenge => "no_such_challenge",
            Self::TooLate => "too_late",
            Self::Dispute(error) => error.code(),
        }
    }

    /// Who has to change something.
    pub fn blame(&self) -> Blame {
        match self {
            Self::HeadSigner
            | Self::Head(HeadError::Forked { .. })
            | Self::VoucherSigner
            | Self::EscrowEmpty => Blame::Client,
            Self::Collateral { .. } | Self::Terms(_) | Self::NoCollateral => Blame::Provider,
            Self::Number { .. }
            | Self::VoucherEarly { .. }
            | Self::NotDue
            | Self::TermsExpired
            | Self::ClaimTick { .. } => Blame::Nobody,
            Self::Dispute(error) => error.blame(),
            _ => Blame::Sender,
        }
    }
}
