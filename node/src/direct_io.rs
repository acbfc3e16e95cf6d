//! Writing a file past the page cache.
//!
//! A provider writes each shard once and reads it seldom. Going through the page cache would copy every byte once more, and push out
//! what the machine's owner wants to keep there. With `O_DIRECT` (Linux, `open(2)`) the disk takes the bytes from this process; it wants
//! memory, offsets and lengths in whole blocks, so bytes are gathered in an aligned buffer, and the last block is padded and
//! then cut off. Where the file system cannot do it, the same writes go through the cache.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Alignment that every common disk and file system accepts.
const BLOCK_BYTES: usize = 4096;
/// How much is gathered before it is written.
const BUFFER_MAX_BYTES: usize = 512 * 1024;

/// A new file that is written from its start to its end, once.
pub struct DirectWriter {
    file: File,
    buffer: Vec<u8>,
    /// Where the aligned part of the buffer begins.
    start: usize,
    filled: usize,
    capacity: usize,
    len: u64,
}

impl DirectWriter {
    /// Makes the file, which must not exist. `expected_bytes` sizes the buffer.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create_new(path: &Path, expected_bytes: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = match options.clone().custom_flags(direct).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // The attempt may have left an empty file behind.
                let _ = std::fs::remove_file(path);
                options.open(path)?
            }
            other => other?,
        };
        let capacity = usize::try_from(expected_bytes).map_or(BUFFER_MAX_BYTES, |n| n.min(BUFFER_MAX_BYTES));
        let capacity = capacity.next_multiple_of(BLOCK_BYTES).max(BLOCK_BYTES);
        let buffer = vec![0; capacity + BLOCK_BYTES];
        let start = buffer.as_ptr().align_offset(BLOCK_BYTES);
        Ok(Self { file, buffer, start, filled: 0, capacity, len: 0 })
    }

    /// Writes what was gathered, padded to whole blocks.
    fn flush_blocks(&mut self) -> io::Result<()> {
        let padded = self.filled.next_multiple_of(BLOCK_BYTES);
        self.buffer[self.start + self.filled..self.start + padded].fill(0);
        self.file.write_all(&self.buffer[self.start..self.start + padded])?;
        self.filled = 0;
        Ok(())
    }

    /// Takes the file's next bytes.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.len += bytes.len() as u64;
        while !bytes.is_empty() {
            let take = bytes.len().min(self.capacity - self.filled);
            let at = self.start + self.filled;
            self.buffer[at..at + take].copy_from_slice(&bytes[..take]);
            self.filled += take;
            bytes = &bytes[take..];
            if self.filled == self.capacity {
                self.flush_blocks()?;
            }
        }
        Ok(())
    }

    /// Writes the rest, cuts the padding off and makes the file durable.
    ///
    /// # Errors
    /// When the disk fails or is full; the file is then not to be trusted.
    pub fn finish(mut self) -> io::Result<File> {
        if self.filled > 0 {
            self.flush_blocks()?;
        }
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        Ok(self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_written_as_given() {
        let dir = tempfile::tempdir().unwrap();
        for len in
            [0, 1, 4095, 4096, 4097, BUFFER_MAX_BYTES, BUFFER_MAX_BYTES + 1, 3 * BUFFER_MAX_BYTES + 12_345]
        {
            let content: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
            for piece in [1000, 65_536, len.max(1)] {
                let path = dir.path().join(format!("{len}-{piece}"));
                // A wrong expectation costs speed, nothing else.
                let mut writer = DirectWriter::create_new(&path, piece as u64).unwrap();
                content.chunks(piece).for_each(|part| writer.write(part).unwrap());
                writer.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == content, "{len} bytes in pieces of {piece}");
            }
        }
        assert!(
            DirectWriter::create_new(&dir.path().join("0-1"), 1).is_err(),
            "an existing file is left alone"
        );
    }
}
