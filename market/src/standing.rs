//! A provider's standing with one client: what its failures lead to, and when.
//!
//! ```text
//! good audit                 -> nothing is held against it but strikes, which pass with time
//! a read or audit that fails -> contained: the same place is asked again, and the provider is told what will happen and when
//! still failing after STRIKE_SPACING_S -> a strike, and one more for each further such time
//! a strike for what is lost  -> the shard comes off the next head: it is not paid for any more, and what is left is
//! STRIKES_MAX strikes within STRIKE_LIFE_S -> it gets no new data
//! ```
//!
//! **Goals.** A fault that can be mended within hours, such as a restart, a line that is down or a disk that hangs, leaves no trace. Who refuses ordinary reads
//! fails like who fails audits: what was not answered is asked again as it was asked, whatever it was for. Nothing takes effect before the
//! provider was told.
//! **Non-goals.** Punishment: a strike affects nothing but where this client puts its data. Nobody learns of it but the two.

use serde::{Deserialize, Serialize};
use spare_proofs::tree::Root;

/// Time in seconds for which a failure has to last before it is a strike, and between two strikes.
pub const STRIKE_SPACING_S: u64 = 4 * 3600;
/// Time in seconds after which a strike is forgotten.
pub const STRIKE_LIFE_S: u64 = 30 * 24 * 3600;
/// Strikes with which a provider gets no new data.
pub const STRIKES_MAX: usize = 3;
/// Times that a failure has to be seen again before it is a strike.
pub const TRIES_MIN: u32 = 3;
/// Longest reason that is kept, in bytes.
const WHY_MAX_BYTES: usize = 256;

/// How a provider failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fault {
    /// It did not answer, or not in time.
    Silent,
    /// It refused without a reason that holds.
    Refused,
    /// It said that the shard is not there, or cannot be read.
    Lost,
    /// It sent other bytes than the shard's.
    WrongBytes,
    /// It signed another result of a job than comes out of it.
    WrongResult,
    /// It was paid for a job and did not bring it to an end, or did not hand over what came out.
    Abandoned,
}

impl Fault {
    /// For people, after "it".
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Silent => "did not answer in time",
            Self::Refused => "refused to read",
            Self::Lost => "says that the data is not there, or cannot be read",
            Self::WrongBytes => "sent other bytes than it was given",
            Self::WrongResult => "signed a wrong result of a job",
            Self::Abandoned => "left a job unfinished that it was paid for",
        }
    }
}

/// What was asked for, so that it can be asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The shard.
    pub root: Root,
    /// Its length.
    pub shard_bytes: u64,
    /// First byte.
    pub start: u64,
    /// One past the last.
    pub end: u64,
}

/// A failure that is being asked about again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contained {
    /// What was asked for.
    pub place: Place,
    /// How it failed last.
    pub fault: Fault,
    /// Why, in words.
    pub why: String,
    /// Unix time in seconds of the first time.
    pub since_s: u64,
    /// Times that it failed.
    pub tries: u32,
    /// Whether the provider was told.
    pub is_told: bool,
}

/// A failure that lasted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// Unix time in seconds.
    pub at_s: u64,
    /// How it failed.
    pub fault: Fault,
    /// Why, in words.
    pub why: String,
    /// What was asked for.
    pub place: Place,
}

/// A provider's standing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    strikes: Vec<Strike>,
    contained: Option<Contained>,
}

impl Standing {
    /// What is being asked about again.
    pub fn contained(&self) -> Option<&Contained> {
        self.contained.as_ref()
    }

    /// The strikes that count at unix time `now_s`.
    pub fn strikes(&self, now_s: u64) -> impl Iterator<Item = &Strike> {
        self.strikes.iter().filter(move |strike| now_s < strike.at_s.saturating_add(STRIKE_LIFE_S))
    }

    /// Whether it gets no new data at unix time `now_s`.
    pub fn is_out(&self, now_s: u64) -> bool {
        self.strikes(now_s).count() >= STRIKES_MAX
    }

    /// Its record for placement in percent: halves with each strike, and while something is contained.
    pub fn record_percent(&self, now_s: u64) -> u8 {
        let halvings = self.strikes(now_s).count() + usize::from(self.contained.is_some());
        if self.is_out(now_s) { 0 } else { 100 >> halvings }
    }

    /// What was asked for was answered. Ends containment if it was what is contained.
    pub fn answered(&mut self, place: &Place) {
        self.contained = self.contained.take().filter(|contained| contained.place != *place);
    }

    /// A read or an audit failed at unix time `now_s`. Strikes are `spacing_s` seconds apart. Returns whether this was a strike.
    pub fn failed(&mut self, now_s: u64, place: Place, fault: Fault, why: &str, spacing_s: u64) -> bool {
        let why = why[..why.floor_char_boundary(WHY_MAX_BYTES)].to_owned();
        let Some(contained) = &mut self.contained else {
            self.contained = Some(Contained { place, fault, why, since_s: now_s, tries: 1, is_told: false });
            return false;
        };
        // What else fails meanwhile adds nothing: one thing is asked about at a time.
        if contained.place != place {
            return false;
        }
        (contained.fault, contained.why, contained.tries) = (fault, why, contained.tries.saturating_add(1));
        // A provider that cannot be told since it does not answer at all was told by that.
        let may_strike = contained.is_told || fault == Fault::Silent;
        let is_strike = may_strike && contained.tries > TRIES_MIN && now_s >= self.strikes_at_s(spacing_s);
        if is_strike {
            let Some(Contained { fault, why, .. }) = self.contained.clone() else { return false };
            self.strikes.retain(|strike| now_s < strike.at_s.saturating_add(STRIKE_LIFE_S));
            self.strikes.push(Strike { at_s: now_s, fault, why, place });
            self.strikes.drain(..self.strikes.len().saturating_sub(2 * STRIKES_MAX));
        }
        is_strike
    }

    /// The provider signed a wrong result of the work named `root`, which was run again. No line and no disk brings that about, so it is out at once.
    pub fn was_wrong(&mut self, now_s: u64, root: Root, why: &str) {
        self.strike(now_s, root, Fault::WrongResult, why, STRIKES_MAX);
    }

    /// The provider was paid for the work named `root` and left it unfinished: a strike.
    pub fn abandoned(&mut self, now_s: u64, root: Root, why: &str) {
        self.strike(now_s, root, Fault::Abandoned, why, 1);
    }

    fn strike(&mut self, now_s: u64, root: Root, fault: Fault, why: &str, times: usize) {
        let why = why[..why.floor_char_boundary(WHY_MAX_BYTES)].to_owned();
        let place = Place { root, shard_bytes: 0, start: 0, end: 0 };
        let strike = Strike { at_s: now_s, fault, why, place };
        self.strikes.retain(|strike| now_s < strike.at_s.saturating_add(STRIKE_LIFE_S));
        self.strikes.extend(std::iter::repeat_n(strike, times));
        self.strikes.drain(..self.strikes.len().saturating_sub(2 * STRIKES_MAX));
    }

    /// The unix time in seconds from which on a failure that goes on is a strike.
    pub fn strikes_at_s(&self, spacing_s: u64) -> u64 {
        let after_first = self.contained.as_ref().map_or(u64::MAX, |c| c.since_s.saturating_add(spacing_s));
        let after_last = self.strikes.last().map_or(0, |strike| strike.at_s.saturating_add(spacing_s));
        after_first.max(after_last)
    }

    /// The shard that is contained, once a strike showed that it is lost: nobody gains by asking for it again.
    pub fn lost(&self) -> Option<Root> {
        let contained = self.contained.as_ref()?;
        let is_struck =
            |strike: &&Strike| strike.place == contained.place && strike.at_s >= contained.since_s;
        let is_lost = |strike: &&Strike| matches!(strike.fault, Fault::Lost | Fault::WrongBytes);
        self.strikes.last().filter(is_struck).filter(is_lost).map(|strike| strike.place.root)
    }

    /// The provider was told what is contained, and what will follow.
    pub fn told(&mut self) {
        if let Some(contained) = &mut self.contained {
            contained.is_told = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_S: u64 = 3600;

    fn place(tag: u8) -> Place {
        Place { root: Root::from_bytes([tag; 32]), shard_bytes: 10, start: 0, end: 10 }
    }

    #[test]
    fn a_failure_that_is_mended_leaves_no_trace() {
        let mut standing = Standing::default();
        for minute in 0..200 {
            assert!(!standing.failed(minute * 60, place(1), Fault::Silent, "dial", STRIKE_SPACING_S));
        }
        assert_eq!(standing.record_percent(200 * 60), 50, "while it lasts");
        standing.answered(&place(2));
        assert!(standing.contained().is_some(), "another answer does not end it");
        standing.answered(&place(1));
        assert_eq!(standing, Standing::default());
    }

    #[test]
    fn one_that_lasts_strikes_again_and_again_and_passes() {
        let mut standing = Standing::default();
        let mut fail = |hour: u64, place: Place, fault| {
            standing.failed(hour * HOUR_S, place, fault, "why", STRIKE_SPACING_S)
        };
        let silent: Vec<u64> = (0..14).filter(|hour| fail(*hour, place(1), Fault::Silent)).collect();
        assert_eq!(silent, [4, 8, 12]);
        assert!(!fail(30, place(2), Fault::Silent), "one thing at a time");
        assert!(standing.is_out(12 * HOUR_S) && standing.record_percent(12 * HOUR_S) == 0);
        let later = 4 * HOUR_S + STRIKE_LIFE_S;
        assert!(!standing.is_out(later), "the first is forgotten");
        standing.answered(&place(1));
        assert_eq!(standing.record_percent(later), 25);
    }

    #[test]
    fn nothing_takes_effect_before_the_provider_was_told() {
        let mut standing = Standing::default();
        for hour in 0..50 {
            assert!(!standing.failed(hour * HOUR_S, place(1), Fault::Lost, "gone", STRIKE_SPACING_S));
        }
        assert_eq!(standing.lost(), None);
        standing.told();
        assert!(standing.failed(50 * HOUR_S, place(1), Fault::Lost, "gone", STRIKE_SPACING_S));
        assert_eq!(standing.lost(), Some(place(1).root));
        assert!(!standing.failed(53 * HOUR_S, place(1), Fault::Lost, "gone", STRIKE_SPACING_S));
        // Few tries are not enough, however long it takes.
        let mut standing = Standing::default();
        standing.failed(0, place(1), Fault::Silent, "", STRIKE_SPACING_S);
        assert!(!standing.failed(99 * HOUR_S, place(1), Fault::Silent, "", STRIKE_SPACING_S));
    }
}
