//! The root image: packages, the recipe's own files, and the writer of its format. What it depends on is in [`inputs`].

use std::fs::File;

use super::packages::From;
use super::{BUILDER_VERSION, Builder, role};
use crate::digest::Inputs;
use crate::error::Result;
use crate::lock::{Lock, LockedPackage};
use crate::recipe::{Format, Place, Recipe};
use crate::store::{Entry, Record};
use crate::{image, root};

/// A root image that may be built: everything that decides its bytes, at hand.
pub(super) struct Plan<'r> {
    recipe: &'r Recipe,
    lock: &'r Lock,
    format: Format,
    exclude: &'r [String],
    /// Of the recipe's files, one for each of `placed`; empty for links and directories.
    contents: Vec<Vec<u8>>,
}

impl<'r> Plan<'r> {
    pub(super) fn new(
        recipe: &'r Recipe,
        lock: &'r Lock,
        format: Format,
        exclude: &'r [String],
    ) -> Result<Self> {
        let content = |what: &Place| match what {
            Place::Text { text, .. } => Ok(text.clone().into_bytes()),
            Place::From { source, .. } => crate::store::read(source),
            Place::Directory { .. } | Place::Link { .. } => Ok(Vec::new()),
        };
        let contents = recipe.placed.iter().map(|placed| content(&placed.what)).collect::<Result<_>>()?;
        Ok(Self { recipe, lock, format, exclude, contents })
    }

    /// Everything that decides the root image's bytes.
    fn inputs(&self) -> Inputs {
        let mut hasher = Inputs::of("root image");
        hasher.field("builder", BUILDER_VERSION.as_bytes());
        hasher.field("format", self.format.inputs().as_bytes());
        for path in self.exclude {
            hasher.field("exclude", path.as_bytes());
        }
        let conduct = &self.recipe.conduct;
        hasher.field("name", self.recipe.name.as_bytes()).field("hostname", conduct.hostname.as_bytes());
        for package in &self.lock.packages {
            hasher.field("package", package.sha256.to_string().as_bytes());
        }
        for (placed, content) in self.recipe.placed.iter().zip(&self.contents) {
            hasher.field("path", placed.path.as_bytes());
            let (kind, value) = match &placed.what {
                Place::Directory { mode } => ("directory", format!("{mode:o}")),
                Place::Link { target } => ("link", target.clone()),
                Place::Text { mode, .. } | Place::From { mode, .. } => ("file", format!("{mode:o}")),
            };
            hasher.field(kind, value.as_bytes()).field("content", content);
        }
        // What runs decides nothing in the image, but whether building it succeeds.
        for word in &conduct.run {
            hasher.field("run", word.as_bytes());
        }
        hasher.finish()
    }
}

impl Builder<'_> {
    pub(super) fn has_root(&self, plan: &Plan<'_>) -> bool {
        self.store.recall(plan.inputs()).is_some()
    }

    /// The image's entry and what its record is found by; its packages are unpacked in the store where there is anything to do.
    pub(super) fn root(&self, plan: &Plan<'_>) -> Result<(Inputs, Entry)> {
        let inputs = plan.inputs();
        let (_, entries) = self.once(inputs, |builder| {
            let name = &plan.recipe.name;
            let mut temp = builder.store.temp_file()?;
            let unmet = builder.write_root(plan, From::Store, temp.file())?;
            for path in unmet {
                builder.progress.note(&format!("{name}: `exclude \"{path}\"` met nothing"));
            }
            let entry = builder.store.publish_temp(temp, &format!("{name}.{}", plan.format.name()))?;
            Ok(Record::new(format!("root image of {name}")).with("root", &entry))
        })?;
        Ok((inputs, role(inputs, entries, "root")?))
    }

    /// Writes the root image; returns exclusions that met nothing.
    pub(super) fn write_root(&self, plan: &Plan<'_>, from: From, out: &mut File) -> Result<Vec<String>> {
        let packages: Vec<&LockedPackage> = plan.lock.packages.iter().collect();
        let stage = self.stage(&format!("reading the packages of {}", plan.recipe.name), None);
        let debs = self.open_packages(&packages, &plan.lock.asked.suite, from, &|_| true)?;
        drop(stage);
        let _stage = self.stage(&format!("packing the root image of {}", plan.recipe.name), None);
        let (tree, unmet) = root::assemble(plan.recipe, plan.exclude, debs, plan.contents.clone())?;
        image::write(&tree, plan.format, &plan.recipe.name, out)?;
        Ok(unmet)
    }
}
