//! Every rule of the ledger by its own case: what it refuses, with which code and whose fault, and what it lets pass.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use spare_market::amount::{Amount, StorageDue};
use spare_market::block::{BLOCK_MAX_BYTES, Block, BlockError, Header, HeaderError, Ledger};
use spare_market::deal::{DealId, Status, TermsV1};
use spare_market::genesis::GenesisError;
use spare_market::grant::{Grant, Scope};
use spare_market::head::{FullHead, Head, HeadV1};
use spare_market::keys::SigningSecret;
use spare_market::signed::{NetworkId, Signed, SignedBytes};
use spare_market::tx::{Action, Blame, Event, Refused, Tx};
use spare_market::voucher::{Voucher, VoucherV1};

#[path = "harness/market.rs"]
mod harness;

use harness::{Market, OPERATOR, PERIOD_S, Party, genesis, party};

#[test]
fn transactions_are_taken_once_in_order_from_whom_they_say() {
    let mut m = Market::new();
    let fund = |amount| Action::Fund { account: party(2).account.public(), amount: Amount(amount) };
    let next = m.ledger.state().delegate(&party(1).node.public()).unwrap().number + 1;
    let tx = m.numbered(&party(1), next, fund(5));
    m.submit_raw(tx.clone()).unwrap();
    assert_eq!(m.submit_raw(tx).unwrap_err(), Refused::Number { expected: next + 1, got: next }, "replayed");
    let early = m.numbered(&party(1), next + 2, fund(5));
    assert_eq!(m.submit_raw(early).unwrap_err().code(), "wrong_number");
    let mut tampered = m.numbered(&party(1), next + 1, fund(5));
    *tampered.bytes.last_mut().unwrap() ^= 1;
    assert_eq!(m.submit_raw(tampered).unwrap_err().code(), "bad_transaction");
    let elsewhere =
        Signed::new(Tx::V1 { number: next + 1, action: fund(5) }, NetworkId([9; 32]), &party(1).node);
    assert_eq!(
        m.submit_raw(elsewhere.raw().clone()).unwrap_err().code(),
        "bad_transaction",
        "another ledger's"
    );
    assert_eq!(m.refused(&party(9), fund(5)), ("unknown_signer", Blame::Sender));
    assert_eq!(m.refused(&party(2), fund(5)), ("not_the_market", Blame::Sender));
    assert_eq!(m.refused(&party(1), fund(1 << 100)), ("supply", Blame::Sender));
    assert_eq!(m.free(&party(2)), 1005);
}

#[test]
fn a_node_acts_by_the_newest_grant_of_its_one_account() {
    let mut m = Market::new();
    let forged = m.signed(
        Grant::V1 {
            delegate: party(4).node.public(),
            scopes: vec![Scope::Spend],
            spend_cap: Amount(5),
            serial: 9,
            expires_s: u64::MAX,
        },
        &party(4).account,
    );
    let forged = SignedBytes { signer: party(2).account.public(), ..forged };
    assert_eq!(m.refused(&party(4), Action::Register { grant: forged }), ("bad_grant", Blame::Sender));
    let grant = m.grant(&party(2), &party(4), 9, 5, u64::MAX);
    assert_eq!(
        m.refused(&party(4), Action::Register { grant: grant.clone() }).0,
        "other_account",
        "a node has one account"
    );
    assert_eq!(
        m.refused(&party(3), Action::Register { grant: grant.clone() }).0,
        "other_account",
        "a stranger cannot hand it in"
    );
    assert_eq!(
        m.refused(&party(2), Action::Register { grant }).0,
        "other_account",
        "nobody takes over another's node"
    );
    let old = m.grant(&party(2), &party(2), 1, 5, u64::MAX);
    assert_eq!(m.refused(&party(2), Action::Register { grant: old }).0, "old_grant");
    let claimed = m.grant(&party(2), &party(8), u64::MAX, 5, u64::MAX);
    assert_eq!(
        m.refused(&party(2), Action::Register { grant: claimed }).0,
        "unknown_signer",
        "nobody claims a newcomer"
    );
    let newcomers = m.grant(&party(8), &party(8), 1, 5, u64::MAX);
    assert_eq!(m.refused(&party(9), Action::Register { grant: newcomers.clone() }).0, "unknown_signer");
    let late = m.numbered(&party(8), 2, Action::Register { grant: newcomers });
    assert_eq!(m.submit_raw(late).unwrap_err().code(), "wrong_number");

    // A cap counts what was ever put into deals.
    let capped = m.grant(&party(2), &party(2), 2, 300, 5000);
    m.ok(&party(2), Action::Register { grant: capped });
    let deal = m.open(200);
    let top_up = |amount| Action::TopUp { deal, amount: Amount(amount) };
    assert_eq!(m.refused(&party(2), top_up(101)), ("spend_cap", Blame::Sender));
    m.ok(&party(2), top_up(100));
    m.now_s = 5000;
    assert_eq!(m.refused(&party(2), top_up(1)).0, "grant_expired");
    // Another node of the account revokes the first. What the first has signed still holds.
    let voucher = m.voucher(deal, 49, 10);
    let second = Party { account: party(2).account, node: party(7).node };
    let grant = m.grant(&party(2), &second, 1, 50, u64::MAX);
    m.ok(&second, Action::Register { grant });
    let revocation = m.signed(
        Grant::V1 {
            delegate: party(2).node.public(),
            scopes: vec![],
            spend_cap: Amount(0),
            serial: 3,
            expires_s: u64::MAX,
        },
        &party(2).account,
    );
    m.ok(&second, Action::Register { grant: revocation });
    assert_eq!(m.refused(&party(2), top_up(1)).0, "scope");
    m.redeem(voucher).unwrap();
    // The second signs for the deal once it has put money into it, and so within its own cap.
    let by_second = |m: &Market, total| {
        let voucher = VoucherV1 {
            deal,
            epoch: 0,
            paid_through: Some(49),
            read_bytes: 0,
            jobs: Amount::ZERO,
            skipped: StorageDue::ZERO,
            total: Amount(total),
        };
        m.signed(Voucher::V1(voucher), &second.node)
    };
    let voucher = by_second(&m, 20);
    assert_eq!(m.refused(&party(3), Action::Redeem { voucher: voucher.clone() }).0, "bad_voucher");
    assert_eq!(m.refused(&second, top_up(0)).0, "nothing");
    m.ok(&second, top_up(50));
    m.redeem(voucher).unwrap();
}

#[test]
fn a_deal_opens_on_signed_terms_while_both_have_the_money() {
    let mut m = Market::new();
    let open = |m: &Market, by: &SigningSecret, escrow, change: &dyn Fn(&mut TermsV1)| Action::Open {
        terms: m.signed(m.terms(change), by),
        escrow: Amount(escrow),
    };
    let (node, other) = (party(3).node, party(4).node);
    let action = open(&m, &node, 10, &|t| t.expires_s = 1000);
    assert_eq!(m.refused(&party(2), action), ("terms_expired", Blame::Nobody));
    let action = open(&m, &node, 10, &|t| t.expires_s = 1601);
    assert_eq!(m.refused(&party(2), action).0, "terms_expired", "longer than terms may hold");
    let action = open(&m, &other, 10, &|_| ());
    assert_eq!(m.refused(&party(2), action), ("bad_terms", Blame::Provider), "forged");
    let action = open(&m, &other, 10, &|t| t.node = party(4).node.public());
    assert_eq!(m.refused(&party(2), action).0, "bad_terms", "a node of another account");
    let action = open(&m, &node, 10, &|_| ());
    assert_eq!(m.refused(&party(4), action).0, "not_a_party", "another client's terms");
    let action = open(&m, &node, 1001, &|_| ());
    assert_eq!(m.refused(&party(2), action), ("funds", Blame::Sender));
    let action = open(&m, &node, 10, &|t| t.collateral = Amount(101));
    assert_eq!(m.refused(&party(2), action), ("collateral", Blame::Provider));
    let deal = m.open(700);
    assert_eq!((m.free(&party(2)), m.free(&party(3))), (300, 60));
    let action = open(&m, &node, 10, &|_| ());
    assert_eq!(m.refused(&party(2), action).0, "deal_exists");
    let top_up = |amount| Action::TopUp { deal, amount: Amount(amount) };
    assert_eq!(m.refused(&party(3), top_up(1)).0, "not_a_party");
    assert_eq!(m.refused(&party(2), top_up(301)).0, "funds");
    m.ok(&party(2), top_up(300));
    assert_eq!(m.ledger.state().deal(&deal).unwrap().escrow, Amount(1000));
    assert_eq!(m.ledger.state().deals_of(&party(3).account.public()).count(), 1);
    // One who is its own client pays both from one account.
    let terms = m.terms(|t| (t.client, t.collateral) = (t.provider, Amount(50)));
    let action = Action::Open { terms: m.signed(terms.clone(), &node), escrow: Amount(10) };
    m.ok(&party(3), action);
    assert_eq!(m.free(&party(3)), 0);
}

#[test]
fn the_newest_head_signed_by_both_counts() {
    let mut m = Market::new();
    let deal = m.open(500);
    let anchor = |head| Action::Anchor { head };
    let second = m.head(deal, 2, |_| ());
    m.ok(&party(3), anchor(second.clone()));
    assert_eq!(m.refused(&party(3), anchor(second)).0, "stale_head");
    let head = m.head(deal, 1, |_| ());
    assert_eq!(m.refused(&party(2), anchor(head)), ("stale_head", Blame::Sender));
    let head = m.head(deal, 2, |h| h.bytes += 1);
    assert_eq!(m.refused(&party(3), anchor(head)), ("forked_head", Blame::Client));
    for change in [
        (|h| h.until = h.from + 31) as fn(&mut HeadV1),
        |h| h.until = h.from,
        |h| h.bytes = 0,
        |h| (h.from, h.until) = (h.from - 1, h.until - 1),
        |h| h.price.0 = u64::MAX,
    ] {
        let head = m.head(deal, 3, change);
        assert_eq!(m.refused(&party(3), anchor(head)).0, "head_out_of_bounds");
    }
    let elsewhere =
        Signed::new(Head::V1(*head_of(&m.head(deal, 3, |_| ())).v1()), NetworkId([9; 32]), &party(2).node);
    let head = FullHead::countersign(elsewhere.raw().clone(), NetworkId([9; 32]), &party(3).node);
    assert_eq!(m.refused(&party(3), anchor(head)).0, "bad_head", "of another ledger");
    let mut head = m.head(deal, 3, |_| ());
    head.countersignature = m.head(deal, 4, |_| ()).countersignature;
    assert_eq!(m.refused(&party(3), anchor(head)).0, "bad_head", "not countersigned");
    let signed = m.signed(head_of(&m.head(deal, 3, |_| ())), &party(4).node);
    let head = FullHead::countersign(signed, m.ledger.network(), &party(3).node);
    assert_eq!(m.refused(&party(3), anchor(head)), ("bad_head", Blame::Client), "signed by a stranger");
    let head = m.head(deal, 3, |_| ());
    assert_eq!(m.refused(&party(4), anchor(head)).0, "not_a_party");
    let head = m.head(DealId([8; 32]), 3, |_| ());
    assert_eq!(m.refused(&party(3), anchor(head)).0, "no_such_deal");
}

fn head_of(full: &FullHead) -> Head {
    spare_proofs::encode::from_bytes(&full.head.bytes, 1000).unwrap()
}

#[test]
fn a_vouchers_value_is_paid_once() {
    let mut m = Market::new();
    let deal = m.open(500);
    let code = |result: Result<Event, Refused>| result.unwrap_err().code();
    let voucher = m.voucher(deal, 10, 100);
    assert_eq!(code(m.redeem(voucher.clone())), "voucher_early", "its period is not over");
    m.now_s = 1100;
    let paid = |amount, fee, short| {
        Ok(Event::Paid { deal, amount: Amount(amount), fee: Amount(fee), short: Amount(short) })
    };
    assert_eq!(m.redeem(voucher.clone()), paid(100, 5, 0));
    assert_eq!(m.free(&party(3)), 60 + 95);
    assert_eq!(code(m.redeem(voucher)), "stale_voucher", "replayed");
    let lower = m.voucher(deal, 10, 99);
    assert_eq!(code(m.redeem(lower)), "stale_voucher");
    let backwards = m.voucher(deal, 9, 120);
    assert_eq!(code(m.redeem(backwards)), "stale_voucher");
    // Fees are of the sum: 5% of 109 is 5, of 119 again 5, of 129 it is 6.
    for (total, fee) in [(109, 0), (119, 0), (129, 1)] {
        let voucher = m.voucher(deal, 10, total);
        assert_eq!(m.redeem(voucher), paid(total - if total == 109 { 100 } else { total - 10 }, fee, 0));
    }
    let epoch = VoucherV1 {
        deal,
        epoch: 1,
        paid_through: Some(10),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: StorageDue::ZERO,
        total: Amount(300),
    };
    let epoch = m.signed(Voucher::V1(epoch), &party(2).node);
    assert_eq!(code(m.redeem(epoch)), "voucher_epoch");
    let forged = VoucherV1 {
        deal,
        epoch: 0,
        paid_through: Some(10),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: StorageDue::ZERO,
        total: Amount(300),
    };
    let forged = m.signed(Voucher::V1(forged), &party(3).node);
    assert_eq!(m.refused(&party(3), Action::Redeem { voucher: forged }), ("bad_voucher", Blame::Client));
    let elsewhere = VoucherV1 {
        deal,
        epoch: 0,
        paid_through: Some(10),
        read_bytes: 0,
        jobs: Amount::ZERO,
        skipped: StorageDue::ZERO,
        total: Amount(300),
    };
    let elsewhere = Signed::new(Voucher::V1(elsewhere), NetworkId([9; 32]), &party(2).node).raw().clone();
    assert_eq!(code(m.redeem(elsewhere)), "bad_voucher");
    let voucher = m.voucher(deal, 10, 300);
    assert_eq!(m.refused(&party(4), Action::Redeem { voucher }).0, "not_a_party");
    // More than there is: what there is now, the rest once there is more.
    let voucher = m.voucher(deal, 10, 600);
    assert_eq!(m.redeem(voucher.clone()), paid(371, 19, 100));
    assert_eq!(
        m.refused(&party(3), Action::Redeem { voucher: voucher.clone() }),
        ("escrow_empty", Blame::Client)
    );
    m.ok(&party(2), Action::TopUp { deal, amount: Amount(150) });
    assert_eq!(m.redeem(voucher), paid(100, 5, 0));
    assert_eq!(m.ledger.state().deal(&deal).unwrap().escrow, Amount(50));
    assert_eq!(m.ledger.state().totals().fees, Amount(30));
}

#[test]
fn a_closing_deal_still_takes_what_was_promised() {
    let mut m = Market::new();
    let deal = m.open(500);
    let close = |head| Action::Close { deal, head };
    assert_eq!(m.refused(&party(4), close(None)).0, "not_a_party");
    assert_eq!(m.refused(&party(2), Action::Settle { deal }), ("not_due", Blame::Nobody));
    // The client closes with an old head, and the provider puts the newer one on the ledger.
    let (old, newer) = (m.head(deal, 1, |_| ()), m.head(deal, 2, |h| h.bytes = 2 << 30));
    m.ok(&party(2), close(Some(old)));
    assert!(matches!(m.ledger.state().deal(&deal).unwrap().status, Status::Closing { .. }));
    assert_eq!(m.refused(&party(3), close(None)).0, "closing");
    assert_eq!(m.refused(&party(2), Action::TopUp { deal, amount: Amount(1) }).0, "closing");
    m.ok(&party(3), Action::Anchor { head: newer });
    assert_eq!(m.ledger.state().deal(&deal).unwrap().head.unwrap().head.bytes, 2 << 30);
    m.now_s = 1100;
    let voucher = m.voucher(deal, 10, 200);
    m.redeem(voucher).unwrap();
    for now_s in [1100, 1200] {
        m.now_s = now_s;
        assert_eq!(m.refused(&party(2), Action::Settle { deal }).0, "not_due");
    }
    // An outage of many periods counts as one: the window is as long for those who were away.
    m.now_s = 9000;
    let settled = m.ok(&party(4), Action::Settle { deal });
    assert_eq!(settled, Event::Closed { deal, returned: Amount(300) });
    assert_eq!((m.free(&party(2)), m.free(&party(3))), (500 + 300, 100 + 190));
    assert_eq!(m.refused(&party(2), Action::Settle { deal }).0, "no_such_deal");
    assert!(m.ledger.state().deals_of(&party(2).account.public()).next().is_none());
}

#[test]
fn an_outage_makes_the_closing_window_longer() {
    let mut m = Market::new();
    let deal = m.open(500);
    m.ok(&party(2), Action::Close { deal, head: None });
    for now_s in [50_000, 60_000] {
        m.now_s = now_s;
        assert_eq!(
            m.refused(&party(2), Action::Settle { deal }).0,
            "not_due",
            "the ledger lived in too few periods"
        );
    }
    m.now_s = 60_100;
    m.ok(&party(2), Action::Settle { deal });
}

#[test]
fn a_deal_cannot_be_opened_again_under_its_old_vouchers() {
    let mut m = Market::new();
    m.now_s = 1000;
    let terms = m.terms(|t| t.expires_s = 1600);
    let action = Action::Open { terms: m.signed(terms.clone(), &party(3).node), escrow: Amount(100) };
    m.ok(&party(2), action);
    let deal = terms.deal_id();
    m.ok(&party(2), Action::Close { deal, head: None });
    for now_s in [1100, 1200, 1300, 1599] {
        m.now_s = now_s;
        assert_eq!(
            m.refused(&party(2), Action::Settle { deal }).0,
            "not_due",
            "the terms could still be taken up"
        );
    }
    m.now_s = 1600;
    m.ok(&party(2), Action::Settle { deal });
}

#[test]
fn a_block_that_breaks_a_rule_is_not_taken() {
    let market = Market::new();
    let mut follower = Ledger::new(genesis(PERIOD_S as u32, 500)).unwrap();
    assert_eq!(Ledger::new(genesis(0, 0)).err(), Some(GenesisError::Period));
    assert_eq!(Ledger::new(genesis(1, 5001)).err(), Some(GenesisError::Fee));
    // A market of its own, block by block.
    let fund = |number, amount| {
        let action = Action::Fund { account: party(2).account.public(), amount: Amount(amount) };
        market.numbered(&party(1), number, action)
    };
    let grant = market.grant(&party(1), &party(1), 1, 0, u64::MAX);
    let register = market.numbered(&party(1), 1, Action::Register { grant });
    let txs = [fund(2, 7), fund(3, 8)];
    let mut ledger = follower.clone();
    let key = party(1).node;
    let mut make = |now_s, txs| {
        let next = ledger.make(now_s, txs, &OPERATOR).unwrap().next.unwrap();
        ledger.take(next)
    };
    let first = make(1000, vec![register]);
    let second = make(1001, txs.to_vec());
    assert!(
        ledger.make(1002, vec![fund(9, 9)], &OPERATOR).unwrap().next.is_none(),
        "nothing to put into one"
    );
    assert!(matches!(follower.accept(second.clone()), Err(BlockError::Order { .. })), "out of order");
    follower.accept(first).unwrap();
    let signed_anew = |change: &dyn Fn(&mut Header), by: &SigningSecret| {
        let mut header = *second.header.clone().check::<Header>(ledger.network()).unwrap().value();
        change(&mut header);
        Block { header: Signed::new(header, ledger.network(), by).raw().clone(), txs: second.txs.clone() }
    };
    let bad = signed_anew(&|_| (), &party(2).node);
    assert_eq!(follower.accept(bad).err(), Some(BlockError::Header(HeaderError::NotTheMarket)));
    let bad = signed_anew(&|Header::V1 { time_s, .. }| *time_s = 999, &key);
    assert!(matches!(follower.accept(bad), Err(BlockError::Order { .. })), "time goes back");
    let bad = signed_anew(&|Header::V1 { previous, .. }| previous[0] ^= 1, &key);
    assert!(matches!(follower.accept(bad), Err(BlockError::Order { .. })), "another history");
    let bad = signed_anew(&|Header::V1 { beacon, .. }| beacon[0] ^= 1, &key);
    assert_eq!(follower.accept(bad).err(), Some(BlockError::Beacon { height: 2 }));
    let bad = signed_anew(&|Header::V1 { state_root, .. }| state_root[0] ^= 1, &key);
    assert_eq!(follower.accept(bad).err(), Some(BlockError::Root { height: 2 }));
    // More than a block may hold, under a header that has their hash.
    let long = SignedBytes { bytes: vec![0; BLOCK_MAX_BYTES], ..second.txs[0].clone() };
    let encoded = spare_proofs::encode::to_bytes(&long);
    let mut hasher = blake3::Hasher::new_derive_key("spare 2026 block transactions v1");
    let hash = hasher.update(&(encoded.len() as u64).to_le_bytes()).update(&encoded).finalize();
    let bad = signed_anew(&|Header::V1 { txs_hash, .. }| *txs_hash = hash.into(), &key);
    let bad = Block { txs: vec![long], ..bad };
    assert_eq!(follower.accept(bad).err(), Some(BlockError::Txs { height: 2 }));
    let mut bad = second.clone();
    bad.txs.swap(0, 1);
    assert_eq!(follower.accept(bad).err(), Some(BlockError::Txs { height: 2 }));
    // A market that pays itself twice is found out, whatever it signs.
    let mut made = follower.make(1001, vec![fund(2, 7)], &OPERATOR).unwrap().next.unwrap().block;
    made.txs.push(fund(2, 7));
    assert!(follower.accept(made).is_err());
    // After all that it goes on as if nothing had been.
    let events = follower.accept(second).unwrap();
    assert_eq!((events.len(), follower.tip()), (2, ledger.tip()));
    assert_eq!(follower.state().root(), ledger.state().root());
}

#[test]
fn golden_root_and_sizes() {
    let mut m = Market::new();
    let deal = m.open(500);
    let head = m.head(deal, 1, |_| ());
    let voucher = m.voucher(deal, 9, 100);
    let bytes = spare_proofs::encode::to_bytes(&head).len();
    assert!(bytes <= 300, "a head signed by both has {bytes} bytes");
    m.ok(&party(3), Action::Anchor { head });
    m.ok(&party(3), Action::Redeem { voucher });
    let root = blake3::Hash::from_bytes(m.ledger.state().root()).to_hex().to_string();
    assert_eq!(root, GOLDEN_ROOT);
}

const GOLDEN_ROOT: &str = "f4b5be8499dc20de0af77d88b2ad72407254e931f68cd129d23b7f4f7b68b21a";
