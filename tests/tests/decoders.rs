//! Every decoder of outside bytes, on garbage and on mutated good encodings: no panic, and nothing but canonical bytes decodes.
//!
//! `SPARE_FUZZ_SECONDS` sets how long each target is run, a third of a second without it, as the processor counts it. `SPARE_FUZZ_TARGETS` picks
//! targets by their names, with spaces between; all without it.

use proptest::prelude::*;
use proptest::sample::Index;
use spare_tests::fuzz::{TARGETS, run, seeds};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }

    #[test]
    fn mutated_encodings_are_survived(
        pick in any::<Index>(),
        cut in any::<Index>(),
        edits in proptest::collection::vec((any::<Index>(), any::<u8>()), 1..4),
        insert in proptest::option::of(any::<u8>()),
    ) {
        let mut bytes = pick.get(&seeds()).clone();
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        match insert {
            Some(value) => bytes.insert(cut.index(bytes.len() + 1), value),
            None => bytes.truncate(cut.index(bytes.len() + 1)),
        }
        for (_, target) in TARGETS {
            target(&bytes);
        }
    }
}

#[test]
fn every_target_is_run_for_a_while() {
    let seconds =
        std::env::var("SPARE_FUZZ_SECONDS").map_or(1.0 / 3.0, |n| n.parse().expect("a number of seconds"));
    let picked = std::env::var("SPARE_FUZZ_TARGETS").ok();
    let is_picked =
        |name: &str| picked.as_ref().is_none_or(|names| names.split_whitespace().any(|n| n == name));
    for target in TARGETS.iter().filter(|(name, _)| is_picked(name)) {
        let runs = run(target, std::time::Duration::from_secs_f64(seconds));
        println!("{}: {runs} runs, {:.0} a second", target.0, runs as f64 / seconds);
        assert!(runs > 0);
    }
}
