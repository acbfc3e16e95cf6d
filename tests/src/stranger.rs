//! A peer that speaks `spare/1` by hand to the first provider, which is also the market: it can become a client, and say what no client says.

use std::net::SocketAddr;
use std::sync::Arc;

use spare::frames::{Hello, RefusalCode, Request, Response, read_frame, write_frame};
use spare::home::{Identity, Ticket};
use spare::transport::{Direct, Wire};
use spare::unix_now_s;
use spare_market::amount::{Amount, StorageDue};
use spare_market::deal::{DealId, Terms, TermsV1};
use spare_market::genesis::Genesis;
use spare_market::head::{FullHead, HEAD_PERIODS_MAX, Head, HeadV1};
use spare_market::keys::{PublicKey, Seed};
use spare_market::signed::{NetworkId, Signable, Signed, SignedBytes};
use spare_market::tx::{Action, Tx};
use spare_market::voucher::{Voucher, VoucherV1};
use spare_proofs::sumtree::{Member, SumTree};
use spare_proofs::tree::Root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::flood::node_keys;
use crate::hostile::endpoint;
use crate::net::{Net, PATIENCE};

/// The first provider's node key and address.
///
/// # Panics
/// When the client does not know it.
pub fn provider_of(net: &Net) -> (PublicKey, SocketAddr) {
    let node = net.providers[0].status()["node"].clone();
    let asks = net.client.ok(&["asks"]);
    let ask = asks.as_array().and_then(|asks| asks.iter().find(|ask| ask["node"] == node)).expect("it asks");
    let direct = ask["direct"][0].as_str().and_then(|addr| addr.parse().ok()).expect("it has an address");
    (node.as_str().and_then(|key| key.parse().ok()).expect("a key"), direct)
}

/// The code of a refusal.
///
/// # Panics
/// When it is none.
pub fn code(response: Response) -> RefusalCode {
    match response {
        Response::Refused(refusal) => refusal.code,
        other => panic!("not refused: {other:?}"),
    }
}

/// A stranger with a stream to the first provider. The endpoint has to live as long as the stream.
pub struct Stranger {
    /// The stream.
    pub wire: Wire,
    /// Who it is.
    pub me: Identity,
    /// The words behind its account, for further node keys.
    pub seed: Seed,
    genesis: Genesis,
    provider: PublicKey,
    addr: SocketAddr,
    number: u64,
    endpoint: Arc<Direct>,
}

impl Stranger {
    /// Connects from 127.0.`subnet`.1.
    ///
    /// # Panics
    /// When that fails.
    pub async fn arrive(net: &Net, subnet: u8) -> Self {
        let (provider, addr) = provider_of(net);
        let Ticket::V1 { genesis, .. } = net.ticket.parse().expect("a ticket");
        let seed = Seed::from_entropy(rand::random());
        let me = node_keys(&seed, genesis.network(), 1).remove(0);
        let endpoint = endpoint(&me, subnet);
        let wire = endpoint.open(&provider, &[addr]).await.expect("the provider listens");
        Self { wire, me, seed, genesis, provider, addr, number: 0, endpoint }
    }

    /// Connects, and says hello with its own grant.
    ///
    /// # Panics
    /// When that fails.
    pub async fn greeted(net: &Net, subnet: u8) -> Self {
        let mut stranger = Self::arrive(net, subnet).await;
        let (network, grant) = (stranger.me.network, stranger.me.grant.clone());
        stranger.greet(network, Some(grant)).await;
        stranger
    }

    /// Connects anew, as after the provider was started again.
    ///
    /// # Panics
    /// When that fails.
    pub async fn return_to(&mut self, net: &Net) {
        let (provider, addr) = provider_of(net);
        (self.provider, self.addr) = (provider, addr);
        self.endpoint.forget(&provider).await;
        self.wire = self.endpoint.open(&provider, &[addr]).await.expect("the provider listens");
        let (network, grant) = (self.me.network, self.me.grant.clone());
        self.greet(network, Some(grant)).await;
    }

    /// Connects anew to where the provider was, and says nothing.
    ///
    /// # Panics
    /// When that fails.
    pub async fn redial(&mut self, addr: SocketAddr) {
        self.endpoint.forget(&self.provider).await;
        self.wire = self.endpoint.open(&self.provider, &[addr]).await.expect("the provider listens");
    }

    /// Opens another stream to the provider.
    ///
    /// # Panics
    /// When that fails.
    pub async fn open_another(&self) -> Wire {
        self.endpoint.open(&self.provider, &[self.addr]).await.expect("the provider listens")
    }

    /// Connects anew to where the provider was, and says hello.
    ///
    /// # Panics
    /// When that fails.
    pub async fn reconnect(&mut self, addr: SocketAddr) {
        self.redial(addr).await;
        let (network, grant) = (self.me.network, self.me.grant.clone());
        self.greet(network, Some(grant)).await;
    }

    /// Answers whoever dials its own endpoint from now on, and returns its port.
    ///
    /// # Panics
    /// When the endpoint is gone.
    pub fn listen(&self) -> u16 {
        tokio::spawn(self.endpoint.clone().accept(|_| ()));
        self.endpoint.local_addr().expect("bound").port()
    }

    /// Says hello.
    ///
    /// # Panics
    /// When that fails.
    pub async fn greet(&mut self, network: NetworkId, grant: Option<SignedBytes>) {
        write_frame(&mut self.wire.send, &Hello::V1 { network, grant }).await.expect("the stream stands");
        let _: Hello = read_frame(&mut self.wire.recv).await.expect("a hello comes back");
    }

    /// Asks, and returns the answer.
    ///
    /// # Panics
    /// When there is none.
    pub async fn ask(&mut self, request: Request) -> Response {
        write_frame(&mut self.wire.send, &request).await.expect("the stream stands");
        read_frame(&mut self.wire.recv).await.expect("an answer comes back")
    }

    /// Asks what is refused, and returns the code.
    ///
    /// # Panics
    /// When it is not refused.
    pub async fn refused(&mut self, request: Request) -> RefusalCode {
        code(self.ask(request).await)
    }

    /// Whether the provider ends the stream, whatever it says before.
    pub async fn is_hung_up_on(&mut self) -> bool {
        let mut rest = Vec::new();
        let reading = self.wire.recv.read_to_end(&mut rest);
        tokio::time::timeout(PATIENCE, reading).await.is_ok()
    }

    /// Signs with the node key.
    pub fn sign<T: Signable>(&self, value: T) -> SignedBytes {
        Signed::new(value, self.me.network, &self.me.node_key()).raw().clone()
    }

    /// The running period.
    pub fn period(&self) -> u64 {
        self.genesis.period_at(unix_now_s())
    }

    /// The provider's node key.
    pub fn provider(&self) -> PublicKey {
        self.provider
    }

    /// Submits an action under its next number: the height it was taken at, or the code of the refusal.
    ///
    /// # Panics
    /// When there is another answer.
    pub async fn submit(&mut self, action: Action) -> Result<u64, String> {
        let tx = self.sign(Tx::V1 { number: self.number + 1, action });
        match self.ask(Request::Submit { tx }).await {
            Response::Taken { height } => {
                self.number += 1;
                Ok(height)
            }
            Response::NotTaken { code, .. } => Err(code),
            other => panic!("neither taken nor refused: {other:?}"),
        }
    }

    /// Registers on the ledger, and has the market issue credits to its account.
    ///
    /// # Panics
    /// When that fails.
    pub async fn become_client(&mut self, net: &Net, credits: &str) {
        let grant = self.me.grant.clone();
        self.submit(Action::Register { grant }).await.expect("a grant of its own");
        net.providers[0].ok(&["market", "fund", &self.me.account.to_string(), credits]);
    }

    /// Terms that the provider offers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn terms(&mut self) -> (SignedBytes, TermsV1) {
        let Response::Terms(raw) = self.ask(Request::Terms).await else { panic!("a provider offers terms") };
        let terms = raw.clone().check::<Terms>(self.me.network).expect("its terms hold");
        (raw, terms.value().v1().clone())
    }

    /// Opens a deal with `escrow` credits.
    ///
    /// # Panics
    /// When that fails.
    pub async fn open_deal(&mut self, escrow: &str) -> DealId {
        let (terms, v1) = self.terms().await;
        let escrow: Amount = escrow.parse().expect("an amount");
        self.submit(Action::Open { terms, escrow }).await.expect("the deal is opened");
        Terms::V1(v1).deal_id()
    }

    /// Stores a shard of few bytes.
    ///
    /// # Panics
    /// When it is not taken.
    pub async fn store(&mut self, deal: DealId, bytes: &[u8]) -> Member {
        let shard_bytes = bytes.len() as u64;
        assert_eq!(self.ask(Request::Store { deal, shard_bytes }).await, Response::Ready);
        self.wire.send.write_all(bytes).await.expect("the stream stands");
        self.wire.send.flush().await.expect("the stream stands");
        let stored = read_frame::<Response>(&mut self.wire.recv).await.expect("a receipt comes back");
        assert!(matches!(stored, Response::Stored(_)), "{stored:?}");
        Member { root: Root::of(bytes), bytes: shard_bytes }
    }

    /// Head `seq` over `members`, at `price`.
    ///
    /// # Panics
    /// When the members are no set.
    pub fn head(&self, deal: DealId, terms: &TermsV1, seq: u64, members: &[Member]) -> HeadV1 {
        let mut members = members.to_vec();
        members.sort_unstable();
        let sum = (!members.is_empty()).then(|| SumTree::new(members).expect("a set").sum());
        let from = self.period();
        HeadV1 {
            deal,
            seq,
            set_root: sum.map_or([0; 32], |sum| sum.hash),
            bytes: sum.map_or(0, |sum| sum.bytes),
            price: terms.price,
            from,
            until: from + HEAD_PERIODS_MAX,
            index_hash: [0; 32],
        }
    }

    /// Has a head countersigned that adds and removes shards.
    ///
    /// # Errors
    /// The code of the refusal.
    ///
    /// # Panics
    /// When there is another answer.
    pub async fn exchange(
        &mut self,
        head: HeadV1,
        add: &[Member],
        remove: &[Member],
    ) -> Result<FullHead, RefusalCode> {
        let head = self.sign(Head::V1(head));
        self.exchange_signed(head, add, remove).await
    }

    /// As [`Self::exchange`], of a head as it is signed.
    ///
    /// # Errors
    /// The code of the refusal.
    ///
    /// # Panics
    /// When there is another answer.
    pub async fn exchange_signed(
        &mut self,
        head: SignedBytes,
        add: &[Member],
        remove: &[Member],
    ) -> Result<FullHead, RefusalCode> {
        let roots = |members: &[Member]| members.iter().map(|m| m.root).collect();
        match self.ask(Request::Head { head, add: roots(add), remove: roots(remove) }).await {
            Response::Head(full) => Ok(full),
            other => Err(code(other)),
        }
    }

    /// A voucher.
    pub fn voucher(
        &self,
        deal: DealId,
        paid_through: Option<u64>,
        read_bytes: u64,
        total: u128,
    ) -> SignedBytes {
        let v1 = VoucherV1 {
            deal,
            epoch: 0,
            paid_through,
            read_bytes,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total: Amount(total),
        };
        self.sign(Voucher::V1(v1))
    }
}
