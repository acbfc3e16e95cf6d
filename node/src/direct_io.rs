//! Writing and reading files past the page cache.
//!
//! A provider writes each shard once and reads it seldom. Going through the page cache would copy every byte once more, and push out
//! what the machine's owner wants to keep there. With `O_DIRECT` (Linux, `open(2)`) the disk takes the bytes from this process and puts them
//! there; it wants memory, offsets and lengths in whole blocks. So bytes to write are gathered in an aligned buffer, and the last block is
//! padded and then cut off; and a read fetches the blocks that hold what is wanted. Where the file system cannot do it, the same calls go
//! through the cache.
//!
//! Buffers are used again: fresh memory has to be zeroed by the kernel, which costs about as much as hashing it.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Alignment that every common disk and file system accepts.
const BLOCK_BYTES: usize = 4096;
/// How much is gathered before it is written, or read at once.
pub const BUFFER_BYTES: usize = 512 * 1024;
/// Most buffers kept for use again.
const SPARE_BUFFERS_MAX: usize = 8;

/// Memory whose useful part begins at a multiple of [`BLOCK_BYTES`].
struct Buffer {
    memory: Vec<u8>,
    start: usize,
}

impl Buffer {
    fn new() -> Self {
        let memory = vec![0; BUFFER_BYTES + BLOCK_BYTES];
        let start = memory.as_ptr().align_offset(BLOCK_BYTES);
        Self { memory, start }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + BUFFER_BYTES]
    }
}

/// Buffers that are not in use.
#[derive(Default)]
pub struct BufferPool(Mutex<Vec<Buffer>>);

impl BufferPool {
    fn take(&self) -> Buffer {
        self.0.lock().expect("no holder panics").pop().unwrap_or_else(Buffer::new)
    }

    fn give(&self, buffer: Buffer) {
        let mut spare = self.0.lock().expect("no holder panics");
        if spare.len() < SPARE_BUFFERS_MAX {
            spare.push(buffer);
        }
    }
}

/// Bytes read from a file, in a buffer that is used again when they are dropped.
pub struct Filled {
    buffer: Option<Buffer>,
    range: Range<usize>,
    pool: Arc<BufferPool>,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        let buffer = self.buffer.as_ref().expect("there until dropped");
        &buffer.memory[buffer.start..][self.range.clone()]
    }
}

impl Drop for Filled {
    fn drop(&mut self) {
        self.buffer.take().into_iter().for_each(|buffer| self.pool.give(buffer));
    }
}

/// A file opened for reading.
pub struct DirectReader {
    file: File,
    pool: Arc<BufferPool>,
}

impl DirectReader {
    /// Opens the file.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn open(path: &Path, pool: &Arc<BufferPool>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true);
        let file = match options.clone().custom_flags(direct_flag()).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => options.open(path)?,
            other => other?,
        };
        Ok(Self { file, pool: pool.clone() })
    }

    /// Reads `len` bytes from `offset`, together with what shares their blocks at most [`BUFFER_BYTES`].
    ///
    /// # Errors
    /// When the disk fails, or the file ends before.
    pub fn read(&self, offset: u64, len: usize) -> io::Result<Filled> {
        let skip = (offset % BLOCK_BYTES as u64) as usize;
        let mut filled =
            Filled { buffer: Some(self.pool.take()), range: skip..skip + len, pool: self.pool.clone() };
        let buffer = filled.buffer.as_mut().expect("there until dropped").bytes();
        let blocks = &mut buffer[..(skip + len).next_multiple_of(BLOCK_BYTES)];
        let mut have = 0;
        while have < skip + len {
            // Only at the end of the file may this be less than whole blocks, and then nothing is left to read.
            let read = self.file.read_at(&mut blocks[have..], offset - skip as u64 + have as u64)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            have += read;
        }
        Ok(filled)
    }
}

fn direct_flag() -> i32 {
    rustix::fs::OFlags::DIRECT.bits().cast_signed()
}

/// A new file that is written from its start to its end, once.
pub struct DirectWriter {
    file: File,
    /// There until the writer is dropped.
    buffer: Option<Buffer>,
    pool: Arc<BufferPool>,
    filled: usize,
    len: u64,
}

impl Drop for DirectWriter {
    fn drop(&mut self) {
        self.buffer.take().into_iter().for_each(|buffer| self.pool.give(buffer));
    }
}

impl DirectWriter {
    /// Makes the file, which must not exist.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn create_new(path: &Path, pool: &Arc<BufferPool>) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).create_new(true);
        let file = match options.clone().custom_flags(direct_flag()).open(path) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                // The attempt may have left an empty file behind.
                let _ = std::fs::remove_file(path);
                options.open(path)?
            }
            other => other?,
        };
        Ok(Self { file, buffer: Some(pool.take()), pool: pool.clone(), filled: 0, len: 0 })
    }

    fn buffer(&mut self) -> &mut [u8] {
        self.buffer.as_mut().expect("there until dropped").bytes()
    }

    /// Writes what was gathered, padded to whole blocks.
    fn flush_blocks(&mut self) -> io::Result<()> {
        let padded = self.filled.next_multiple_of(BLOCK_BYTES);
        let buffer = self.buffer.as_mut().expect("there until dropped").bytes();
        buffer[self.filled..padded].fill(0);
        self.file.write_all(&buffer[..padded])?;
        self.filled = 0;
        Ok(())
    }

    /// Where the file's next bytes go, for callers that can put them there themselves; never empty.
    pub fn space(&mut self) -> &mut [u8] {
        let filled = self.filled;
        &mut self.buffer()[filled..]
    }

    /// Takes the first `len` bytes of [`Self::space`].
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn advance(&mut self, len: usize) -> io::Result<()> {
        self.len += len as u64;
        self.filled += len;
        if self.filled == BUFFER_BYTES { self.flush_blocks() } else { Ok(()) }
    }

    /// Takes the file's next bytes.
    ///
    /// # Errors
    /// When the disk fails or is full.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let space = self.space();
            let take = bytes.len().min(space.len());
            space[..take].copy_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            self.advance(take)?;
        }
        Ok(())
    }

    /// Writes the rest, cuts the padding off and makes the file durable.
    ///
    /// # Errors
    /// When the disk fails or is full; the file is then not to be trusted.
    pub fn finish(&mut self) -> io::Result<&File> {
        if self.filled > 0 {
            self.flush_blocks()?;
        }
        self.file.set_len(self.len)?;
        self.file.sync_all()?;
        Ok(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_any_length_are_written_as_given() {
        let dir = tempfile::tempdir().unwrap();
        let pool = Arc::default();
        for len in [0, 1, 4095, 4096, 4097, BUFFER_BYTES, BUFFER_BYTES + 1, 3 * BUFFER_BYTES + 12_345] {
            let content: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
            for piece in [1000, 65_536, len.max(1)] {
                let path = dir.path().join(format!("{len}-{piece}"));
                let mut writer = DirectWriter::create_new(&path, &pool).unwrap();
                content.chunks(piece).for_each(|part| writer.write(part).unwrap());
                writer.finish().unwrap();
                assert!(std::fs::read(&path).unwrap() == content, "{len} bytes in pieces of {piece}");
            }
        }
        assert_eq!(pool.0.lock().unwrap().len(), 1, "the buffer was used again");
        let existing = DirectWriter::create_new(&dir.path().join("0-1"), &pool);
        assert!(existing.is_err(), "an existing file is left alone");
    }
}
