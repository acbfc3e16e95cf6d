//! The guest's memory, with every access checked.

use super::errno::Errno;
use crate::limits;

/// The guest's memory.
pub(crate) struct Memory<'a>(pub(crate) &'a mut [u8]);

/// A range that a guest named by an I/O vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) at: u32,
    pub(crate) length: u32,
}

impl Memory<'_> {
    /// `length` bytes at `at`.
    pub(crate) fn bytes(&self, at: u32, length: u32) -> Result<&[u8], Errno> {
        self.0.get(range(at, length)).ok_or(Errno::FAULT)
    }

    /// `length` bytes at `at`, to be written.
    pub(crate) fn bytes_mut(&mut self, at: u32, length: u32) -> Result<&mut [u8], Errno> {
        self.0.get_mut(range(at, length)).ok_or(Errno::FAULT)
    }

    /// Writes bytes.
    pub(crate) fn write(&mut self, at: u32, bytes: &[u8]) -> Result<(), Errno> {
        let length = u32::try_from(bytes.len()).map_err(|_| Errno::FAULT)?;
        self.bytes_mut(at, length)?.copy_from_slice(bytes);
        Ok(())
    }

    /// Writes a number of 32 bits.
    pub(crate) fn write_u32(&mut self, at: u32, value: u32) -> Result<(), Errno> {
        self.write(at, &value.to_le_bytes())
    }

    /// Writes a number of 64 bits.
    pub(crate) fn write_u64(&mut self, at: u32, value: u64) -> Result<(), Errno> {
        self.write(at, &value.to_le_bytes())
    }

    /// A path. It is copied, since what is done with it may write to the memory that it is in.
    pub(crate) fn path(&self, at: u32, length: u32) -> Result<String, Errno> {
        if length as usize > limits::PATH_BYTES {
            return Err(Errno::NAMETOOLONG);
        }
        let text = std::str::from_utf8(self.bytes(at, length)?).map_err(|_| Errno::ILSEQ)?;
        Ok(text.into())
    }

    /// The I/O vector `index` of those at `at`.
    pub(crate) fn span(&self, at: u32, index: u32) -> Result<Span, Errno> {
        let at = index.checked_mul(8).and_then(|offset| at.checked_add(offset)).ok_or(Errno::FAULT)?;
        let bytes = self.bytes(at, 8)?;
        Ok(Span { at: u32_at(bytes, 0), length: u32_at(bytes, 4) })
    }
}

fn range(at: u32, length: u32) -> std::ops::Range<usize> {
    let at = at as usize;
    at..at + length as usize
}

/// A number of 32 bits in `bytes`, which has it.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A number of 64 bits in `bytes`, which has it.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_range_reaches_beyond_memory() {
        let mut bytes = [0; 16];
        let mut memory = Memory(&mut bytes);
        assert_eq!(memory.bytes(16, 0), Ok(&[][..]));
        for (at, length) in [(17, 0), (16, 1), (u32::MAX, u32::MAX), (0, 17)] {
            assert_eq!(memory.bytes(at, length), Err(Errno::FAULT), "{at} {length}");
        }
        assert_eq!(memory.write_u64(9, 1), Err(Errno::FAULT));
        assert_eq!(memory.span(u32::MAX, 1), Err(Errno::FAULT));
        assert_eq!(memory.span(0, u32::MAX), Err(Errno::FAULT));
        assert_eq!(memory.path(0, u32::MAX), Err(Errno::NAMETOOLONG));
    }
}
