//! `build --check`: the same inputs once more, into nothing, compared byte for byte with what the store holds. Where they
//! differ, both are taken apart to name the first file.

use std::fs::File;
use std::path::Path;

use super::boot::Source;
use super::packages::From;
use super::{Builder, GuestImage, difference, disk};
use crate::error::{GuestError, Result, failed};
use crate::recipe::{Format, Image, Recipe};
use crate::tree::{Kind, Tree};
use crate::{cpio, image, store};

impl Builder<'_> {
    pub(super) fn compare(&self, recipe: &Recipe, image: &GuestImage) -> Result<()> {
        let lock = self.locked(recipe)?;
        // First of all, so that whoever may not write to the store is told before anything is built.
        let mut again = self.store.temp_file()?;
        let kernel = self.read_kernel(&Source::of(recipe, &lock)?, From::Anew)?;
        let (initramfs, ..) = super::boot::initramfs_bytes(recipe, &kernel)?;
        let differs = |what: &str, difference: Option<String>| match difference {
            None => Ok(()),
            Some(difference) => {
                Err(GuestError::NotDeterministic { what: format!("{what} of {}", recipe.name), difference })
            }
        };
        let stored = store::read(&image.kernel)?;
        differs("kernel", difference::of_bytes(&stored, &kernel.elf).map(|found| found.to_string()))?;
        let stored = store::read(&image.initramfs)?;
        differs("initramfs", first_member(&stored, &initramfs))?;
        if let (Image::Root { format, exclude }, Some(root)) = (&recipe.image, &image.root) {
            let plan = disk::Plan::new(recipe, &lock, *format, exclude)?;
            self.write_root(&plan, From::Anew, again.file())?;
            let _stage = self.stage(&format!("comparing the root image of {}", recipe.name), None);
            differs("root image", first_file(&root.path, &again.path, *format)?)?;
        }
        Ok(())
    }
}

pub(super) fn first_member(stored: &[u8], again: &[u8]) -> Option<String> {
    let plain = difference::of_bytes(stored, again)?.to_string();
    let (Some(left), Some(right)) = (cpio::members(stored), cpio::members(again)) else { return Some(plain) };
    let at = left.iter().zip(&right).find(|(a, b)| a != b).map(|(a, _)| format!("/{} differs", a.0));
    Some(at.unwrap_or(plain))
}

/// Compares the images piece by piece; only where they differ, what is in them comes into memory.
fn first_file(stored: &Path, again: &Path, format: Format) -> Result<Option<String>> {
    let open = |path: &Path| File::open(path).map_err(failed("read", path));
    let found = difference::of_files(&open(stored)?, &open(again)?).map_err(failed("compare", stored))?;
    let Some(plain) = found else { return Ok(None) };
    let difference = match (image::read(stored, format), image::read(again, format)) {
        (Ok(left), Ok(right)) => {
            first_path(&left, &right).unwrap_or_else(|| format!("{plain}, with the same files in both"))
        }
        (Err(error), _) => format!("{plain}; the stored image cannot be read: {error}"),
        (_, Err(error)) => format!("{plain}; the new image cannot be read: {error}"),
    };
    Ok(Some(difference))
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
                (Kind::File(one), Kind::File(two)) => match difference::of_bytes(one, two) {
                    Some(difference) => Some(format!("/{path}: {difference}")),
                    None => Some(format!("/{path} has another mode or owner")),
                },
                _ => Some(format!("/{path} is {x:?} in the store and {y:?} anew")),
            },
        };
    }
}
