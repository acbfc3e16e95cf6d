//! Support for the end-to-end tests, benches and simulations of Spare: real processes on loopback addresses.

pub mod claims;
pub mod flood;
pub mod fuzz;
pub mod homes;
pub mod hostile;
pub mod jobs;
pub mod net;
pub mod relay;
pub mod stranger;
