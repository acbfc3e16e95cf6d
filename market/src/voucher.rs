//! Vouchers: how a provider is normally paid. A voucher is a cumulative promise, so the newest one is all that counts.
//!
//! After a good audit the client signs what storage through a period, and all reading so far, have cost under the deal. The provider
//! puts the newest voucher on the ledger when it likes. A client that will sleep may sign vouchers for coming periods beforehand: the
//! ledger takes none before the period that it pays for is over.

use serde::{Deserialize, Serialize};

use crate::amount::{Amount, StorageDue};
use crate::deal::DealId;
use crate::signed::Signable;

/// Most vouchers that a client signs beforehand.
pub const AHEAD_MAX: usize = 30;

/// A client's cumulative promise to pay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Voucher {
    /// The first version.
    V1(VoucherV1),
}

/// The first version of a voucher.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoucherV1 {
    /// The deal.
    pub deal: DealId,
    /// The deal's epoch; a claim raises it and voids what was signed before.
    pub epoch: u32,
    /// The last period that is paid for; `None` when it pays for reading alone, and no period of the deal is over yet.
    pub paid_through: Option<u64>,
    /// Bytes read so far, which are part of `total`.
    pub read_bytes: u64,
    /// What jobs have cost so far, which is part of `total`.
    pub jobs: Amount,
    /// Storage that is not paid for since it was not shown in its period, of this epoch. Not part of `total`.
    pub skipped: StorageDue,
    /// Everything promised under the deal so far.
    pub total: Amount,
}

impl Signable for Voucher {
    const DOMAIN: &'static str = "spare 2026 voucher v1";
    const MAX_BYTES: usize = 144;
}

/// Why a voucher does not improve on another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VoucherError {
    /// It is for another deal.
    #[error("the voucher is for another deal")]
    OtherDeal,
    /// A claim has voided it.
    #[error("the voucher is of epoch {epoch}, the deal is in epoch {current}")]
    Epoch {
        /// The voucher's.
        epoch: u32,
        /// The deal's.
        current: u32,
    },
    /// One that promises as much is known.
    #[error("the voucher promises {total} pico-credits, no more than the {known} that are known")]
    NotHigher {
        /// What it promises.
        total: u128,
        /// What is known.
        known: u128,
    },
    /// It pays for fewer periods, or less for jobs, than one that is known.
    #[error("the voucher pays for fewer periods, or less for jobs, than one that is known")]
    Backwards,
}

/// What is promised or paid already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// In all.
    pub total: Amount,
    /// Of that for jobs.
    pub jobs: Amount,
    /// The last period that is paid for.
    pub through: Option<u64>,
}

impl Voucher {
    /// The first version's fields.
    pub fn v1(&self) -> &VoucherV1 {
        let Self::V1(v1) = self;
        v1
    }
}

impl VoucherV1 {
    /// Checks that this voucher promises more than is `known`.
    ///
    /// # Errors
    /// [`VoucherError`].
    pub fn check_improves(&self, deal: DealId, epoch: u32, known: Known) -> Result<(), VoucherError> {
        let Known { total, jobs, through } = known;
        if self.deal != deal {
            return Err(VoucherError::OtherDeal);
        }
        if self.epoch != epoch {
            return Err(VoucherError::Epoch { epoch: self.epoch, current: epoch });
        }
        if self.total <= total {
            return Err(VoucherError::NotHigher { total: self.total.0, known: total.0 });
        }
        // `None` is before every period.
        if self.paid_through < through || self.jobs < jobs {
            return Err(VoucherError::Backwards);
        }
        Ok(())
    }
}
