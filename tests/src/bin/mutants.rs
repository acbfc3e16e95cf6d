//! `make mutants`: breaks one rule of the market at a time and runs its tests, which have to fail.
//!
//! Each mutant is a copy of the pure crates with one piece of text replaced: a safety rule left out, weakened or turned round. One
//! that survives is a rule that nothing tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};

/// File within `market/src`, what stands there, what the mutant has instead, and the rule that this breaks.
type Mutant = (&'static str, &'static str, &'static str, &'static str);

const MUTANTS: &[Mutant] = &[
    (
        "tab/jobs.rs",
        "if cost < open.counted || cost > open.most {",
        "if cost < open.counted {",
        "a job costs no more than its order says",
    ),
    (
        "tab/jobs.rs",
        "if cost < open.counted || cost > open.most {",
        "if cost > open.most {",
        "what a job has cost does not go down",
    ),
    (
        "tab.rs",
        ".saturating_sub(self.open(deal, period)).saturating_sub(self.reserved())",
        ".saturating_sub(self.open(deal, period))",
        "an escrow has what jobs under way may cost",
    ),
    (
        "job.rs",
        "            && self.outputs.bytes <= limits.output_list_bytes()\n",
        "",
        "a list of outputs is bounded",
    ),
    ("job.rs", "self.fuel <= limits.fuel", "true", "a result has used no more fuel than its work allows"),
    (
        "job.rs",
        "if !verifiers.is_empty() && verifiers.len().is_multiple_of(2) {",
        "if false {",
        "verifiers cannot be of two minds",
    ),
    (
        "hire.rs",
        "        open.retain(|c| !are_neighbours(c, &winner));",
        "        open.retain(|c| c.node != winner.node);",
        "copies go to distinct operators and networks",
    ),
    (
        "hire.rs",
        "} else if cost > self.cost_max {",
        "} else if false {",
        "nobody is hired who may cost more than is allowed",
    ),
    (
        "ledger/claims.rs",
        "        if deal.claiming.is_some_and(|claiming| claiming.until_tick.is_none_or(|until| until >= tick)) {",
        "        if false {",
        "claims are begun once, and not anew in the tick in which they ended",
    ),
    (
        "ledger/claims.rs",
        "?.until_tick = Some(state.totals().ticks);",
        "?.until_tick = Some(state.totals().ticks - 1);",
        "a tick's draws include what is ended in it",
    ),
    (
        "ledger.rs",
        "        if self.delegate.account != deal.terms.provider {\n            return Err(Refused::NotAParty);\n        }\n        self.needs",
        "        self.needs",
        "a client redeems nothing",
    ),
    (
        "claim.rs",
        "    claiming.since_tick.saturating_add(1)..=until.min(settled)",
        "    claiming.since_tick..=until.min(settled)",
        "claims begin in the tick after",
    ),
    (
        "claim.rs",
        "    claiming.since_tick.saturating_add(1)..=until.min(settled)",
        "    claiming.since_tick.saturating_add(1)..=until",
        "a deal that can be settled is not drawn",
    ),
    (
        "claim.rs",
        "let stake = deal.stake_before(totals.ticks);",
        "let stake = deal.stake();",
        "what is drawn is settled before the beacon",
    ),
    (
        "claim.rs",
        "let index = ends.partition_point(|end| *end <= at);",
        "let index = (at % claimables.len() as u128) as usize;",
        "deals are drawn by weight",
    ),
    (
        "claim.rs",
        "rate.min(funded(stake.escrow)).min(pledged(stake.collateral))",
        "rate.min(funded(stake.escrow))",
        "a deal weighs what its collateral can lose",
    ),
    (
        "claim.rs",
        "rate.min(funded(stake.escrow)).min(pledged(stake.collateral))",
        "rate.min(pledged(stake.collateral))",
        "a deal weighs what its escrow can pay",
    ),
    (
        "claim.rs",
        "self.moved < MOVES_MAX && !self",
        "!self",
        "a challenge does not go over to newer heads for ever",
    ),
    (
        "claim.rs",
        "!self.is_over(deal.anchored_tick) && ",
        "",
        "a head that comes too late saves from no challenge",
    ),
    (
        "claim.rs",
        " && set_of(&head.head) != set_of(&self.head.head)",
        "",
        "a head over the same set saves from no challenge",
    ),
    (
        "claim.rs",
        "if deal.penalized_tick.is_some_and(|penalized| self.made_tick <= penalized) {",
        "if false {",
        "one outage costs one penalty",
    ),
    (
        "deal.rs",
        "        if self.prior.0 < tick {\n            self.prior",
        "        {\n            self.prior",
        "the stake that is kept is that of the tick's begin",
    ),
    (
        "ledger.rs",
        "context.period > totals.period && !is_late {",
        "context.period > totals.period {",
        "a tick has time for claims",
    ),
    (
        "ledger/claims.rs",
        "            fall_silent(state, self.context.genesis.period_s, &deal.terms.node);\n            let settled",
        "            let settled",
        "silence is settled before what it goes by changes",
    ),
    (
        "ledger/claims.rs",
        " && *weight > Amount::ZERO)",
        ")",
        "a deal that weighs nothing makes nobody silent",
    ),
    (
        "ledger/claims.rs",
        "            deal.collateral = deal.collateral.saturating_sub(taken);\n            burned",
        "            burned",
        "silence burns collateral",
    ),
    (
        "ledger/claims.rs",
        "2 * claimable.amount.max(claimable.weight).share(",
        "2 * claimable.amount.share(",
        "what weighs costs, whoever pays for it",
    ),
    (
        "tab.rs",
        "if voucher.skipped.saturating_sub(self.base.skipped) > unpaid {",
        "if false {",
        "nothing is left out that is paid",
    ),
    (
        "tab.rs",
        "            self.doubt(next, given_up);\n",
        "            let _ = given_up;\n",
        "what is given up makes doubts",
    ),
    (
        "claim.rs",
        "        Some(first + u64::from(is_free)).filter",
        "        Some(first + 0 * u64::from(is_free)).filter",
        "one silence is free",
    ),
    (
        "claim.rs",
        "let amount = due.min(funded(deal.escrow)).min(pledged(stake.collateral));",
        "let amount = due.min(funded(deal.escrow));",
        "a claim has collateral behind it",
    ),
    (
        "claim.rs",
        "let amount = due.min(funded(deal.escrow)).min(pledged(stake.collateral));",
        "let amount = due.min(pledged(stake.collateral));",
        "a claim is paid of the escrow",
    ),
    (
        "ledger/claims.rs",
        "    let (start, end) = ((*claimed.start()).max(*due.start()), (*claimed.end()).min(*due.end()));",
        "    let (start, end) = (*due.start(), (*due.end()).max(0 * *claimed.end()));",
        "silence counts for who took part",
    ),
    (
        "ledger/claims.rs",
        "if tick != totals.ticks || prover.last_tick >= totals.ticks {",
        "if tick != totals.ticks {",
        "a claim is made once a tick",
    ),
    (
        "ledger/claims.rs",
        "if tick != totals.ticks || prover.last_tick >= totals.ticks {",
        "if prover.last_tick >= totals.ticks {",
        "a claim is for the running tick",
    ),
    (
        "ledger/claims.rs",
        "        check_shown(drawn, openings)?;\n        fall_silent",
        "        let _ = (drawn.len(), openings);\n        fall_silent",
        "what is claimed for is shown",
    ),
    ("ledger/claims.rs", "        deal.epoch += 1;\n", "", "claims void vouchers"),
    (
        "ledger/claims.rs",
        "        deal.paid_through = deal.paid_through.max(self.context.period.checked_sub(1));\n",
        "",
        "periods before claims are given up",
    ),
    (
        "ledger/claims.rs",
        "        deal.paid_through = self.context.period.checked_sub(1);\n",
        "",
        "a period is claimed once",
    ),
    (
        "ledger/claims.rs",
        "self.signer == deal.terms.node && self",
        "self",
        "claims are begun by the provider",
    ),
    (
        "ledger/claims.rs",
        "        if deal.terms.provider != self.delegate.account {\n            return Err(Refused::NotAParty);\n        }\n",
        "",
        "a provider pledges for itself",
    ),
    ("ledger/claims.rs", "if challenger == deal.terms.provider {", "if false {", "nobody challenges itself"),
    (
        "ledger/claims.rs",
        "if state.challenge(id, challenger).is_some() {",
        "if false {",
        "an account challenges a deal once at a time",
    ),
    (
        "ledger/claims.rs",
        "        if deal.collateral == Amount::ZERO {\n            return Err(Refused::NoCollateral);\n        }\n        if state",
        "        if state",
        "a challenge has something to win",
    ),
    (
        "ledger/claims.rs",
        "        if challenge.is_over(totals.ticks) {\n            return Err(Refused::TooLate);\n        }\n",
        "",
        "an answer is in time",
    ),
    (
        "ledger/claims.rs",
        "        check_shown(positions.iter().map(|position| (&challenge.head.head, *position)), openings)?;\n",
        "        let _ = (positions, openings);\n",
        "an answer shows what was drawn",
    ),
    ("ledger/claims.rs", "if !challenge.is_over(tick) {", "if false {", "a challenge has its time"),
    (
        "ledger/claims.rs",
        "        if challenge.is_superseded(&deal) {\n            return Ok(move_on(state, id, deal, challenger, challenge));\n        }\n        let tick",
        "        let tick",
        "nothing is taken for a head that is superseded",
    ),
    (
        "ledger/claims.rs",
        "        deal.collateral = deal.collateral.saturating_sub(penalty);\n        let client",
        "        let client",
        "a penalty is taken",
    ),
    (
        "ledger/claims.rs",
        "let award = Amount(penalty.0 / 2);",
        "let award = penalty;",
        "a challenger gets half",
    ),
    (
        "ledger/claims.rs",
        "Ok(end_challenge(state, id, deal, challenger, challenge.costs_if_answered()))",
        "Ok(end_challenge(state, id, deal, challenger, AnswerCosts::default()))",
        "a false alarm costs",
    ),
    (
        "claim.rs",
        "let to_provider = if self.moved == 0 { half } else { Amount::ZERO };",
        "let to_provider = half;",
        "who answers for a newer head is not paid for it",
    ),
    (
        "ledger/claims.rs",
        "share.checked_add(cost).and_then(|sum| sum.checked_add(of_provider))",
        "share.checked_add(cost)",
        "claiming costs both sides",
    ),
    (
        "ledger.rs",
        "        let deal = if deal.claiming.is_some() {",
        "        let deal = if false {",
        "what is to be burned is burned before a deal is settled",
    ),
    ("deal.rs", " && self.challenges == 0", "", "a deal with open challenges is not settled"),
    (
        "dispute.rs",
        "2 * votes(result) > self.seats.len()",
        "2 * votes(result) + 1 >= self.seats.len()",
        "half of the verifiers are no majority",
    ),
    ("dispute.rs", "2 * votes(result) > self.seats.len()", "votes(result) > 0", "most have to find the same"),
    (
        "dispute.rs",
        "            Stage::Committing => return Err(DisputeError::CommitsOpen { until_tick: commit_until }),\n",
        "            Stage::Committing => {}\n",
        "nothing is revealed while somebody can still commit",
    ),
    (
        "dispute.rs",
        "        if stage != Stage::Committing {\n            return Err(DisputeError::CommitsOver { until_tick });\n        }\n",
        "        let _ = (stage, until_tick);\n",
        "nothing is committed to when it is time to reveal",
    ),
    (
        "dispute.rs",
        "        if seat.verdict != Verdict::Awaited {\n            return Err(DisputeError::Committed);\n        }\n",
        "",
        "a verifier commits once",
    ),
    (
        "dispute.rs",
        "if commitment(job, verifier, found, nonce) != committed {",
        "if false && commitment(job, verifier, found, nonce) != committed {",
        "what is revealed was committed to",
    ),
    (
        "dispute.rs",
        "hasher.update(&job.0).update(&verifier.to_bytes());",
        "let _ = verifier;\n    hasher.update(&job.0);",
        "a commitment is one verifier's",
    ),
    (
        "dispute.rs",
        "hasher.update(&[u8::from(found.is_some())])",
        "hasher.update(&[0])",
        "a commitment tells nothing from a result",
    ),
    (
        "dispute.rs",
        "        } else if tick <= self.reveal_until_tick() && any",
        "        } else if any",
        "revealing has its end",
    ),
    (
        "dispute.rs",
        "        } else if tick <= self.commit_until_tick() && any",
        "        } else if any",
        "committing has its end",
    ),
    (
        "dispute.rs",
        "if !deal.signers.contains(&order.signer()) {",
        "if false {",
        "a disputed order is the client's",
    ),
    (
        "dispute.rs",
        "if receipt.signer() != deal.terms.node {",
        "if false {",
        "a disputed receipt is the provider's",
    ),
    ("dispute.rs", "        order.value().check()?;\n", "", "verifiers are an odd number, each once"),
    ("dispute.rs", "if *receipt_job != job {", "if false {", "a receipt is for its order"),
    ("dispute.rs", "if ran.work != order.work {", "if false {", "a result is of the work that was ordered"),
    ("dispute.rs", "if time_s > disputable_until_s {", "if false {", "disputes have their time"),
    (
        "dispute.rs",
        "!self.is_open() && time_s > self.disputable_until_s",
        "!self.is_open()",
        "a job that was disputed is remembered",
    ),
    (
        "dispute.rs",
        "!self.is_open() && time_s > self.disputable_until_s",
        "time_s > self.disputable_until_s",
        "an open dispute is not forgotten",
    ),
    (
        "dispute.rs",
        "Status::Closing { since_tick } => tick < since_tick + CLOSING_PERIODS,",
        "Status::Closing { .. } => true,",
        "closing ends, however much is disputed",
    ),
    (
        "dispute.rs",
        "let penalty = self.penalty.min(collateral);",
        "let penalty = self.penalty;",
        "a penalty takes what is there",
    ),
    (
        "dispute.rs",
        "let of_penalty = fees.min(award);",
        "let of_penalty = fees;",
        "half of a penalty is burned",
    ),
    (
        "dispute.rs",
        "(Verdict::Revealed(Some(found)), Some(most)) => found == most,",
        "(Verdict::Revealed(Some(_)), Some(_)) => true,",
        "whoever finds what most do not find gets nothing",
    ),
    (
        "dispute.rs",
        "(Verdict::Revealed(found), None) => found.is_some(),",
        "(Verdict::Revealed(_), None) => true,",
        "whoever finds nothing gets nothing",
    ),
    ("ledger/disputes.rs", "if self.delegate.account != client {", "if false {", "a dispute is the client's"),
    ("ledger/disputes.rs", "if client == deal.terms.provider {", "if false {", "nobody disputes with itself"),
    (
        "ledger/disputes.rs",
        "if !deal.signers.contains(&self.signer) {",
        "if false {",
        "a dispute is opened by a node that funded the deal",
    ),
    ("ledger/disputes.rs", "if state.dispute(&job).is_some() {", "if false {", "a job is disputed once"),
    (
        "ledger/disputes.rs",
        "if known.len() - forgotten.len() >= DISPUTES_MAX {",
        "if false {",
        "a deal's disputes have a bound",
    ),
    (
        "ledger/disputes.rs",
        "        check_verifiers(state, &deal, &dispute)?;\n",
        "        let _ = check_verifiers;\n",
        "verifiers are looked at",
    ),
    (
        "ledger/disputes.rs",
        "if [deal.terms.client, deal.terms.provider].contains(&account) {",
        "if deal.terms.client == account {",
        "no provider judges its own case",
    ),
    (
        "ledger/disputes.rs",
        "if [deal.terms.client, deal.terms.provider].contains(&account) {",
        "if deal.terms.provider == account {",
        "no client judges its own case",
    ),
    ("ledger/disputes.rs", "if accounts.contains(&account) {", "if false {", "an account has one vote"),
    (
        "ledger/disputes.rs",
        "let (account, delegate) = self.spend(state, DISPUTE_BOND)?;",
        "let (account, delegate) = self.spend(state, Amount::ZERO)?;",
        "a dispute costs a bond",
    ),
    (
        "ledger/disputes.rs",
        "            deal.collateral = deal.collateral.saturating_sub(penalty);\n",
        "            let _ = penalty;\n",
        "a penalty is taken",
    ),
    (
        "ledger/disputes.rs",
        "totals.burned = totals.burned.checked_add(burned).expect(\"no more than was issued\");",
        "let _ = burned;",
        "what is burned is counted",
    ),
    (
        "ledger/disputes.rs",
        "        self.before_change(state, id, &mut deal);\n",
        "",
        "silence is settled before a penalty",
    ),
    ("ledger/disputes.rs", "        dispute.bond = Amount::ZERO;\n", "", "a bond is paid out once"),
    (
        "ledger/disputes.rs",
        "            Stage::Decided => Err(DisputeError::Decided.into()),\n",
        "            Stage::Decided => self.end(state, job, dispute),\n",
        "a dispute is decided once",
    ),
    (
        "ledger/disputes.rs",
        "known.iter().find(|(_, dispute)| dispute.is_open())",
        "known.iter().find(|_| false)",
        "a deal with an open dispute is not settled",
    ),
    (
        "claim.rs",
        "let is_free = self.silent_tick.is_none_or(|before| first - before > SILENCE_TICKS);",
        "let is_free = true;",
        "a second silence burns",
    ),
    (
        "claim.rs",
        "totals.period.saturating_sub(unpaid.max(totals.previous_period))",
        "totals.period.saturating_sub(unpaid)",
        "a period that was not claimed is lost",
    ),
    (
        "claim.rs",
        "let beacon = totals.beacon_of(self.made_tick + 1)?;",
        "let beacon = totals.beacon_of(self.made_tick)?;",
        "a challenge draws by a later beacon",
    ),
    ("claim.rs", "    if drawn.len() != shown.len() {", "    if false {", "all draws are shown"),
    (
        "block.rs",
        "        if !beacon::follows((&beacon, context.period), (&known, known_period)) {",
        "        if false {",
        "beacons follow from the genesis",
    ),
    ("block.rs", "if fitting(&block.txs) < block.txs.len() ||", "if", "blocks have a bound"),
    (
        "standing.rs",
        "let may_strike = contained.is_told || fault == Fault::Silent;",
        "let may_strike = true;",
        "a provider is told before a strike",
    ),
    ("standing.rs", "contained.tries > TRIES_MIN && now_s", "now_s", "a strike takes several tries"),
    ("standing.rs", "&& now_s >= self.strikes_at_s(spacing_s)", "", "strikes are spaced"),
    (
        "standing.rs",
        "        if contained.place != place {\n            return false;\n        }\n",
        "",
        "one failure is asked about at a time",
    ),
    ("tab.rs", "&& self.doubted.1 > 1", "&& self.doubted.1 > 9", "a client that pays too little is doubted"),
    (
        "tab.rs",
        "            self.doubt(next, given_up);\n            self.promised = None;\n",
        "            self.doubt(next, given_up);\n",
        "vouchers of an old epoch are void",
    ),
    (
        "tab.rs",
        "            paid: deal.paid,\n",
        "            paid: Amount::ZERO,\n",
        "a tab goes on from what was paid",
    ),
    ("ledger.rs", "if number == expected {", "if number > 0 {", "each transaction is taken once"),
    ("ledger.rs", "if context.time_s >= delegate.expires_s {", "if false {", "grants expire"),
    ("ledger.rs", "if self.signer != self.context.genesis.market {", "if false {", "the market alone issues"),
    ("ledger.rs", "if self.delegate.scopes.contains(&scope) {", "if true {", "a grant has scopes"),
    ("ledger.rs", ".filter(|spent| *spent <= delegate.spend_cap)", "", "a grant has a cap"),
    (
        "ledger.rs",
        "account.free = account.free.checked_sub(amount).ok_or(short)?;",
        "account.free = account.free.saturating_sub(amount); let _ = short;",
        "money is there before it is spent",
    ),
    ("ledger.rs", "if !signed.value().is_open_at(self.context.time_s) {", "if false {", "terms expire"),
    (
        "ledger.rs",
        "let may_provide = signed.signer() == terms.node",
        "let may_provide = true",
        "terms are signed by the provider's node",
    ),
    ("ledger.rs", "&& node.account == terms.provider", "", "a node provides for its own account"),
    ("ledger.rs", "if terms.client != self.delegate.account {", "if false {", "terms are for one client"),
    ("ledger.rs", "if state.deal(&id).is_some() {", "if false {", "a deal is opened once"),
    (
        "ledger.rs",
        "provider.free = provider.free.checked_sub(terms.collateral).ok_or(short)?;",
        "let _ = short;",
        "collateral is put aside",
    ),
    (
        "ledger.rs",
        "        if deal.status != Status::Open {\n            return Err(Refused::Closing);\n        }\n        if !deal.signers",
        "        if !deal.signers",
        "a closing deal is not topped up",
    ),
    (
        "ledger.rs",
        "        if deal.status != Status::Open {\n            return Err(Refused::Closing);\n        }\n        if let Some(head)",
        "        if let Some(head)",
        "a deal is closed once",
    ),
    (
        "ledger.rs",
        "        if !deal.signers.contains(&signed.signer()) {\n            return Err(Refused::HeadSigner);\n        }",
        "",
        "heads are signed for the client",
    ),
    (
        "ledger.rs",
        "        if !deal.signers.contains(&signed.signer()) {\n            return Err(Refused::VoucherSigner);\n        }",
        "",
        "vouchers are signed for the client",
    ),
    ("ledger.rs", "head.check_supersedes(id, deal.head.as_ref())?;", "", "the newest head counts"),
    (
        "ledger.rs",
        ".filter(|through| *through >= self.context.period)",
        ".filter(|_| false)",
        "a period is paid for when it is over",
    ),
    (
        "ledger.rs",
        "let amount = promised.min(deal.escrow);",
        "let amount = promised;",
        "no more is paid than is in escrow",
    ),
    (
        "ledger.rs",
        "let promised = voucher.total.saturating_sub(deal.paid);",
        "let promised = voucher.total;",
        "a voucher's value is paid once",
    ),
    (
        "ledger.rs",
        "let fee = paid.share(self.context.genesis.fee_bps).saturating_sub(deal.fee);",
        "let fee = amount.share(self.context.genesis.fee_bps);",
        "fees are of the sum",
    ),
    ("ledger.rs", "let net = amount.saturating_sub(fee);", "let net = amount;", "money is conserved"),
    ("deal.rs", "ticks >= since_tick + CLOSING_PERIODS", "true", "closing takes its time"),
    ("deal.rs", "&& now_s >= self.terms.expires_s", "", "a deal is not opened again under its old vouchers"),
    ("ledger.rs", "if is_client || is_provider {", "if true {", "strangers have no say"),
    (
        "ledger.rs",
        "Some(known) if known.serial >= serial => return Err(Refused::OldGrant),",
        "",
        "the newest grant holds",
    ),
    (
        "ledger.rs",
        "Some(known) if known.account != account => return Err(Refused::OtherAccount),",
        "",
        "a node has one account",
    ),
    ("ledger.rs", "if known.is_none() && signer != node {", "if false {", "a node registers itself"),
    (
        "ledger.rs",
        "totals.issued = totals.issued.checked_add(amount).ok_or(Refused::Supply)?;",
        "",
        "what is issued is counted",
    ),
    (
        "ledger.rs",
        "        totals.ticks += 1;",
        "        totals.ticks = context.period;",
        "windows count living periods",
    ),
    ("head.rs", "if seq == newest && self.hash != known.hash {", "if false {", "forked heads are named"),
    ("head.rs", "if seq <= newest {", "if seq < newest {", "a head is anchored once"),
    (
        "head.rs",
        "Ok(node.verify(&countersigned(network, &self.head), &self.countersignature)?)",
        "{ let _ = node; Ok(()) }",
        "heads are countersigned",
    ),
    ("head.rs", "self.until - self.from <= HEAD_PERIODS_MAX", "true", "heads end"),
    ("head.rs", "if self.head.from < known.head.from {", "if false {", "heads do not reach back"),
    ("voucher.rs", "if self.epoch != epoch {", "if false {", "vouchers have an epoch"),
    ("voucher.rs", "if self.total <= total {", "if false {", "vouchers are cumulative"),
    ("voucher.rs", "if self.paid_through < through ||", "if", "vouchers do not go back"),
    ("tab.rs", "if voucher.total < due {", "if false {", "a voucher pays for what it says it pays for"),
    (
        "tab.rs",
        "if voucher.read_bytes.saturating_add(READ_SLACK_BYTES) < self.read_bytes {",
        "if false {",
        "reading is paid for",
    ),
    (
        "tab.rs",
        "voucher.paid_through > known.through && self.forgiven_in < Some(now)",
        "voucher.paid_through > known.through",
        "a difference of reads is forgiven once a period",
    ),
    ("tab.rs", "if head.head.price != terms.price {", "if false {", "a deal has one price"),
    (
        "tab.rs",
        "if self.meter.period() != from || self.meter.rate() != rate {",
        "if false {",
        "a tab stands under its head",
    ),
    ("tab.rs", "if owed <= most => Ok(()),", "if owed <= most || true => Ok(()),", "a tab is plausible"),
    (
        "signed.rs",
        "hasher.update(&network.0).update(bytes);",
        "hasher.update(bytes);",
        "signatures name their ledger",
    ),
    (
        "signed.rs",
        "self.signer.verify(&digest(T::DOMAIN, network, &self.bytes), &self.signature)?;",
        "",
        "signatures are checked",
    ),
    (
        "meter.rs",
        "next.peak = next.peak.max(next.rate);",
        "next.peak = next.rate;",
        "a period costs its highest rate",
    ),
    (
        "deal.rs",
        "let in_grace = all < GRACE_PERIODS;",
        "let in_grace = all == 0;",
        "a grace of 7 periods is locked",
    ),
    ("deal.rs", "v1.expires_s <= now_s.saturating_add(TERMS_LIFE_MAX_S)", "true", "terms are short-lived"),
    (
        "state.rs",
        "hasher.update(key_hash).update(&to_bytes(entry));",
        "hasher.update(key_hash);",
        "the root covers entries",
    ),
    (
        "state.rs",
        "(!is_empty).then(|| hasher.finalize().into())",
        "Some(hasher.finalize().into())",
        "the root depends on the entries alone",
    ),
    (
        "block.rs",
        "if ledger.state.root() != state_root {",
        "if false {",
        "a snapshot has the root that was signed",
    ),
    ("block.rs", "if txs.is_empty() && !is_due {", "if false {", "refused transactions leave no trace"),
    ("block.rs", "if change.root() != state_root {", "if false {", "followers compare roots"),
    ("block.rs", "if signed.signer() != self.genesis.v1().market {", "if false {", "the market signs blocks"),
    ("block.rs", "|| time_s < self.tip.time_s {", "{", "time does not go back"),
    ("block.rs", "|| previous != self.tip.hash", "", "blocks are chained"),
];

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn tests_pass(workspace: &Path, target: &Path) -> anyhow::Result<bool> {
    let mut command = Command::new("cargo");
    command.args(["test", "--release", "--offline", "-q", "-p", "spare-market"]).current_dir(workspace);
    // Few transactions find a broken rule as well as many.
    command
        .env("CARGO_TARGET_DIR", target)
        .env("SPARE_RANDOM_TXS", "20000")
        .env("SPARE_HONEST_PERIODS", "5000")
        .env("RUST_BACKTRACE", "0");
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).status()?.success())
}

fn main() -> anyhow::Result<()> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let dir = tempfile::tempdir()?;
    let (workspace, target) = (dir.path().join("workspace"), dir.path().join("target"));
    for part in ["proofs", "market"] {
        copy(&root.join(part), &workspace.join(part))?;
    }
    let manifest = std::fs::read_to_string(root.join("Cargo.toml"))?;
    let members =
        manifest.lines().find(|line| line.starts_with("members")).context("the workspace has members")?;
    let manifest = manifest.replace(members, "members = [\"market\", \"proofs\"]");
    std::fs::write(workspace.join("Cargo.toml"), manifest)?;
    std::fs::copy(root.join("Cargo.lock"), workspace.join("Cargo.lock"))?;
    ensure!(tests_pass(&workspace, &target)?, "the tests fail without any mutant");
    let mut survivors = 0;
    for (file, rule, mutant, name) in MUTANTS {
        let path = workspace.join("market/src").join(file);
        let original = std::fs::read_to_string(&path)?;
        ensure!(original.matches(rule).count() == 1, "the mutant of '{name}' fits {file} no longer");
        std::fs::write(&path, original.replace(rule, mutant))?;
        let survives = tests_pass(&workspace, &target)?;
        survivors += usize::from(survives);
        println!("{}  {name}", if survives { "SURVIVES" } else { "caught  " });
        std::fs::write(&path, original)?;
    }
    println!("{} mutants, {survivors} survive", MUTANTS.len());
    ensure!(survivors == 0, "some rules are not tested");
    Ok(())
}
