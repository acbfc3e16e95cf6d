//! Answering about index logs: where a client's log ends, one more entry, and reading entries back.

use spare_market::grant::{Authority, Scope};
use spare_market::index::IndexEntry;
use spare_market::signed::SignedBytes;
use spare_proofs::encode::{from_bytes, to_bytes};
use tokio::time::timeout;

use super::{Answerer, SessionEnd, fill, refusal, send_bulk, too_many, within};
use crate::frames::{Refusal, RefusalCode, Response, write_frame};
use crate::index_log::AppendError;
use crate::limits::{HELLO_TIMEOUT, STALL_TIMEOUT, bulk_timeout};
use crate::transport::Wire;

impl Answerer {
    pub(super) fn index_end(&self, authority: Option<&Authority>) -> Result<Response, Refusal> {
        let (account, _) = self.storage(authority, Scope::Read)?;
        self.logs.end(&account).map(Response::IndexEnd).map_err(|e| refusal(e.into()))
    }

    pub(super) async fn index_append(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        len: u32,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let account = match self.storage(authority, Scope::Store) {
            Ok((account, _)) => account,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let max = spare_market::index::BODY_MAX_BYTES + 1024;
        if len as usize > max {
            return Ok(Err(Refusal::new(RefusalCode::TooLarge, format!("an entry has at most {max} bytes"))));
        }
        let Some(_permit) = self.index_permit().await else { return Ok(Err(too_many())) };
        wire.expect_bulk();
        within(STALL_TIMEOUT, write_frame(&mut wire.send, &Response::Ready)).await?;
        let mut bytes = vec![0; len as usize];
        within(bulk_timeout(len.into()), fill(wire, &mut bytes)).await?;
        let bad = |why: String| Refusal::new(RefusalCode::BadIndexEntry, why);
        // The signer may be an earlier node of the account: whoever writes next also carries old entries to lagging copies.
        let checked = from_bytes::<SignedBytes>(&bytes, max)
            .map_err(|e| bad(e.to_string()))
            .and_then(|raw| raw.check::<IndexEntry>(self.network).map_err(|e| bad(e.to_string())));
        let entry = match checked {
            Ok(entry) => entry,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let logs = self.logs.clone();
        let appended =
            tokio::task::spawn_blocking(move || logs.append(&account, &entry, Default::default())).await?;
        Ok(appended.map(|_| Response::Done).map_err(|error| match error {
            AppendError::Meta(error) => refusal(error.into()),
            full @ AppendError::NoRoom => Refusal::new(RefusalCode::NoRoom, full.to_string()),
            other => bad(other.to_string()),
        }))
    }

    pub(super) async fn index_read(
        &self,
        wire: &mut Wire,
        authority: Option<&Authority>,
        seq: u64,
    ) -> Result<Result<Response, Refusal>, SessionEnd> {
        let account = match self.storage(authority, Scope::Read) {
            Ok((account, _)) => account,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let Some(_permit) = self.index_permit().await else { return Ok(Err(too_many())) };
        let entry = match self.logs.read(&account, seq) {
            Ok(Some(entry)) => to_bytes(&entry),
            Ok(None) => {
                return Ok(Err(Refusal::new(RefusalCode::NotHere, format!("there is no entry {seq}"))));
            }
            Err(error) => return Ok(Err(refusal(error.into()))),
        };
        send_bulk(wire, &Response::IndexEntry { len: entry.len() as u32 }, &entry).await?;
        Ok(Ok(Response::Done))
    }

    /// A place among the index entries on their way, if one is free before long.
    async fn index_permit(&self) -> Option<tokio::sync::SemaphorePermit<'_>> {
        timeout(HELLO_TIMEOUT, self.index_transfers.acquire()).await.ok()?.ok()
    }
}
