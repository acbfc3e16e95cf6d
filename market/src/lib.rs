//! What peers promise each other: keys, signed records, and the rules for choosing whom to trust with a shard.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | the 24-word seed, the account key and the keys derived from it, node keys |
//! | [`signed`] | canonical signed encoding: domain, network, exact bytes |
//! | [`grant`] | an account lets a node key act for it |
//! | [`ask`] | a provider's signed offer of room |
//! | [`amount`] | money and prices in checked integers |
//! | [`beacon`] | for each period 32 bytes that nobody but the market can tell beforehand |
//! | [`genesis`] | what a market is, fixed when it is founded; its hash names the network |
//! | [`deal`] | everything between one client and one provider: terms, states, how long money lasts |
//! | [`head`] | what a provider holds for a client and at which price, signed by both |
//! | [`meter`] | what a deal has cost so far |
//! | [`tab`] | what a client owes a provider, as either of them keeps it |
//! | [`voucher`] | the client's cumulative promise to pay |
//! | [`claim`] | how a provider shows the ledger that it holds what it was given: draws and openings |
//! | [`dispute`] | how the ledger finds out whose result of a job is right: verifiers commit, reveal, and the wrong party pays |
//! | [`tx`], [`ledger`], [`block`], [`state`] | the ledger: transactions, the rules, blocks that anyone replays, the state and its root |
//! | [`standing`] | what a provider's failures lead to with one client, and when |
//! | [`job`] | what a client orders to be run, what came out of it, and what it costs |
//! | [`receipt`] | a provider's signature that it holds a shard, and that it sent certain bytes |
//! | [`placement`] | which provider holds which shard, and how providers are chosen |
//! | [`index`] | the numbered, chained, encrypted log of a client's blobs that providers keep for recovery |
//!
//! **Invariant:** pure rules. No clock, disk, network, async or ambient randomness: time, seeds and keys are arguments.

pub mod amount;
pub mod ask;
pub mod beacon;
pub mod block;
pub mod claim;
pub mod deal;
pub mod dispute;
pub mod genesis;
pub mod grant;
pub mod head;
pub mod hire;
pub mod index;
pub mod job;
pub mod keys;
pub mod ledger;
pub mod meter;
pub mod placement;
pub mod receipt;
pub mod signed;
pub mod standing;
pub mod state;
pub mod tab;
pub mod tx;
pub mod voucher;
