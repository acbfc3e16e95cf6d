//! Random bytes: BLAKE3's extended output over a seed.
//!
//! The seed is the task's, so that anyone who runs it again draws the same, or the machine's, if the task asks
//! for that.

use crate::task::{Determinism, Task};

/// A stream of random bytes.
pub(crate) struct Random(blake3::OutputReader);

impl Random {
    /// The stream of a task.
    pub(crate) fn new(task: &Task) -> Self {
        let seed = match task.determinism {
            Determinism::Deterministic => task.seed,
            Determinism::Free => entropy(),
        };
        let mut hasher = blake3::Hasher::new_derive_key("spare 2026 sandbox random v1");
        hasher.update(&seed);
        Self(hasher.finalize_xof())
    }

    /// The next bytes.
    pub(crate) fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    /// The next eight bytes.
    pub(crate) fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }
}

/// 32 bytes of the machine's.
fn entropy() -> [u8; 32] {
    let mut seed = [0; 32];
    let drawn = rustix::rand::getrandom(&mut seed, rustix::rand::GetRandomFlags::empty());
    assert_eq!(
        drawn,
        Ok(seed.len()),
        "Linux gives up to 256 bytes at once, and has entropy since long before this runs"
    );
    seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_does_not_depend_on_how_it_is_drawn() {
        let stream = || Random(blake3::Hasher::new().finalize_xof());
        let (mut at_once, mut in_pieces) = ([0; 100], [0; 100]);
        stream().fill(&mut at_once);
        let mut random = stream();
        in_pieces.chunks_mut(7).for_each(|piece| random.fill(piece));
        assert_eq!(at_once, in_pieces);
    }

    #[test]
    fn entropy_differs() {
        assert_ne!(entropy(), entropy());
    }
}
