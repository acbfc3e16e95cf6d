//! What peers promise each other: keys, signed records, and the rules for choosing whom to trust with a shard.
//!
//! | module | holds |
//! |---|---|
//! | [`keys`] | the 24-word seed, the account key and the keys derived from it, node keys |
//! | [`signed`] | canonical signed encoding: domain, network, exact bytes |
//! | [`grant`] | an account lets a node key act for it |
//! | [`ask`] | a provider's signed offer of room |
//! | [`receipt`] | a provider's signature that it holds a shard, and that it sent certain bytes |
//! | [`placement`] | which provider holds which shard, and how providers are chosen |
//! | [`index`] | the numbered, chained, encrypted log of a client's blobs that providers keep for recovery |
//!
//! **Invariant:** pure rules. No clock, disk, network, async or ambient randomness: time, seeds and keys are arguments.

pub mod ask;
pub mod grant;
pub mod index;
pub mod keys;
pub mod placement;
pub mod receipt;
pub mod signed;
