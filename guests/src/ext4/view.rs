//! The image that is read: bytes in memory, or a file, of which only what is asked for comes into memory.

use std::borrow::Cow;
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::BLOCK;

/// Where an image's bytes come from.
pub(crate) trait Bytes {
    fn length(&self) -> u64;
    /// `None`: not there, or not to be read.
    fn at(&self, at: u64, length: usize) -> Option<Cow<'_, [u8]>>;
}

impl Bytes for &[u8] {
    fn length(&self) -> u64 {
        self.len() as u64
    }

    fn at(&self, at: u64, length: usize) -> Option<Cow<'_, [u8]>> {
        let at = usize::try_from(at).ok()?;
        self.get(at..at.checked_add(length)?).map(Cow::Borrowed)
    }
}

impl Bytes for File {
    fn length(&self) -> u64 {
        self.metadata().map_or(0, |meta| meta.len())
    }

    fn at(&self, at: u64, length: usize) -> Option<Cow<'_, [u8]>> {
        let mut bytes = vec![0; length];
        self.read_exact_at(&mut bytes, at).ok()?;
        Some(Cow::Owned(bytes))
    }
}

/// An image up to where its superblock says that it ends.
#[derive(Clone, Copy)]
pub(super) struct View<'i> {
    image: &'i dyn Bytes,
    end: u64,
}

impl<'i> View<'i> {
    pub(super) fn whole(image: &'i dyn Bytes) -> Self {
        Self { image, end: image.length() }
    }

    pub(super) fn up_to(self, blocks: u64) -> Self {
        Self { end: self.end.min(blocks.saturating_mul(BLOCK as u64)), ..self }
    }

    pub(super) fn length(self) -> u64 {
        self.end
    }

    pub(super) fn at(self, at: u64, length: usize) -> Option<Cow<'i, [u8]>> {
        let end = at.checked_add(u64::try_from(length).ok()?)?;
        if end > self.end {
            return None;
        }
        self.image.at(at, length)
    }

    /// A block of the image, if it has it.
    pub(super) fn block(self, number: u64) -> Option<Cow<'i, [u8]>> {
        self.at(number.checked_mul(BLOCK as u64)?, BLOCK)
    }
}
