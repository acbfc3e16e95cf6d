//! Every decoder of outside bytes, on garbage and on mutated good encodings: no panic, and nothing but canonical bytes decodes.

use proptest::prelude::*;
use proptest::sample::Index;
use spare_tests::fuzz::{TARGETS, seeds};

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
