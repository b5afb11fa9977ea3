//! How the builder tells its caller what it is doing. The library prints nothing: `cli` draws bars or lines from these
//! calls, tests use [`Silent`].

/// Told what happens while something is locked, fetched or built. Called from several threads.
pub trait Progress: Send + Sync {
    /// A stage begins. `total` counts what [`Progress::advance`] will report: bytes for downloads, entries otherwise.
    fn stage(&self, name: &str, total: Option<u64>);
    /// `by` more of the running stage's total is done.
    fn advance(&self, by: u64);
    /// The running stage has ended.
    fn done(&self);
    /// Something worth a line of its own, outside any stage.
    fn note(&self, text: &str);
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn stage(&self, _name: &str, _total: Option<u64>) {}
    fn advance(&self, _by: u64) {}
    fn done(&self) {}
    fn note(&self, _text: &str) {}
}

/// A stage that ends when it goes out of scope, on failures too.
pub(crate) struct Stage<'a>(&'a dyn Progress);

impl<'a> Stage<'a> {
    pub(crate) fn begin(progress: &'a dyn Progress, name: &str, total: Option<u64>) -> Self {
        progress.stage(name, total);
        Self(progress)
    }

    pub(crate) fn advance(&self, by: u64) {
        self.0.advance(by);
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        self.0.done();
    }
}
