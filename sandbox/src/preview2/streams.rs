//! Streams, and waiting for them. All are always ready, so what blocks and what does not are the same.

use wasmtime::component::Resource;

use super::bindings::wasi::io::{error, poll, streams};
use super::handles::{InputStream, IoError, OutputStream, Pollable, StreamFailure};
use crate::guest::Guest;
use crate::{limits, price};

type StreamResult<T> = Result<T, StreamFailure>;

impl error::Host for Guest {}

impl error::HostError for Guest {
    fn to_debug_string(&mut self, error: Resource<IoError>) -> wasmtime::Result<String> {
        self.fuel.pay(price::CALL)?;
        Ok(self.handles.get(&error)?.0.to_string())
    }

    fn drop(&mut self, error: Resource<IoError>) -> wasmtime::Result<()> {
        self.handles.delete(error)?;
        Ok(())
    }
}

impl poll::Host for Guest {
    fn poll(&mut self, pollables: Vec<Resource<Pollable>>) -> wasmtime::Result<Vec<u32>> {
        self.fuel.pay(price::CALL)?;
        self.fuel.pay(price::ITEM * pollables.len() as u64)?;
        let times = pollables
            .iter()
            .map(|pollable| self.time_of(pollable))
            .collect::<wasmtime::Result<Vec<u64>>>()?;
        let Some(&first) = times.iter().min() else { wasmtime::bail!("it waited for nothing, for ever") };
        self.sleep_until(first)?;
        let now_ns = self.elapsed_ns();
        Ok((0..).zip(times).filter(|(_, ns)| *ns <= now_ns).map(|(index, _)| index).collect())
    }
}

impl poll::HostPollable for Guest {
    fn ready(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<bool> {
        self.fuel.pay(price::CALL)?;
        Ok(self.time_of(&pollable)? <= self.elapsed_ns())
    }

    fn block(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<()> {
        self.fuel.pay(price::CALL)?;
        let ns = self.time_of(&pollable)?;
        Ok(self.sleep_until(ns)?)
    }

    fn drop(&mut self, pollable: Resource<Pollable>) -> wasmtime::Result<()> {
        self.handles.delete(pollable)?;
        Ok(())
    }
}

impl Guest {
    /// When it is ready, in nanoseconds after the start.
    fn time_of(&self, pollable: &Resource<Pollable>) -> wasmtime::Result<u64> {
        Ok(match self.handles.get(pollable)? {
            Pollable::Now => 0,
            Pollable::At(ns) => *ns,
        })
    }

    fn pollable(&mut self) -> wasmtime::Result<Resource<Pollable>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        Ok(self.handles.push(Pollable::Now)?)
    }

    /// Bytes that a stream can give now.
    fn next_bytes(&self, stream: InputStream) -> StreamResult<&[u8]> {
        Ok(match stream {
            InputStream::Stdin => self.stdin_left(),
            InputStream::File { inode, position } => self.files.read(inode, position)?,
        })
    }

    /// Moves a stream on by so many bytes, which it has.
    fn advance(&mut self, stream: &Resource<InputStream>, bytes: u64) -> wasmtime::Result<()> {
        match self.handles.get_mut(stream)? {
            InputStream::Stdin => self.advance_stdin(bytes as usize),
            InputStream::File { position, .. } => *position += bytes,
        }
        Ok(())
    }

    /// Reads up to `len` bytes. At the end, a stream is closed.
    fn take_bytes(&mut self, stream: &Resource<InputStream>, len: u64) -> StreamResult<Vec<u8>> {
        let length = self.available(stream, len)?;
        self.fuel.pay(price::copied(length))?;
        let bytes = self.next_bytes(*self.handles.get(stream)?)?[..length as usize].to_vec();
        self.advance(stream, length)?;
        Ok(bytes)
    }

    /// How many of `len` bytes a stream gives at once.
    fn available(&self, stream: &Resource<InputStream>, len: u64) -> StreamResult<u64> {
        let left = self.next_bytes(*self.handles.get(stream)?)?.len() as u64;
        if left == 0 && len > 0 {
            Err(StreamFailure::Closed)
        } else {
            Ok(left.min(len).min(limits::STREAM_BYTES))
        }
    }

    /// Writes all of `bytes`, or nothing.
    fn put_bytes(&mut self, stream: &Resource<OutputStream>, bytes: &[u8]) -> StreamResult<()> {
        let target = *self.handles.get(stream)?;
        match target {
            OutputStream::Print(to) => self.print(to, bytes)?,
            OutputStream::File { inode, position } => self.write_file(inode, position, bytes)??,
            OutputStream::Append { inode } => {
                let end = self.files.stat(inode).bytes;
                self.write_file(inode, end, bytes)??;
            }
        }
        if let OutputStream::File { position, .. } = self.handles.get_mut(stream)? {
            *position += bytes.len() as u64;
        }
        Ok(())
    }
}

impl streams::Host for Guest {
    fn convert_stream_error(&mut self, failure: StreamFailure) -> wasmtime::Result<streams::StreamError> {
        match failure {
            StreamFailure::Closed => Ok(streams::StreamError::Closed),
            StreamFailure::File(error) => {
                let error = self.handles.push(IoError(error))?;
                Ok(streams::StreamError::LastOperationFailed(error))
            }
            StreamFailure::Trap(error) => Err(error),
        }
    }
}

impl streams::HostInputStream for Guest {
    fn read(&mut self, stream: Resource<InputStream>, len: u64) -> StreamResult<Vec<u8>> {
        self.fuel.pay(price::CALL)?;
        self.take_bytes(&stream, len)
    }

    fn blocking_read(&mut self, stream: Resource<InputStream>, len: u64) -> StreamResult<Vec<u8>> {
        self.read(stream, len)
    }

    fn skip(&mut self, stream: Resource<InputStream>, len: u64) -> StreamResult<u64> {
        self.fuel.pay(price::CALL)?;
        let length = self.available(&stream, len)?;
        self.advance(&stream, length)?;
        Ok(length)
    }

    fn blocking_skip(&mut self, stream: Resource<InputStream>, len: u64) -> StreamResult<u64> {
        self.skip(stream, len)
    }

    fn subscribe(&mut self, _: Resource<InputStream>) -> wasmtime::Result<Resource<Pollable>> {
        self.pollable()
    }

    fn drop(&mut self, stream: Resource<InputStream>) -> wasmtime::Result<()> {
        if let InputStream::File { inode, .. } = self.handles.delete(stream)? {
            self.files.release(inode);
        }
        Ok(())
    }
}

impl streams::HostOutputStream for Guest {
    fn check_write(&mut self, _: Resource<OutputStream>) -> StreamResult<u64> {
        self.fuel.pay(price::CALL)?;
        Ok(limits::STREAM_BYTES)
    }

    fn write(&mut self, stream: Resource<OutputStream>, contents: Vec<u8>) -> StreamResult<()> {
        self.fuel.pay(price::CALL)?;
        self.put_bytes(&stream, &contents)
    }

    fn blocking_write_and_flush(
        &mut self,
        stream: Resource<OutputStream>,
        contents: Vec<u8>,
    ) -> StreamResult<()> {
        self.write(stream, contents)
    }

    fn flush(&mut self, _: Resource<OutputStream>) -> StreamResult<()> {
        Ok(self.fuel.pay(price::CALL)?)
    }

    fn blocking_flush(&mut self, stream: Resource<OutputStream>) -> StreamResult<()> {
        self.flush(stream)
    }

    fn subscribe(&mut self, _: Resource<OutputStream>) -> wasmtime::Result<Resource<Pollable>> {
        self.pollable()
    }

    fn write_zeroes(&mut self, stream: Resource<OutputStream>, len: u64) -> StreamResult<()> {
        self.fuel.pay(price::CALL)?;
        if len > limits::STREAM_BYTES {
            return Err(wasmtime::format_err!(
                "it wrote {len} zeros at once, and may write {}",
                limits::STREAM_BYTES
            )
            .into());
        }
        self.fuel.pay(price::copied(len))?;
        self.put_bytes(&stream, &vec![0; len as usize])
    }

    fn blocking_write_zeroes_and_flush(
        &mut self,
        stream: Resource<OutputStream>,
        len: u64,
    ) -> StreamResult<()> {
        self.write_zeroes(stream, len)
    }

    /// What was read is lost if it cannot be written, as the standard has it.
    fn splice(
        &mut self,
        stream: Resource<OutputStream>,
        src: Resource<InputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        self.fuel.pay(price::CALL)?;
        let bytes = self.take_bytes(&src, len)?;
        self.put_bytes(&stream, &bytes)?;
        Ok(bytes.len() as u64)
    }

    fn blocking_splice(
        &mut self,
        stream: Resource<OutputStream>,
        src: Resource<InputStream>,
        len: u64,
    ) -> StreamResult<u64> {
        self.splice(stream, src, len)
    }

    fn drop(&mut self, stream: Resource<OutputStream>) -> wasmtime::Result<()> {
        match self.handles.delete(stream)? {
            OutputStream::Print(_) => {}
            OutputStream::File { inode, .. } | OutputStream::Append { inode } => self.files.release(inode),
        }
        Ok(())
    }
}
