//! What peers may have done for nothing: each request that no deal pays for is charged to its peer and to its peer's network, by its number and by
//! the bytes that go either way. Whoever is over its budget waits, and is refused when it would have to wait for long.
//!
//! A request that a deal pays for is charged only if it is refused, and waits only for its own peer's budget: nobody's paid work waits for what a
//! neighbour asks.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use spare_market::keys::PublicKey;
use spare_market::placement::Subnet;
use tokio::time::sleep;

use crate::budget::Budgets;
use crate::frames::{Refusal, RefusalCode, Request};
use crate::limits::{
    BUDGET_KEYS_MAX, DEBT_MAX, MALFORMED_PER_PEER, MALFORMED_PER_SUBNET, THROTTLE_MAX, UNPAID_BYTES_PER_PEER,
    UNPAID_BYTES_PER_SUBNET, UNPAID_PER_PEER, UNPAID_PER_SUBNET,
};

/// What a session costs before anything is asked: a stream, two hellos and a signature to check.
pub(super) const HELLO_UNITS: u64 = 4;

/// What a request costs, in units of about a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cost {
    /// Units.
    pub(super) units: u64,
    /// Whether a deal pays for it if it is carried out.
    pub(super) is_paid: bool,
}

impl Cost {
    /// What `request` costs.
    pub(super) fn of(request: &Request) -> Self {
        let (units, is_paid) = match request {
            Request::Read { .. } | Request::Store { .. } | Request::StoreMaterial { .. } => (2, true),
            Request::JobBytes { .. } => (2, true),
            // Carried out, it costs synced writes, and may cost compiling.
            Request::Order { .. } => (8, true),
            // Carried out, it costs a synced write and two signatures.
            Request::Head { .. } => (4, true),
            Request::Vouchers { .. } => (2, true),
            Request::Materials { materials } => (1 + materials.len() as u64 / 16, false),
            // Of a job that there is, and that is paid for.
            Request::WatchJob { .. } => (1, true),
            Request::CancelJob { .. } | Request::Case { .. } => (4, false),
            Request::Delete { roots } | Request::Holds { roots } => (1 + roots.len() as u64 / 16, false),
            // A synced write.
            Request::IndexAppend { .. } => (8, false),
            Request::Snapshot => (16, false),
            Request::Submit { .. } | Request::Notice(_) => (4, false),
            // Reads from the disk for each byte that is shown.
            Request::Openings { count, .. } => (1 + u64::from(*count) / 2, false),
            // A socket of its own, and a handshake that the asker may let run into its end.
            Request::DialBack { .. } => (16, false),
            Request::Terms | Request::DealState { .. } | Request::DealSet { .. } => (2, false),
            Request::Asks { .. } | Request::IndexEnd | Request::IndexRead { .. } | Request::Blocks { .. } => {
                (1, false)
            }
        };
        Self { units, is_paid }
    }
}

/// The budgets.
pub(super) struct Unpaid {
    started: Instant,
    inner: Mutex<Inner>,
}

struct Inner {
    units: (Budgets<PublicKey>, Budgets<Subnet>),
    bytes: (Budgets<PublicKey>, Budgets<Subnet>),
    malformed: (Budgets<PublicKey>, Budgets<Subnet>),
}

impl Inner {
    fn owed(&self, peer: &PublicKey, subnet: Option<&Subnet>, now: Duration) -> Duration {
        let of_peer = self.units.0.owed(peer, now).max(self.bytes.0.owed(peer, now));
        let of_subnet =
            subnet.map(|subnet| self.units.1.owed(subnet, now).max(self.bytes.1.owed(subnet, now)));
        of_peer.max(of_subnet.unwrap_or_default())
    }
}

impl Unpaid {
    pub(super) fn new() -> Self {
        let inner = Inner {
            units: (
                Budgets::new(UNPAID_PER_PEER, BUDGET_KEYS_MAX, DEBT_MAX),
                Budgets::new(UNPAID_PER_SUBNET, BUDGET_KEYS_MAX, DEBT_MAX),
            ),
            bytes: (
                Budgets::new(UNPAID_BYTES_PER_PEER, BUDGET_KEYS_MAX, DEBT_MAX),
                Budgets::new(UNPAID_BYTES_PER_SUBNET, BUDGET_KEYS_MAX, DEBT_MAX),
            ),
            malformed: (
                Budgets::new(MALFORMED_PER_PEER, BUDGET_KEYS_MAX, DEBT_MAX),
                Budgets::new(MALFORMED_PER_SUBNET, BUDGET_KEYS_MAX, DEBT_MAX),
            ),
        };
        Self { started: Instant::now(), inner: Mutex::new(inner) }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder panics")
    }

    /// How long `peer` would have to wait at `now` for something that costs `cost`.
    fn owed(&self, peer: &PublicKey, subnet: &Subnet, cost: Cost, now: Duration) -> Duration {
        self.inner().owed(peer, Some(subnet).filter(|_| !cost.is_paid), now)
    }

    /// Waits until `peer` may ask for something that costs `cost`.
    ///
    /// # Errors
    /// The refusal to send, after a while, when it would have to wait for long.
    pub(super) async fn wait(&self, peer: &PublicKey, subnet: &Subnet, cost: Cost) -> Result<(), Refusal> {
        let owed = self.owed(peer, subnet, cost, self.now());
        if !owed.is_zero() {
            // Also before a refusal, so that asking on does not keep this node busy.
            sleep(owed.min(THROTTLE_MAX)).await;
        }
        if owed <= THROTTLE_MAX {
            return Ok(());
        }
        let why = format!("too much was asked for that nobody pays; try again in {} s", owed.as_secs() + 1);
        Err(Refusal::new(RefusalCode::Busy, why))
    }

    /// Charges what was done for `peer`.
    pub(super) fn charge(&self, peer: PublicKey, subnet: Subnet, units: u64, bytes: u64) {
        let now = self.now();
        let mut inner = self.inner();
        inner.units.0.charge(peer, units, now);
        inner.units.1.charge(subnet, units, now);
        inner.bytes.0.charge(peer, bytes, now);
        inner.bytes.1.charge(subnet, bytes, now);
    }

    /// Notes that `peer` sent what no peer of this protocol sends.
    pub(super) fn malformed(&self, peer: PublicKey, subnet: Subnet) {
        let now = self.now();
        let mut inner = self.inner();
        inner.malformed.0.charge(peer, 1, now);
        inner.malformed.1.charge(subnet, 1, now);
    }

    /// Whether `peer` sends too much of that to be listened to.
    pub(super) fn is_shunned(&self, peer: &PublicKey, subnet: &Subnet) -> bool {
        let now = self.now();
        let inner = self.inner();
        !inner.malformed.0.owed(peer, now).is_zero() || !inner.malformed.1.owed(subnet, now).is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PEER: PublicKey = PublicKey::Ed25519([1; 32]);
    const OTHER: PublicKey = PublicKey::Ed25519([2; 32]);
    const HERE: Subnet = Subnet::V4([10, 0, 0]);

    const ASKS: Cost = Cost { units: 1, is_paid: false };
    const READ: Cost = Cost { units: 2, is_paid: true };

    #[tokio::test]
    async fn whoever_is_over_its_budget_waits_and_is_refused_when_it_goes_on() {
        let unpaid = Unpaid::new();
        unpaid.charge(PEER, HERE, UNPAID_PER_PEER.burst, 0);
        assert_eq!(unpaid.owed(&PEER, &HERE, ASKS, unpaid.now()), Duration::ZERO, "the burst");
        unpaid.charge(PEER, HERE, UNPAID_PER_PEER.per_s, 0);
        let owed = unpaid.owed(&PEER, &HERE, ASKS, unpaid.now());
        assert!(owed > THROTTLE_MAX / 4 && owed <= THROTTLE_MAX, "a second's worth is waited for: {owed:?}");
        unpaid.wait(&PEER, &HERE, ASKS).await.unwrap();
        unpaid.charge(PEER, HERE, 10 * UNPAID_PER_PEER.per_s, 0);
        assert_eq!(unpaid.wait(&PEER, &HERE, ASKS).await.unwrap_err().code, RefusalCode::Busy);
        unpaid.wait(&OTHER, &HERE, ASKS).await.unwrap();
    }

    #[test]
    fn a_network_has_a_budget_too_and_paid_work_does_not_wait_for_neighbours() {
        let unpaid = Unpaid::new();
        unpaid.charge(PEER, HERE, 0, UNPAID_BYTES_PER_SUBNET.burst + 10 * UNPAID_BYTES_PER_SUBNET.per_s);
        assert!(unpaid.owed(&OTHER, &HERE, ASKS, unpaid.now()) > THROTTLE_MAX);
        assert_eq!(unpaid.owed(&OTHER, &HERE, READ, unpaid.now()), Duration::ZERO);
        assert_eq!(unpaid.owed(&OTHER, &Subnet::V4([10, 0, 1]), ASKS, unpaid.now()), Duration::ZERO);
    }

    #[test]
    fn too_many_malformed_frames_shun_a_peer_and_then_its_network() {
        let unpaid = Unpaid::new();
        (0..=MALFORMED_PER_PEER.burst).for_each(|_| unpaid.malformed(PEER, HERE));
        assert!(unpaid.is_shunned(&PEER, &HERE) && !unpaid.is_shunned(&OTHER, &HERE));
        (0..=MALFORMED_PER_SUBNET.burst).for_each(|_| unpaid.malformed(PEER, HERE));
        assert!(unpaid.is_shunned(&OTHER, &HERE));
        assert!(!unpaid.is_shunned(&OTHER, &Subnet::V4([10, 0, 1])));
    }
}
