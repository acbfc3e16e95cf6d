//! Support for the end-to-end tests, benches and simulations of Spare.
