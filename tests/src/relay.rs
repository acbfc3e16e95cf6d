//! Stands between an asker and an honest answerer, request by request, and meddles with reads.
//!
//! Sessions stay in step, since what follows each request is known: frames, and bulk bytes whose length a frame before announced.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use spare::answer::Answerer;
use spare::frames::{Hello, Refusal, RefusalCode, Request, Response, read_frame, write_frame};
use spare::home::Identity;
use spare::transport::{SendHalf, Traffic, Wire};
use spare_market::receipt::Transcript;
use spare_market::signed::Signed;
use spare_proofs::encode::to_bytes;
use spare_proofs::tree::{Next, PAIR_BYTES, group_entry, stream_shape};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What is done to reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    /// Those of more than 16 KiB are refused: audits are answered, and little else.
    RefuseLong,
    /// One bit of what is sent is flipped, and the whole signed anew.
    SignWrongBytes,
}

const AUDIT_BYTES: u64 = 16 << 10;

/// Serves `wire` by `honest`, but for reads. Counts what it did.
///
/// # Errors
/// When either side hangs up.
pub async fn relay(
    mut wire: Wire,
    honest: &Answerer,
    identity: &Identity,
    meddling: Meddling,
    misdeeds: &AtomicUsize,
) -> anyhow::Result<()> {
    let (inner, outer) = tokio::io::duplex(1 << 20);
    let (inner_recv, inner_send) = tokio::io::split(inner);
    let traffic = Arc::new(Traffic::default());
    let mut inside = Wire::new(inner_recv, SendHalf::other(inner_send), wire.peer, wire.remote_ip, &traffic);
    let (mut from, mut to) = tokio::io::split(outer);
    let meddle = async {
        let hello: Hello = read_frame(&mut wire.recv).await?;
        write_frame(&mut to, &hello).await?;
        write_frame(&mut wire.send, &read_frame::<Hello>(&mut from).await?).await?;
        loop {
            let request: Request = read_frame(&mut wire.recv).await?;
            if let Request::Read { start, end, .. } = request
                && meddling == Meddling::RefuseLong
                && end.saturating_sub(start) > AUDIT_BYTES
            {
                misdeeds.fetch_add(1, Ordering::Relaxed);
                let refusal = Refusal::new(RefusalCode::Unavailable, "not today");
                write_frame(&mut wire.send, &Response::Refused(refusal)).await?;
                continue;
            }
            write_frame(&mut to, &request).await?;
            let response: Response = read_frame(&mut from).await?;
            write_frame(&mut wire.send, &response).await?;
            match (&request, response) {
                (Request::Store { shard_bytes, .. }, Response::Ready) => {
                    copy(&mut wire.recv, &mut to, *shard_bytes).await?;
                    write_frame(&mut wire.send, &read_frame::<Response>(&mut from).await?).await?;
                }
                (Request::IndexAppend { len }, Response::Ready) => {
                    copy(&mut wire.recv, &mut to, (*len).into()).await?;
                    write_frame(&mut wire.send, &read_frame::<Response>(&mut from).await?).await?;
                }
                (_, Response::IndexEntry { len }) => {
                    copy(&mut from, &mut wire.send, len.into()).await?;
                    write_frame(&mut wire.send, &read_frame::<Response>(&mut from).await?).await?;
                }
                (Request::Read { start, end, .. }, Response::Reading { shard_bytes }) => {
                    let signed =
                        send_read(&mut from, &mut wire, &request, shard_bytes, *start..*end, meddling);
                    let transcript = signed.await?;
                    let honest: Response = read_frame(&mut from).await?;
                    let answer = match transcript {
                        Some(transcript) => {
                            misdeeds.fetch_add(1, Ordering::Relaxed);
                            let answer = transcript.finish();
                            let answer = Signed::new(answer, identity.network, &identity.node_key());
                            Response::Answered(answer.raw().clone())
                        }
                        None => honest,
                    };
                    write_frame(&mut wire.send, &answer).await?;
                }
                _ => {}
            }
        }
    };
    tokio::select! {
        () = honest.serve(&mut inside) => Ok(()),
        ended = meddle => ended,
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    len: u64,
) -> std::io::Result<()> {
    let copied = tokio::io::copy(&mut from.take(len), to).await?;
    if copied < len {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    to.flush().await
}

/// Sends what `from` gives for a read, wrong if it is to be. Returns the transcript of what was sent if it is wrong.
async fn send_read(
    from: &mut (impl AsyncReadExt + Unpin),
    wire: &mut Wire,
    request: &Request,
    shard_bytes: u64,
    range: Range<u64>,
    meddling: Meddling,
) -> anyhow::Result<Option<Transcript>> {
    let mut transcript = Transcript::new(&to_bytes(request));
    for next in stream_shape(shard_bytes, range) {
        let len = match next {
            Next::Pair => PAIR_BYTES,
            Next::Group { len, .. } => len,
        };
        let mut item = vec![0; len];
        from.read_exact(&mut item).await?;
        match next {
            Next::Pair => transcript.add(&item),
            Next::Group { offset, .. } => {
                if meddling == Meddling::SignWrongBytes {
                    item[0] ^= 1;
                }
                transcript.add(&group_entry(shard_bytes, offset, &item));
            }
        }
        wire.send.write_all(&item).await?;
    }
    wire.send.flush().await?;
    Ok((meddling == Meddling::SignWrongBytes).then_some(transcript))
}
