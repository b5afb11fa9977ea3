//! Who put what is at a path, and who may put something else there.

use std::sync::Arc;

/// Who put something at a path, which decides who may put something else there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The builder's own skeleton: anyone may take its place.
    Builder,
    Package {
        name: String,
        replaces: Arc<[String]>,
    },
    /// The recipe: takes anything's place.
    Recipe,
}

impl Origin {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Builder => "the builder",
            Self::Package { name, .. } => name,
            Self::Recipe => "the recipe",
        }
    }

    pub(super) fn yields_to(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Builder, _) | (_, Self::Recipe) => true,
            (Self::Package { name, .. }, Self::Package { replaces, .. }) => replaces.contains(name),
            _ => false,
        }
    }
}
