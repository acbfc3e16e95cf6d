//! Files and directories.

use wasmtime::component::Resource;

use super::bindings::wasi::filesystem::preopens;
use super::bindings::wasi::filesystem::types::{
    self, Advice, DescriptorFlags, DescriptorStat, DescriptorType, DirectoryEntry, ErrorCode,
    MetadataHashValue, NewTimestamp, OpenFlags, PathFlags,
};
use super::cli::{datetime, nanoseconds};
use super::handles::{Descriptor, Entries, Failure, InputStream, IoError, OutputStream};
use crate::files::change::NewTime;
use crate::files::{FileError, Inode, Opening, ROOT, Stat};
use crate::guest::Guest;
use crate::{limits, price};

type FileResult<T> = Result<T, Failure>;

impl Guest {
    /// The descriptor's node, after paying for the call.
    fn node(&mut self, descriptor: &Resource<Descriptor>) -> FileResult<Inode> {
        self.fuel.pay(price::CALL)?;
        Ok(self.handles.get(descriptor)?.inode)
    }

    /// The node of a descriptor that is open for `flags`.
    fn node_open_for(
        &mut self,
        descriptor: &Resource<Descriptor>,
        flags: DescriptorFlags,
    ) -> FileResult<Inode> {
        self.fuel.pay(price::CALL)?;
        let descriptor = self.handles.get(descriptor)?;
        if self.files.is_directory(descriptor.inode) {
            return Err(FileError::IsDirectory.into());
        }
        if !descriptor.flags.contains(flags) {
            return Err(FileError::BadDescriptor.into());
        }
        Ok(descriptor.inode)
    }

    /// The descriptor's node, from where `path` is followed, after paying for that.
    fn base(&mut self, descriptor: &Resource<Descriptor>, path: &str) -> FileResult<Inode> {
        let base = self.node(descriptor)?;
        self.pay_for_path(path)?;
        Ok(base)
    }

    fn lookup(&mut self, descriptor: &Resource<Descriptor>, path: &str) -> FileResult<Inode> {
        let base = self.base(descriptor, path)?;
        Ok(self.files.lookup(base, path)?)
    }

    /// Hands out a handle to something that holds `inode`. Which is released again if there are too many.
    fn push_held<T: Send + 'static>(&mut self, inode: Inode, handle: T) -> FileResult<Resource<T>> {
        self.handles.push(handle).map_err(|_| {
            self.files.release(inode);
            FileError::TooManyOpen.into()
        })
    }

    fn set_times_of(
        &mut self,
        inode: Inode,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FileResult<()> {
        let now_ns = self.unix_ns();
        let time = |time| match time {
            NewTimestamp::NoChange => NewTime::Same,
            NewTimestamp::Now => NewTime::At(now_ns),
            NewTimestamp::Timestamp(time) => NewTime::At(nanoseconds(time)),
        };
        Ok(self.files.set_times(inode, time(accessed), time(modified), now_ns)?)
    }
}

impl types::Host for Guest {
    fn convert_error_code(&mut self, failure: Failure) -> wasmtime::Result<ErrorCode> {
        match failure {
            Failure::File(error) => Ok(error.into()),
            Failure::Trap(error) => Err(error),
        }
    }

    fn filesystem_error_code(&mut self, error: Resource<IoError>) -> wasmtime::Result<Option<ErrorCode>> {
        self.fuel.pay(price::CALL)?;
        Ok(Some(self.handles.get(&error)?.0.into()))
    }
}

impl types::HostDescriptor for Guest {
    fn read_via_stream(
        &mut self,
        descriptor: Resource<Descriptor>,
        offset: u64,
    ) -> FileResult<Resource<InputStream>> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::READ)?;
        self.fuel.pay(price::CHANGE)?;
        self.files.hold(inode);
        self.push_held(inode, InputStream::File { inode, position: offset })
    }

    fn write_via_stream(
        &mut self,
        descriptor: Resource<Descriptor>,
        offset: u64,
    ) -> FileResult<Resource<OutputStream>> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::WRITE)?;
        self.fuel.pay(price::CHANGE)?;
        self.files.hold(inode);
        self.push_held(inode, OutputStream::File { inode, position: offset })
    }

    fn append_via_stream(&mut self, descriptor: Resource<Descriptor>) -> FileResult<Resource<OutputStream>> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::WRITE)?;
        self.fuel.pay(price::CHANGE)?;
        self.files.hold(inode);
        self.push_held(inode, OutputStream::Append { inode })
    }

    fn advise(
        &mut self,
        descriptor: Resource<Descriptor>,
        _offset: u64,
        _length: u64,
        _advice: Advice,
    ) -> FileResult<()> {
        self.node(&descriptor).map(drop)
    }

    fn sync_data(&mut self, descriptor: Resource<Descriptor>) -> FileResult<()> {
        self.node(&descriptor).map(drop)
    }

    fn get_flags(&mut self, descriptor: Resource<Descriptor>) -> FileResult<DescriptorFlags> {
        self.fuel.pay(price::CALL)?;
        Ok(self.handles.get(&descriptor)?.flags)
    }

    fn get_type(&mut self, descriptor: Resource<Descriptor>) -> FileResult<DescriptorType> {
        let inode = self.node(&descriptor)?;
        Ok(kind(self.files.stat(inode)))
    }

    fn set_size(&mut self, descriptor: Resource<Descriptor>, size: u64) -> FileResult<()> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::WRITE)?;
        Ok(self.set_file_size(inode, size)??)
    }

    fn set_times(
        &mut self,
        descriptor: Resource<Descriptor>,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FileResult<()> {
        let inode = self.node(&descriptor)?;
        self.set_times_of(inode, accessed, modified)
    }

    fn read(
        &mut self,
        descriptor: Resource<Descriptor>,
        length: u64,
        offset: u64,
    ) -> FileResult<(Vec<u8>, bool)> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::READ)?;
        let left = self.files.read(inode, offset)?;
        let read = (left.len() as u64).min(length).min(limits::STREAM_BYTES);
        self.fuel.pay(price::copied(read))?;
        Ok((left[..read as usize].to_vec(), read == left.len() as u64))
    }

    fn write(&mut self, descriptor: Resource<Descriptor>, buffer: Vec<u8>, offset: u64) -> FileResult<u64> {
        let inode = self.node_open_for(&descriptor, DescriptorFlags::WRITE)?;
        self.write_file(inode, offset, &buffer)??;
        Ok(buffer.len() as u64)
    }

    fn read_directory(&mut self, descriptor: Resource<Descriptor>) -> FileResult<Resource<Entries>> {
        let inode = self.node(&descriptor)?;
        self.fuel.pay(price::CHANGE + self.files.len(inode).saturating_mul(price::ENTRY))?;
        let listing = self.files.list(inode)?;
        Ok(self.handles.push(Entries { listing, next: 0 })?)
    }

    fn sync(&mut self, descriptor: Resource<Descriptor>) -> FileResult<()> {
        self.node(&descriptor).map(drop)
    }

    fn create_directory_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FileResult<()> {
        let base = self.base(&descriptor, &path)?;
        self.fuel.pay(price::CHANGE)?;
        let now_ns = self.unix_ns();
        Ok(self.files.create_directory(base, &path, now_ns)?)
    }

    fn stat(&mut self, descriptor: Resource<Descriptor>) -> FileResult<DescriptorStat> {
        let inode = self.node(&descriptor)?;
        Ok(stat(self.files.stat(inode)))
    }

    fn stat_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _: PathFlags,
        path: String,
    ) -> FileResult<DescriptorStat> {
        let inode = self.lookup(&descriptor, &path)?;
        Ok(stat(self.files.stat(inode)))
    }

    fn set_times_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _: PathFlags,
        path: String,
        accessed: NewTimestamp,
        modified: NewTimestamp,
    ) -> FileResult<()> {
        let inode = self.lookup(&descriptor, &path)?;
        self.set_times_of(inode, accessed, modified)
    }

    /// There are no hard links: a file has one name.
    fn link_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _: PathFlags,
        old_path: String,
        new_descriptor: Resource<Descriptor>,
        new_path: String,
    ) -> FileResult<()> {
        self.base(&descriptor, &old_path)?;
        self.base(&new_descriptor, &new_path)?;
        Err(FileError::Unsupported.into())
    }

    fn open_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _: PathFlags,
        path: String,
        open_flags: OpenFlags,
        flags: DescriptorFlags,
    ) -> FileResult<Resource<Descriptor>> {
        let base = self.base(&descriptor, &path)?;
        self.fuel.pay(price::CHANGE)?;
        let how = Opening {
            create: open_flags.contains(OpenFlags::CREATE),
            exclusive: open_flags.contains(OpenFlags::EXCLUSIVE),
            truncate: open_flags.contains(OpenFlags::TRUNCATE),
            must_be_directory: open_flags.contains(OpenFlags::DIRECTORY),
            write: flags.contains(DescriptorFlags::WRITE),
        };
        let now_ns = self.unix_ns();
        let inode = self.files.open(base, &path, how, now_ns)?;
        self.push_held(inode, Descriptor { inode, flags })
    }

    /// Nothing is a symbolic link.
    fn readlink_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FileResult<String> {
        self.lookup(&descriptor, &path)?;
        Err(FileError::Invalid.into())
    }

    fn remove_directory_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FileResult<()> {
        let base = self.base(&descriptor, &path)?;
        self.fuel.pay(price::CHANGE)?;
        let now_ns = self.unix_ns();
        Ok(self.files.remove_directory(base, &path, now_ns)?)
    }

    fn rename_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        old_path: String,
        new_descriptor: Resource<Descriptor>,
        new_path: String,
    ) -> FileResult<()> {
        let base = self.base(&descriptor, &old_path)?;
        let new_base = self.base(&new_descriptor, &new_path)?;
        self.fuel.pay(price::CHANGE)?;
        let now_ns = self.unix_ns();
        let nodes = self.files.rename((base, &old_path), (new_base, &new_path), now_ns)?;
        Ok(self.fuel.pay(nodes.saturating_mul(price::ENTRY))?)
    }

    /// There are no symbolic links, so there is no way by which a path leads elsewhere than it says.
    fn symlink_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _old_path: String,
        new_path: String,
    ) -> FileResult<()> {
        self.base(&descriptor, &new_path)?;
        Err(FileError::Unsupported.into())
    }

    fn unlink_file_at(&mut self, descriptor: Resource<Descriptor>, path: String) -> FileResult<()> {
        let base = self.base(&descriptor, &path)?;
        self.fuel.pay(price::CHANGE)?;
        let now_ns = self.unix_ns();
        Ok(self.files.remove_file(base, &path, now_ns)?)
    }

    fn is_same_object(
        &mut self,
        descriptor: Resource<Descriptor>,
        other: Resource<Descriptor>,
    ) -> wasmtime::Result<bool> {
        self.fuel.pay(price::CALL)?;
        Ok(self.handles.get(&descriptor)?.inode == self.handles.get(&other)?.inode)
    }

    fn metadata_hash(&mut self, descriptor: Resource<Descriptor>) -> FileResult<MetadataHashValue> {
        Ok(metadata_hash(self.node(&descriptor)?))
    }

    fn metadata_hash_at(
        &mut self,
        descriptor: Resource<Descriptor>,
        _: PathFlags,
        path: String,
    ) -> FileResult<MetadataHashValue> {
        Ok(metadata_hash(self.lookup(&descriptor, &path)?))
    }

    fn drop(&mut self, descriptor: Resource<Descriptor>) -> wasmtime::Result<()> {
        let Descriptor { inode, .. } = self.handles.delete(descriptor)?;
        self.files.release(inode);
        Ok(())
    }
}

impl types::HostDirectoryEntryStream for Guest {
    fn read_directory_entry(&mut self, entries: Resource<Entries>) -> FileResult<Option<DirectoryEntry>> {
        self.fuel.pay(price::CALL)?;
        let entries = self.handles.get_mut(&entries)?;
        while entries.next < entries.listing.inodes.len() {
            self.fuel.pay(price::ITEM)?;
            entries.next += 1;
            if let Some((name, stat)) = self.files.listed(&entries.listing, entries.next - 1) {
                return Ok(Some(DirectoryEntry { type_: kind(stat), name: name.into() }));
            }
        }
        Ok(None)
    }

    fn drop(&mut self, entries: Resource<Entries>) -> wasmtime::Result<()> {
        let Entries { listing, .. } = self.handles.delete(entries)?;
        self.files.end_listing(listing);
        Ok(())
    }
}

impl preopens::Host for Guest {
    fn get_directories(&mut self) -> wasmtime::Result<Vec<(Resource<Descriptor>, String)>> {
        self.fuel.pay(price::CALL + price::CHANGE)?;
        let flags = DescriptorFlags::READ | DescriptorFlags::MUTATE_DIRECTORY;
        let root = self.handles.push(Descriptor { inode: ROOT, flags })?;
        self.files.hold(ROOT);
        Ok(vec![(root, "/".into())])
    }
}

fn kind(stat: Stat) -> DescriptorType {
    if stat.is_directory { DescriptorType::Directory } else { DescriptorType::RegularFile }
}

fn stat(stat: Stat) -> DescriptorStat {
    DescriptorStat {
        type_: kind(stat),
        link_count: stat.links,
        size: stat.bytes,
        data_access_timestamp: Some(datetime(stat.times.accessed_ns)),
        data_modification_timestamp: Some(datetime(stat.times.modified_ns)),
        status_change_timestamp: Some(datetime(stat.times.changed_ns)),
    }
}

/// A node's number says which it is.
fn metadata_hash(inode: Inode) -> MetadataHashValue {
    MetadataHashValue { lower: inode, upper: 0 }
}

impl From<FileError> for ErrorCode {
    fn from(error: FileError) -> Self {
        match error {
            FileError::NotFound => Self::NoEntry,
            FileError::Exists => Self::Exist,
            FileError::NotDirectory => Self::NotDirectory,
            FileError::IsDirectory => Self::IsDirectory,
            FileError::NotEmpty => Self::NotEmpty,
            FileError::NotPermitted => Self::NotPermitted,
            FileError::ReadOnly => Self::ReadOnly,
            FileError::NoSpace => Self::InsufficientSpace,
            FileError::NameTooLong => Self::NameTooLong,
            FileError::Invalid => Self::Invalid,
            FileError::TooManyOpen => Self::InsufficientMemory,
            FileError::BadDescriptor => Self::BadDescriptor,
            FileError::Unsupported => Self::Unsupported,
        }
    }
}
