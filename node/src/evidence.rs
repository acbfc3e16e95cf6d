//! Evidence: a provider signed that it sent bytes which are not those that it signed to hold. Anybody can check it, knowing nothing but the network.
//!
//! It consists of the deal's head, which both sides signed; the path that shows that the shard is in that head's set; and the read: what was asked,
//! what was sent, and the provider's signature over both. The bytes that were sent do not lead to the shard's root, so either signature was given in
//! vain.
//!
//! What was asked and sent is ciphertext, and its client shows nothing by it but that the shard exists.

use serde::{Deserialize, Serialize};
use spare_market::deal::DealId;
use spare_market::head::{FullHead, HeadError};
use spare_market::keys::PublicKey;
use spare_market::receipt::{ReadAnswer, Transcript};
use spare_market::signed::{NetworkId, SignedBytes, SignedError};
use spare_proofs::encode::{DecodeError, from_bytes, to_bytes};
use spare_proofs::sumtree::{SetError, Sum, SumProof};
use spare_proofs::tree::{Next, PAIR_BYTES, Root, Verifier, VerifyError, group_entry, stream_shape};

use crate::frames::{Request, decode};
use crate::limits::{EVIDENCE_MAX_BYTES, EVIDENCE_READ_MAX_BYTES, SHARD_MAX_BYTES};

/// A read as it went, with the provider's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRead {
    /// The request's exact bytes.
    pub request: Vec<u8>,
    /// The hash pairs and groups that were sent, in order.
    pub stream: Vec<u8>,
    /// The signed answer at its end.
    pub answer: SignedBytes,
}

/// Evidence against a provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Evidence {
    /// It signed wrong bytes.
    WrongBytes {
        /// The network.
        network: NetworkId,
        /// The provider's node.
        node: PublicKey,
        /// The head under which it holds the shard, signed by both.
        head: FullHead,
        /// A byte of the head's set that is the shard's.
        position: u64,
        /// Shows that it is.
        member: SumProof,
        /// The read.
        read: SignedRead,
    },
}

/// What evidence shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The provider's node.
    pub node: PublicKey,
    /// The deal.
    pub deal: DealId,
    /// The shard.
    pub root: Root,
    /// Where the bytes that it sent are not the shard's.
    pub error: VerifyError,
}

/// Why evidence shows nothing.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// It is not evidence.
    #[error("it is not what `spare audit export` writes")]
    Decode(#[from] DecodeError),
    /// It is about another network.
    #[error("it is about another network than this node's")]
    OtherNetwork,
    /// A signature does not hold.
    #[error("a signature does not hold")]
    Signature(#[from] SignedError),
    /// The answer is signed by another node.
    #[error("the answer is not signed by the node that signed the head")]
    OtherNode,
    /// No provider countersigns such a head.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The shard is not in the head's set.
    #[error("the shard is not in the head's set")]
    Set(#[from] SetError),
    /// The request is not a read of that shard.
    #[error("what was asked for is not that shard")]
    OtherRequest,
    /// The signature covers another read.
    #[error("the signature covers another read")]
    OtherRead,
    /// The bytes are right.
    #[error("the bytes that were sent are the shard's: the provider did nothing wrong")]
    Innocent,
}

/// The items of a stream of this shape, or `None` when it has another length.
fn split<'a>(shape: &[Next], mut stream: &'a [u8]) -> Option<Vec<&'a [u8]>> {
    let mut items = Vec::with_capacity(shape.len());
    for next in shape {
        let len = match next {
            Next::Pair => PAIR_BYTES,
            Next::Group { len, .. } => *len,
        };
        let (item, rest) = stream.split_at_checked(len)?;
        items.push(item);
        stream = rest;
    }
    stream.is_empty().then_some(items)
}

impl Evidence {
    /// Decodes evidence as it is kept in a file.
    ///
    /// # Errors
    /// [`EvidenceError::Decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, EvidenceError> {
        Ok(from_bytes(bytes, EVIDENCE_MAX_BYTES)?)
    }

    /// As it is kept in a file.
    pub fn to_bytes(&self) -> Vec<u8> {
        to_bytes(self)
    }

    /// Names the evidence: a hash of it.
    pub fn id(&self) -> String {
        blake3::hash(&self.to_bytes()).to_hex()[..16].to_owned()
    }

    /// Checks everything.
    ///
    /// # Errors
    /// [`EvidenceError`] when it shows nothing.
    pub fn check(&self, expected: NetworkId) -> Result<Finding, EvidenceError> {
        let Self::WrongBytes { network, node, head, position, member, read } = self;
        if *network != expected {
            return Err(EvidenceError::OtherNetwork);
        }
        let head = *head.check(expected, node)?.value().v1();
        head.check_bounds()?;
        member.verify(&Sum { bytes: head.bytes, hash: head.set_root }, *position)?;
        let shard = member.member;
        let request = decode::<Request>(&read.request)?;
        let Request::Read { root, start, end, .. } = request else { return Err(EvidenceError::OtherRequest) };
        let is_of_shard = root == shard.root && start < end && end <= shard.bytes;
        if !is_of_shard || end - start > EVIDENCE_READ_MAX_BYTES || shard.bytes > SHARD_MAX_BYTES {
            return Err(EvidenceError::OtherRequest);
        }
        let answer = read.answer.clone().check::<ReadAnswer>(expected)?;
        if answer.signer() != *node {
            return Err(EvidenceError::OtherNode);
        }
        let shape = stream_shape(shard.bytes, start..end);
        let items = split(&shape, &read.stream).ok_or(EvidenceError::OtherRead)?;
        let mut transcript = Transcript::new(&read.request);
        for (next, item) in shape.iter().zip(&items) {
            match next {
                Next::Pair => transcript.add(item),
                Next::Group { offset, .. } => transcript.add(&group_entry(shard.bytes, *offset, item)),
            }
        }
        if *answer.value() != transcript.finish() {
            return Err(EvidenceError::OtherRead);
        }
        let mut verifier = Verifier::new(root, shard.bytes, start..end);
        for (next, item) in shape.iter().zip(items) {
            let checked = match next {
                Next::Pair => verifier.pair(item.try_into().expect("split by this length")),
                Next::Group { .. } => verifier.group(item).map(drop),
            };
            if let Err(error) = checked {
                return Ok(Finding { node: *node, deal: head.deal, root, error });
            }
        }
        Err(EvidenceError::Innocent)
    }
}

#[cfg(test)]
mod tests {
    use spare_market::amount::StoragePrice;
    use spare_market::head::{Head, HeadV1};
    use spare_market::keys::{Seed, SigningSecret};
    use spare_market::signed::Signed;
    use spare_proofs::sumtree::{Member, SumTree};
    use spare_proofs::tree::{Item, Tree};

    use super::*;

    const NETWORK: NetworkId = NetworkId([7; 32]);

    fn key(tag: u8) -> SigningSecret {
        Seed::from_entropy([tag; 32]).account_key()
    }

    /// Evidence of a read of a shard of which `damage` changed what was sent.
    fn evidence(len: usize, damage: impl Fn(&mut Vec<u8>)) -> Evidence {
        let shard: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let tree = Tree::of(&shard);
        let mut members =
            vec![Member { root: tree.root(), bytes: len as u64 }, Member { root: Root::of(b"x"), bytes: 1 }];
        members.sort();
        let set = SumTree::new(members).unwrap();
        let of_shard = |position: &u64| set.prove(*position).unwrap().member.root == tree.root();
        let position = (0..=len as u64).find(of_shard).unwrap();
        let head = HeadV1 {
            deal: DealId([3; 32]),
            seq: 1,
            set_root: set.sum().hash,
            bytes: set.sum().bytes,
            price: StoragePrice(1),
            from: 1,
            until: 2,
            index_hash: [0; 32],
        };
        let head = Signed::new(Head::V1(head), NETWORK, &key(1)).raw().clone();
        let head = FullHead::countersign(head, NETWORK, &key(2));
        let end = (len as u64).min(EVIDENCE_READ_MAX_BYTES);
        let request = to_bytes(&Request::Read { root: tree.root(), start: 0, end, nonce: [5; 16] });
        let mut stream = Vec::new();
        for item in tree.plan(0..end) {
            match item {
                Item::Pair(pair) => stream.extend_from_slice(&pair),
                Item::Group { offset, len } => stream.extend_from_slice(&shard[offset as usize..][..len]),
            }
        }
        damage(&mut stream);
        let shape = stream_shape(len as u64, 0..end);
        let mut transcript = Transcript::new(&request);
        for (next, item) in shape.iter().zip(split(&shape, &stream).unwrap()) {
            match next {
                Next::Pair => transcript.add(item),
                Next::Group { offset, .. } => transcript.add(&group_entry(len as u64, *offset, item)),
            }
        }
        let answer = Signed::new(transcript.finish(), NETWORK, &key(2)).raw().clone();
        Evidence::WrongBytes {
            network: NETWORK,
            node: key(2).public(),
            head,
            position,
            member: set.prove(position).unwrap(),
            read: SignedRead { request, stream, answer },
        }
    }

    #[test]
    fn signed_wrong_bytes_are_evidence_for_anybody_and_right_ones_are_not() {
        for len in [100, 16_384, 16_385, 200_000] {
            let innocent = evidence(len, |_| ());
            assert!(matches!(innocent.check(NETWORK), Err(EvidenceError::Innocent)), "{len}");
            let guilty = evidence(len, |stream| *stream.last_mut().unwrap() ^= 1);
            let again = Evidence::from_bytes(&guilty.to_bytes()).unwrap();
            let finding = again.check(NETWORK).unwrap();
            assert_eq!((finding.node, finding.deal), (key(2).public(), DealId([3; 32])));
            assert!(matches!(again.check(NetworkId([8; 32])), Err(EvidenceError::OtherNetwork)));
        }
    }

    #[test]
    fn nobody_makes_evidence_up() {
        // An innocent provider's read, changed afterwards: no signature covers that.
        let change = |change: &dyn Fn(&mut SignedRead, &mut u64, &mut SumProof)| {
            let mut evidence = evidence(40_000, |_| ());
            let Evidence::WrongBytes { read, position, member, .. } = &mut evidence;
            change(read, position, member);
            evidence.check(NETWORK).unwrap_err()
        };
        let error = change(&|read, _, _| read.stream[100] ^= 1);
        assert!(matches!(error, EvidenceError::OtherRead), "{error}");
        let error = change(&|read, _, _| read.stream.push(0));
        assert!(matches!(error, EvidenceError::OtherRead), "{error}");
        let error = change(&|read, _, _| *read.request.last_mut().unwrap() ^= 1);
        assert!(matches!(error, EvidenceError::OtherRead), "another nonce: {error}");
        let error = change(&|read, _, _| read.answer.bytes[5] ^= 1);
        assert!(matches!(error, EvidenceError::Signature(_)), "{error}");
        let other = Root::of(b"x");
        let error = change(&|read, _, _| {
            read.request = to_bytes(&Request::Read { root: other, start: 0, end: 1, nonce: [5; 16] });
        });
        assert!(matches!(error, EvidenceError::OtherRequest), "{error}");
        // A shard that the provider never signed to hold.
        let error = change(&|_, _, member| member.member.root = other);
        assert!(matches!(error, EvidenceError::Set(_)), "{error}");
        let error = change(&|read, _, _| {
            let forged = read.answer.clone().check::<ReadAnswer>(NETWORK).unwrap();
            read.answer = Signed::new(*forged.value(), NETWORK, &key(1)).raw().clone();
        });
        assert!(matches!(error, EvidenceError::OtherNode), "{error}");
    }
}
