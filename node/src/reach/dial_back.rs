//! Dialling a peer's own port back, because it asks.
//!
//! **Goals.** The asker learns whether its port can be reached by somebody it has not sent anything to: the dial comes from a fresh port.
//! **Non-goals.** Dialling anybody else. The address is the one that the asker is seen at over an authenticated connection, which proves
//! that it receives what is sent there; the port is not one of the well-known ones; a dial is a few packets, and there are few for each
//! network and minute. So nothing is won by asking.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use tokio::sync::Semaphore;

use crate::frames::{Refusal, RefusalCode, Response, Service};
use crate::limits::{DIAL_BACK_PORT_MIN, DIAL_BACKS_AT_ONCE_MAX, DIAL_BACKS_MAX, DIAL_BACKS_PER_SUBNET_MAX};
use crate::reach::SubnetRate;
use crate::transport::Direct;

/// Dials back for peers.
pub(crate) struct DialBack {
    direct: Arc<Direct>,
    rate: Mutex<SubnetRate>,
    at_once: Semaphore,
}

impl DialBack {
    /// Dials with the node key of `direct`.
    pub(crate) fn new(direct: Arc<Direct>) -> Self {
        let rate = SubnetRate::new(Duration::from_secs(60), DIAL_BACKS_PER_SUBNET_MAX, DIAL_BACKS_MAX);
        Self { direct, rate: Mutex::new(rate), at_once: Semaphore::new(DIAL_BACKS_AT_ONCE_MAX) }
    }

    /// Dials `port` of `peer`, who is seen at `ip`.
    ///
    /// # Errors
    /// A refusal when the port is not to be dialled, or too much is dialled already.
    pub(crate) async fn answer(
        &self,
        peer: PublicKey,
        ip: IpAddr,
        service: Service,
        port: u16,
    ) -> Result<Response, Refusal> {
        if ip.is_unspecified() || port < DIAL_BACK_PORT_MIN {
            let why = format!("ports from {DIAL_BACK_PORT_MIN} on are dialled, at an address that is seen");
            return Err(Refusal::new(RefusalCode::BadRange, why));
        }
        let busy = || Refusal::new(RefusalCode::Busy, "enough ports of this network are being dialled");
        let _permit = self.at_once.try_acquire().map_err(|_| busy())?;
        if !self.rate.lock().expect("no holder panics").admit(Subnet::from(ip), Instant::now()) {
            return Err(busy());
        }
        let outcome = self.direct.dial_once(&peer, SocketAddr::new(ip, port), service).await;
        let Some(outcome) = outcome else {
            return Err(Refusal::new(RefusalCode::Unavailable, "no socket could be had"));
        };
        tracing::debug!(%peer, %ip, port, ?outcome, "dialled back");
        Ok(Response::DialledBack { ip, outcome })
    }
}
