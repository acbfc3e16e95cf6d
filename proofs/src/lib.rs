//! Pure mathematics of stored data: encryption, erasure coding, whitening, hash trees, audit draws and recipes.
//!
//! The life of a segment reads top to bottom through this crate's modules:
//!
//! | step | module | in -> out |
//! |---|---|---|
//! | cut | [`geometry`] | a blob's length -> segments, rows, cells |
//! | encrypt | [`cipher`] | plaintext -> sealed 64 KiB records |
//! | code | [`erasure`] | k data cells -> n-k parity cells, row by row |
//! | whiten | [`whiten`] | coded cell -> stored cell |
//! | prove | [`tree`], [`sumtree`], [`opening`], [`draw`] | stored bytes -> root, openings, verified ranges |
//! | remember | [`recipe`] | keys, geometry and roots -> sealed bytes |
//!
//! **Invariant:** nothing here knows a clock, a disk, a network, ambient randomness or async. Keys, seeds and
//! lengths are arguments, so every function replays and fuzzes. Decoders never panic, whatever bytes they get.

pub mod cipher;
pub mod draw;
pub mod encode;
pub mod erasure;
pub mod geometry;
pub mod opening;
pub mod recipe;
pub mod segment;
pub mod sumtree;
pub mod tree;
pub mod whiten;
