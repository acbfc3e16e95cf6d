//! Opening `spare/1` streams over libp2p, which takes a direct connection; a relay only helps to make one.

use std::sync::Arc;

use libp2p::{Multiaddr, PeerId, Stream, StreamProtocol};
use libp2p_stream::{AlreadyRegistered, Control, IncomingStreams};
use spare_market::keys::PublicKey;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::Addresses;
use super::connects::Waiter;
use crate::frames::PROTOCOL;
use crate::limits::{DIAL_TIMEOUT, PUNCH_TIMEOUT};
use crate::transport::{DialError, peer_id};

/// A wish for a direct connection.
pub(super) struct Connect {
    pub(super) peer: PeerId,
    /// Where to dial; nothing for wherever the swarm knows.
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) waiter: Waiter,
}

/// Opens and accepts streams.
#[derive(Clone)]
pub struct Links {
    control: Control,
    connects: mpsc::Sender<Connect>,
    addresses: Arc<Addresses>,
}

impl Links {
    pub(super) fn new(control: Control, connects: mpsc::Sender<Connect>, addresses: Arc<Addresses>) -> Self {
        Self { control, connects, addresses }
    }

    /// Opens a stream to `node`, once a direct connection stands: the one there is, or one made to any of `dial`. Addresses that lead through
    /// a relay have both sides punch a hole, for a bounded time.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn open(&self, node: &PublicKey, dial: Vec<Multiaddr>) -> Result<Stream, DialError> {
        let peer = peer_id(node).ok_or(DialError::BadKey)?;
        if !self.addresses.is_connected(node) {
            self.connect(peer, dial).await?;
        }
        let mut control = self.control.clone();
        let opening = timeout(DIAL_TIMEOUT, control.open_stream(peer, StreamProtocol::new(PROTOCOL))).await;
        opening
            .map_err(|_| DialError::Timeout(peer.to_string()))?
            .map_err(|e| DialError::Failed { addr: peer.to_string(), why: e.to_string() })
    }

    async fn connect(&self, peer: PeerId, addresses: Vec<Multiaddr>) -> Result<(), DialError> {
        let (waiter, told) = oneshot::channel();
        let busy = || DialError::Failed { addr: peer.to_string(), why: "too many dials at once".into() };
        self.connects.send(Connect { peer, addresses, waiter }).await.map_err(|_| busy())?;
        // The swarm keeps its own deadlines; this one is for a swarm that stands still.
        let limit = 3 * DIAL_TIMEOUT + PUNCH_TIMEOUT;
        timeout(limit, told).await.map_err(|_| DialError::Timeout(peer.to_string()))?.map_err(|_| busy())?
    }

    /// Streams that peers open.
    ///
    /// # Errors
    /// When they are accepted elsewhere already.
    pub fn accept(&self) -> Result<IncomingStreams, AlreadyRegistered> {
        self.control.clone().accept(StreamProtocol::new(PROTOCOL))
    }
}
