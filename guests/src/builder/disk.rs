//! The root image: packages, the recipe's own files, and the writer of its format. What it depends on is in [`inputs`].

use std::collections::BTreeMap;
use std::fs::File;

use super::packages::From;
use super::{BUILDER_VERSION, Builder, role};
use crate::abilities::{self, RootFacts};
use crate::digest::Inputs;
use crate::error::Result;
use crate::lock::{Lock, LockedPackage};
use crate::recipe::{Format, ImageConfig, Place, Recipe};
use crate::root::Base;
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

/// A fact of a root image's record: what the container image it is made of says of itself.
const CONFIG: &str = "config";

/// What writing a root image leaves to tell.
pub(super) struct Written {
    /// Exclusions that met nothing.
    unmet: Vec<String>,
    config: Option<ImageConfig>,
    able: RootFacts,
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
        // The record's facts: one without them is another's.
        hasher.field("facts", b"makes shell");
        hasher.field("format", self.format.inputs().as_bytes());
        for path in self.exclude {
            hasher.field("exclude", path.as_bytes());
        }
        Base::inputs(&self.recipe.root, &mut hasher);
        hasher.field("name", self.recipe.name.as_bytes());
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
        for (name, value) in self.recipe.tree_inputs() {
            hasher.field(name, value.as_bytes());
        }
        hasher.finish()
    }
}

/// A root image in the store.
pub(super) struct Built {
    /// What its record is found by.
    pub(super) inputs: Inputs,
    pub(super) entry: Entry,
    /// What a container image says that it is made of.
    pub(super) config: Option<ImageConfig>,
    /// What its record says of it.
    pub(super) facts: BTreeMap<String, String>,
}

impl Builder<'_> {
    pub(super) fn has_root(&self, plan: &Plan<'_>) -> bool {
        self.store.recall(plan.inputs()).is_some()
    }

    /// The image; its packages are unpacked in the store where there is anything to do.
    pub(super) fn root(&self, plan: &Plan<'_>) -> Result<Built> {
        let inputs = plan.inputs();
        let (record, entries) = self.once(inputs, |builder| {
            let name = &plan.recipe.name;
            let mut temp = builder.store.temp_file()?;
            let written = builder.write_root(plan, From::Store, temp.file())?;
            for path in &written.unmet {
                builder.progress.note(&format!("{name}: `exclude \"{path}\"` met nothing"));
            }
            let entry = builder.store.publish_temp(temp, &format!("{name}.{}", plan.format.name()))?;
            let record = Record::new(format!("root image of {name}")).with("root", &entry);
            let config = written.config.and_then(|config| serde_json::to_string(&config).ok());
            let facts = written.able.into_iter().chain(config.map(|config| (CONFIG, config)));
            Ok(facts.fold(record, |record, (name, value)| record.fact(name, value)))
        })?;
        let config = record.facts.get(CONFIG).and_then(|config| serde_json::from_str(config).ok());
        Ok(Built { inputs, entry: role(inputs, entries, "root")?, config, facts: record.facts })
    }

    /// Writes the root image.
    pub(super) fn write_root(&self, plan: &Plan<'_>, from: From, out: &mut File) -> Result<Written> {
        let packages: Vec<&LockedPackage> = plan.lock.packages.iter().collect();
        let stage = self.stage(&format!("reading the packages of {}", plan.recipe.name), None);
        let debs = self.open_packages(&packages, &plan.lock.asked.suite, from, &|_| true)?;
        drop(stage);
        let base = Base::of(&plan.recipe.root, debs)?;
        let config = base.config().cloned();
        let _stage = self.stage(&format!("packing the root image of {}", plan.recipe.name), None);
        let (tree, unmet) = root::assemble(plan.recipe, plan.exclude, base, plan.contents.clone())?;
        image::write(&tree, plan.format, &plan.recipe.name, out)?;
        Ok(Written { unmet, config, able: abilities::root_facts(&tree) })
    }
}
