//! Spare: a peer node that rents out idle disks and processors, stores its owner's data on the disks of others, and runs its owner's programs on their machines.
//!
//! The program's data flow, one module per word:
//!
//! ```text
//! put:  read -> encrypt -> code -> whiten -> place -> transfer -> receipt -> head -> recipe -> index   put.rs
//! get:  recipe -> placement -> fetch k verified shards, fastest first -> decode -> decrypt             get.rs
//! keep: audit -> voucher -> renew -> top up                                                            keep.rs
//! earn: terms -> head -> voucher -> redeem                                                             earn.rs
//! jobs: order -> wait -> compile -> run -> receipt                                                     jobs.rs
//! judge: case -> run again -> commit -> reveal                                                         judge.rs
//! job:  match -> fund -> send materials -> order -> watch and pay -> receipt -> check -> fetch         job.rs
//! ```
//!
//! | layer | modules |
//! |---|---|
//! | what users touch | [`api`], [`cli`], [`demo`], [`doctor`], [`config`], [`home`] |
//! | the client's work | [`put`], [`get`], [`keep`], [`recover`], [`catalog`], [`deals`], [`client`] |
//! | the provider's work | [`answer`], [`earn`], [`shards`], [`scrub`] |
//! | programs | [`work`], [`materials`], [`jobs`] and [`capacity`] for the provider, [`job`] for the client, [`judge`] for verifiers |
//! | the ledger | [`market`], [`chain`] |
//! | between peers | [`frames`], [`peers`], [`transport`], [`discover`], [`reach`], [`asks`] |
//! | underneath | [`meta`], [`sets`], [`index_log`], [`direct_io`], [`budget`], [`limits`], [`crash`] |

pub mod answer;
pub mod api;
pub mod asks;
pub mod budget;
pub mod capacity;
pub mod catalog;
pub mod chain;
pub mod challenge;
pub mod cli;
pub mod client;
pub mod config;
pub mod crash;
pub mod deals;
pub mod demo;
pub mod direct_io;
pub mod discover;
pub mod doctor;
pub mod earn;
pub mod evidence;
pub mod frames;
pub mod get;
pub mod home;
pub mod index_log;
pub mod job;
pub mod jobs;
pub mod judge;
pub mod keep;
pub mod limits;
pub mod market;
pub mod materials;
pub mod meta;
pub mod node;
pub mod peers;
mod places;
pub mod put;
pub mod reach;
pub mod recover;
pub mod scrub;
pub mod sets;
pub mod shards;
pub mod standings;
pub mod transport;
pub mod work;

/// The wall clock, in seconds of unix time.
pub fn unix_now_s() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
