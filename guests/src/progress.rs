//! How the builder tells its caller what it is doing. The library prints nothing: `cli` draws bars or lines from these
//! calls, tests use [`Silent`]. Several stages run at once: packages are unpacked while others are still fetched.

/// Told what happens while something is locked, fetched or built. Called from several threads.
pub trait Progress: Send + Sync {
    /// A stage begins; dropping what is returned ends it.
    fn stage(&self, name: &str, total: Total) -> Box<dyn Stage>;
    /// Something worth a line of its own, outside any stage.
    fn note(&self, text: &str);
}

/// A stage that runs. It ends when it is dropped, on failures too.
pub trait Stage: Send + Sync {
    /// `by` more of the stage's total is done.
    fn advance(&self, by: u64);
}

/// What [`Stage::advance`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Total {
    /// Nobody knows how long it takes.
    Unknown,
    Bytes(u64),
    /// Packages, files: whatever the stage's name says.
    Items(u64),
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total: Total) -> Box<dyn Stage> {
        Box::new(Silent)
    }
    fn note(&self, _text: &str) {}
}

impl Stage for Silent {
    fn advance(&self, _by: u64) {}
}
