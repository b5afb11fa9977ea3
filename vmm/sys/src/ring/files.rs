//! The files of a ring, registered with the kernel once instead of looked up for every operation.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::{IoUring, squeue, types};

use super::remote::is_remote;

/// Registered files of one ring; more than this many are used by their descriptors.
const REGISTERED: usize = 64;
const EMPTY: i32 = -1;

/// A file that a ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId(usize);

#[derive(Debug)]
struct Entry {
    file: Arc<File>,
    users: usize,
    /// Of every operation on it.
    flags: squeue::Flags,
}

#[derive(Debug)]
pub(super) struct Files {
    entries: Vec<Option<Entry>>,
    registered: usize,
}

impl Files {
    pub(super) fn new(uring: &IoUring) -> Self {
        // Without a table (RLIMIT_NOFILE may be lower than it) descriptors serve: slower by a lookup, the same in effect.
        let registered =
            if uring.submitter().register_files(&[EMPTY; REGISTERED]).is_ok() { REGISTERED } else { 0 };
        Files { entries: Vec::new(), registered }
    }

    /// Adds a file, or one more user of it.
    pub(super) fn add(&mut self, uring: &IoUring, file: Arc<File>) -> io::Result<FileId> {
        let known =
            |entry: &Option<Entry>| entry.as_ref().is_some_and(|entry| Arc::ptr_eq(&entry.file, &file));
        if let Some(at) = self.entries.iter().position(known)
            && let Some(entry) = &mut self.entries[at]
        {
            entry.users += 1;
            return Ok(FileId(at));
        }
        let at = self.entries.iter().position(Option::is_none).unwrap_or(self.entries.len());
        if at < self.registered {
            uring.submitter().register_files_update(at as u32, &[file.as_raw_fd()])?;
        }
        if at == self.entries.len() {
            self.entries.push(None);
        }
        let flags = if is_remote(&file) { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
        self.entries[at] = Some(Entry { file, users: 1, flags });
        Ok(FileId(at))
    }

    /// Removes one user of a file, and the file with the last.
    pub(super) fn remove(&mut self, uring: &IoUring, FileId(at): FileId) {
        let Some(entry) = &mut self.entries[at] else { return };
        entry.users -= 1;
        if entry.users == 0 {
            self.entries[at] = None;
            if at < self.registered {
                // Fails only for a table or an index that is not there; the next file at this place would then fail to
                // register, and say so.
                let _ = uring.submitter().register_files_update(at as u32, &[EMPTY]);
            }
        }
    }

    /// What an entry's file field and flags are to be.
    pub(super) fn target(&self, FileId(at): FileId) -> (types::Fd, squeue::Flags) {
        let entry = self.entries[at].as_ref();
        let flags = entry.map_or(squeue::Flags::empty(), |entry| entry.flags);
        if at < self.registered {
            return (types::Fd(at as i32), flags | squeue::Flags::FIXED_FILE);
        }
        (types::Fd(entry.map_or(EMPTY, |entry| entry.file.as_raw_fd())), flags)
    }
}
