//! The harness of the end-to-end tests: the binary as users get it, in an environment of its own.

pub mod drives;
mod lab;
pub mod libvirt_schema;
pub mod promises;
pub mod qemu;
pub mod server;
pub mod terminal;
pub mod writelog;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{Pid, Signal, kill_process};

pub use lab::{in_labs_of_its_own, in_labs_of_its_own_for, in_the_lab};

/// A user without any rights, on every Debian.
pub const NOBODY: u32 = 65_534;

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate lies in the checkout")
}

/// The binary, of the profile `suite`: built when it is missing or old, once a test run. Debug builds are too slow and too large
/// to be carried into an emulated host, and release builds take twice as long to make. VMPROF_BINARY names another one.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("VMPROF_BINARY") {
            return path.into();
        }
        let built = Command::new(env!("CARGO"))
            .args(["build", "--profile", "suite", "--locked", "--package", "vmprof", "--target-dir"])
            .arg(target())
            .current_dir(checkout())
            .status()
            .expect("cargo can be started");
        assert!(built.success(), "the binary does not build");
        target().join("suite/vmprof")
    })
}

/// A copy of the binary in `directory`, to be run from there. Another process makes it: while this one had it open for
/// writing, a child that another test forks would have it open too, and it could not be executed (ETXTBSY).
pub fn copy_of_binary(directory: &Path) -> PathBuf {
    let copy = directory.join("vmprof");
    finish(Command::new("cp").arg(binary()).arg(&copy)).expect(0);
    copy
}

/// Cargo's target directory, from where this test binary lies: TARGET/debug/deps/suite-….
fn target() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own binary");
    own.ancestors().nth(3).expect("a test binary lies in TARGET/PROFILE/deps").to_owned()
}

/// The store that all tests share, so that each package is fetched once. It stays between test runs.
pub fn shared_store() -> PathBuf {
    target().join("vmprof-tests/store")
}

/// A user's places, empty but for the store.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    store: PathBuf,
}

impl Default for Home {
    fn default() -> Self {
        Home::new()
    }
}

impl Home {
    pub fn new() -> Home {
        Home::with_store(shared_store())
    }

    pub fn with_store(store: PathBuf) -> Home {
        Home { directory: tempfile::tempdir().expect("a temporary directory can be made"), store }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// vmprof with these arguments, from the checkout, with nothing of the tester's environment but PATH.
    pub fn vmprof<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(binary());
        command.args(arguments).current_dir(checkout()).env_clear().stdin(Stdio::null());
        if let Some(path) = std::env::var_os("PATH") {
            command.env("PATH", path);
        }
        command.env("HOME", self.path()).env("VMPROF_STORE", &self.store);
        if let Some(lab) = lab::joined() {
            command.env("VMPROF_LAB", lab);
        }
        command
    }

    /// Runs it to its end.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Finished {
        finish(&mut self.vmprof(arguments))
    }
}

impl Home {
    /// What runs that were left on their own have said, and the keeper of a lab of its own.
    fn logs(&self) -> impl Iterator<Item = String> + use<> {
        let state = self.path().join(".local/state/vmprof");
        let of_runs = std::fs::read_dir(state.join("logs")).into_iter().flatten().flatten();
        let logs = of_runs.map(|entry| entry.path()).chain([state.join("lab.log")]);
        logs.filter_map(|log| Some(String::from_utf8_lossy(&std::fs::read(log).ok()?).into_owned()))
    }
}

impl Drop for Home {
    /// A test that fails leaves its places for whoever looks into it, where VMPROF_KEEP is set.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        self.logs().for_each(|log| lab::heard(&log));
        if std::env::var_os("VMPROF_KEEP").is_some() {
            self.directory.disable_cleanup(true);
            eprintln!("kept: {}", self.path().display());
        }
    }
}

/// A command that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Finished {
    /// Fails the test with everything that was printed unless the status is `expected`.
    #[track_caller]
    pub fn expect(self, expected: i32) -> Finished {
        assert_eq!(
            self.status,
            Some(expected),
            "unexpected status\n--- stdout\n{}\n--- stderr\n{}",
            self.stdout,
            self.stderr
        );
        self
    }
}

pub fn finish(command: &mut Command) -> Finished {
    spawn(command.stdin(Stdio::null())).finish()
}

/// Runs it with `input` on its standard input.
pub fn finish_with_input(command: &mut Command, input: &[u8]) -> Finished {
    let mut child = spawn(command.stdin(Stdio::piped()));
    let mut stdin = child.child.stdin.take().expect("its input is a pipe");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let finished = child.finish();
    // It may end without reading all of its input.
    let _ = writer.join().expect("the writer does not panic");
    finished
}

/// A running command; killed when a test gives up on it.
#[derive(Debug)]
pub struct Running {
    child: Child,
    /// The file that its standard error goes to, where it has one.
    log: Option<PathBuf>,
}

/// Starts it with its output piped.
pub fn spawn(command: &mut Command) -> Running {
    let child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the command can be started");
    lab::started(&child);
    Running { child, log: None }
}

/// The same, with its standard error in the file `log`, where it can be read while it runs.
pub fn spawn_with_log(command: &mut Command, log: &Path) -> Running {
    let file = std::fs::File::create(log).expect("the log can be made");
    let child = command.stdout(Stdio::piped()).stderr(file).spawn().expect("the command can be started");
    lab::started(&child);
    Running { child, log: Some(log.to_owned()) }
}

impl Running {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("the child can be signalled");
    }

    /// Writes a line to its standard input, which the test made a pipe, and ends that input.
    pub fn type_line(&mut self, line: &str) {
        let mut stdin = self.child.stdin.take().expect("its input is a pipe");
        writeln!(stdin, "{line}").expect("it reads its input");
    }

    /// Its standard output from now on, line by line as it comes.
    pub fn output_lines(&mut self) -> impl Iterator<Item = String> + use<> {
        lines(self.child.stdout.take().expect("its output is a pipe"))
    }

    /// Its standard error from now on, line by line as it comes.
    pub fn error_lines(&mut self) -> impl Iterator<Item = String> + use<> {
        lines(self.child.stderr.take().expect("its errors are a pipe"))
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_some()
    }

    pub fn finish(mut self) -> Finished {
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let stdout = std::thread::spawn(move || read_all(stdout));
        let stderr = read_all(stderr);
        let status = self.child.wait().expect("the child can be waited for").code();
        lab::heard(&stderr);
        Finished { status, stdout: stdout.join().expect("the reader does not panic"), stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already where a test finished it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let logged = self.log.as_ref().and_then(|log| std::fs::read_to_string(log).ok());
        lab::heard(&logged.unwrap_or_else(|| what_lies_in(self.child.stderr.take())));
    }
}

fn lines(from: impl std::io::Read) -> impl Iterator<Item = String> {
    BufReader::new(from).lines().map(|line| line.expect("a pipe of text can be read"))
}

fn read_all(from: Option<impl std::io::Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        from.read_to_end(&mut bytes).expect("a pipe can be read");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What a pipe has by now, whoever may still hold its other end.
fn what_lies_in(from: Option<impl std::io::Read + AsFd>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut from) = from
        && fcntl_setfl(&from, OFlags::NONBLOCK).is_ok()
    {
        // Its end, or that there is no more for now: what was read before stays.
        let _ = from.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Looks until `look` finds something; fails the test, naming `what`, when it never does.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = Duration::from_secs(180);
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < patience, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Every process whose command line holds `word`.
pub fn processes_with(word: &str) -> Vec<u32> {
    let holds = |entry: std::fs::DirEntry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        String::from_utf8_lossy(&line).contains(word).then_some(pid)
    };
    let entries = std::fs::read_dir("/proc").expect("/proc can be read");
    entries.flatten().filter_map(holds).collect()
}

/// Whether this machine's KVM runs stock kernels, as vmprof itself finds; a test that needs one says by its name that it
/// was skipped.
pub fn kvm_is_usable() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let hardware = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    hardware && std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}
