//! `build --check`: the same inputs once more, into nothing, compared byte for byte with what the store holds. Where they
//! differ, both are taken apart to name the first file.

use super::boot::Source;
use super::packages::From;
use super::{Builder, GuestImage, disk};
use crate::error::{GuestError, Result};
use crate::recipe::{Format, Image, Recipe};
use crate::tree::{Kind, Tree};
use crate::{cpio, image, store};

impl Builder<'_> {
    pub(super) fn compare(&self, recipe: &Recipe, image: &GuestImage) -> Result<()> {
        let lock = self.locked(recipe)?;
        let kernel = self.read_kernel(&Source::of(recipe, &lock)?, From::Anew)?;
        let (initramfs, ..) = super::boot::initramfs_bytes(recipe, &kernel)?;
        let differs = |what: &str, difference: Option<String>| match difference {
            None => Ok(()),
            Some(difference) => {
                Err(GuestError::NotDeterministic { what: format!("{what} of {}", recipe.name), difference })
            }
        };
        differs("kernel", bytes(&store::read(&image.kernel)?, &kernel.elf))?;
        let stored = store::read(&image.initramfs)?;
        differs("initramfs", first_member(&stored, &initramfs))?;
        if let (Image::Root { format, exclude }, Some(root)) = (&recipe.image, &image.root) {
            let plan = disk::Plan::new(recipe, &lock, *format, exclude)?;
            let mut again = self.store.temp_file()?;
            self.write_root(&plan, From::Anew, again.file())?;
            let again = store::read(&again.path)?;
            differs("root image", first_file(&store::read(&root.path)?, &again, *format))?;
        }
        Ok(())
    }
}

fn bytes(stored: &[u8], again: &[u8]) -> Option<String> {
    if stored == again {
        return None;
    }
    let at = stored.iter().zip(again).position(|(a, b)| a != b);
    Some(match at {
        Some(at) => format!("they differ first at byte {at}"),
        None => format!("{} bytes are in the store, {} came out", stored.len(), again.len()),
    })
}

pub(super) fn first_member(stored: &[u8], again: &[u8]) -> Option<String> {
    let plain = bytes(stored, again)?;
    let (Some(left), Some(right)) = (cpio::members(stored), cpio::members(again)) else { return Some(plain) };
    let at = left.iter().zip(&right).find(|(a, b)| a != b).map(|(a, _)| format!("/{} differs", a.0));
    Some(at.unwrap_or(plain))
}

pub(super) fn first_file(stored: &[u8], again: &[u8], format: Format) -> Option<String> {
    let plain = bytes(stored, again)?;
    let (left, right) = match (image::read(stored, format), image::read(again, format)) {
        (Ok(left), Ok(right)) => (left, right),
        (Err(error), _) => return Some(format!("{plain}; the stored image cannot be read: {error}")),
        (_, Err(error)) => return Some(format!("{plain}; the new image cannot be read: {error}")),
    };
    Some(first_path(&left, &right).unwrap_or_else(|| format!("{plain}, with the same files in both")))
}

fn first_path(stored: &Tree, again: &Tree) -> Option<String> {
    let mut left = stored.iter().peekable();
    let mut right = again.iter().peekable();
    loop {
        return match (left.peek(), right.peek()) {
            (None, None) => None,
            (Some((a, _)), Some((b, _))) if a < b => Some(format!("/{a} is only in the store")),
            (Some((a, _)), Some((b, _))) if b < a => Some(format!("/{b} came out anew")),
            (Some((a, _)), None) => Some(format!("/{a} is only in the store")),
            (None, Some((b, _))) => Some(format!("/{b} came out anew")),
            (Some((path, x)), Some((_, y))) => match (&x.kind, &y.kind) {
                _ if x == y => {
                    left.next();
                    right.next();
                    continue;
                }
                (Kind::File(one), Kind::File(two)) => match bytes(one, two) {
                    Some(difference) => Some(format!("/{path}: {difference}")),
                    None => Some(format!("/{path} has another mode or owner")),
                },
                _ => Some(format!("/{path} is {x:?} in the store and {y:?} anew")),
            },
        };
    }
}
