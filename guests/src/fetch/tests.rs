use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use super::*;
use crate::apt::AptError;
use crate::error::FailureClass;
use crate::error::GuestError;
use crate::progress::Silent;
use crate::testing;

/// How the server answers for a file.
#[derive(Clone)]
enum Answer {
    Whole(Vec<u8>),
    /// Says how long it is, sends half, and hangs up.
    Cut(Vec<u8>),
    /// One byte at a time.
    Slow(Vec<u8>),
}

type Files = Arc<Mutex<BTreeMap<String, Answer>>>;

/// An archive on the loopback interface: its base address, and what it serves.
fn archive() -> (String, Files) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let base = format!("http://127.0.0.1:{}/debian", listener.local_addr().unwrap().port());
    let files = Files::default();
    let served = Arc::clone(&files);
    std::thread::spawn(move || {
        for connection in listener.incoming().flatten() {
            let files = Arc::clone(&served);
            std::thread::spawn(move || serve(connection, &files));
        }
    });
    (base, files)
}

/// A client that goes away is none of the server's failures.
fn serve(mut connection: TcpStream, files: &Files) -> Option<()> {
    let mut requests = BufReader::new(connection.try_clone().ok()?);
    loop {
        let mut first = String::new();
        if requests.read_line(&mut first).ok()? == 0 {
            return None;
        }
        let mut line = String::from("x");
        while !line.trim().is_empty() {
            line.clear();
            requests.read_line(&mut line).ok()?;
        }
        let path = first.split(' ').nth(1)?.trim_start_matches("/debian/").to_owned();
        let answer = files.lock().unwrap().get(&path).cloned();
        let head = |length: usize| format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
        match answer {
            None => connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?,
            Some(Answer::Whole(bytes)) => {
                connection.write_all(head(bytes.len()).as_bytes()).ok()?;
                connection.write_all(&bytes).ok()?;
            }
            Some(Answer::Cut(bytes)) => {
                connection.write_all(head(bytes.len()).as_bytes()).ok()?;
                connection.write_all(&bytes[..bytes.len() / 2]).ok()?;
                return connection.shutdown(std::net::Shutdown::Both).ok();
            }
            Some(Answer::Slow(bytes)) => {
                connection.write_all(head(bytes.len()).as_bytes()).ok()?;
                for byte in bytes {
                    connection.write_all(&[byte]).ok()?;
                    std::thread::sleep(std::time::Duration::from_millis(5));
                }
            }
        }
    }
}

/// Past whatever proxy the host has.
fn direct(command: &mut Command) -> &mut Command {
    command.env("no_proxy", "127.0.0.1")
}

const BYTES: &[u8] = b"what was locked, and a little more of it";

struct Site {
    _directory: tempfile::TempDir,
    store: Store,
    package: LockedPackage,
}

impl Site {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(directory.path().join("store")).unwrap();
        Self { _directory: directory, store, package: testing::locked("other", BYTES) }
    }

    fn fetch(&self, bases: &[&str]) -> Result<()> {
        let builder = Builder::new(&self.store, &Silent).children(direct);
        let likely = bases.iter().map(|base| (*base).to_owned()).collect();
        let archives = Archives { likely, others: Vec::new() };
        from_archives(&builder, vec![&self.package], &archives, &|_| true)
    }

    fn has_nothing(&self) -> bool {
        find(&self.store, &self.package).is_none()
            && self.store.entries().unwrap().is_empty()
            && std::fs::read_dir(self.store.root().join("tmp")).unwrap().count() == 0
    }
}

#[test]
fn wrong_bytes_are_refused_as_such_and_fetched_again_the_next_time() {
    let site = Site::new();
    let (base, files) = archive();
    let wrong: Vec<u8> = BYTES.iter().map(|byte| byte ^ 1).collect();
    files.lock().unwrap().insert(site.package.path.clone(), Answer::Whole(wrong));
    let error = site.fetch(&[&base]).unwrap_err();
    assert_eq!(error.class(), FailureClass::HashMismatch, "{error}");
    assert!(error.to_string().contains("package other 1"), "{error}");
    assert!(site.has_nothing());
    files.lock().unwrap().insert(site.package.path.clone(), Answer::Whole(BYTES.to_vec()));
    site.fetch(&[&base]).unwrap();
    let entry = find(&site.store, &site.package).unwrap();
    assert_eq!(read(&site.package, &entry).unwrap(), BYTES);
}

#[test]
fn a_transfer_that_breaks_off_is_a_failure_that_says_so_and_leaves_nothing() {
    let site = Site::new();
    let (base, files) = archive();
    files.lock().unwrap().insert(site.package.path.clone(), Answer::Cut(BYTES.to_vec()));
    let error = site.fetch(&[&base]).unwrap_err();
    assert!(
        matches!(
            error,
            GuestError::Apt(AptError::Failed { .. }) | GuestError::Fetch(FetchError::HashMismatch { .. })
        ),
        "{error}"
    );
    assert!(site.has_nothing());
    files.lock().unwrap().insert(site.package.path.clone(), Answer::Slow(BYTES.to_vec()));
    site.fetch(&[&base]).unwrap();
    assert!(find(&site.store, &site.package).is_some());
}

#[test]
fn a_package_that_left_one_archive_is_found_in_another() {
    let site = Site::new();
    let ((gone, _), (wrong, wrongs), (has, files)) = (archive(), archive(), archive());
    wrongs.lock().unwrap().insert(site.package.path.clone(), Answer::Whole(b"another".to_vec()));
    files.lock().unwrap().insert(site.package.path.clone(), Answer::Whole(BYTES.to_vec()));
    site.fetch(&[&gone, &wrong, &has]).unwrap();
    assert!(find(&site.store, &site.package).is_some());
}

#[test]
fn a_package_that_is_nowhere_is_named_with_what_was_tried_and_what_to_do() {
    let site = Site::new();
    let ((one, _), (two, _)) = (archive(), archive());
    let error = site.fetch(&[&one, &two]).unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, GuestError::Fetch(FetchError::Gone { .. })), "{error:?}");
    assert!(said.contains("other 1") && said.contains(&one) && said.contains(&two), "{said}");
    let help = miette::Diagnostic::help(&error).unwrap().to_string();
    assert!(help.contains("vmprof lock --update=other"), "{help}");
}

#[test]
fn a_package_of_a_local_archive_becomes_the_stores_own() {
    let site = Site::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join(&site.package.path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(&file, BYTES).unwrap();
    site.fetch(&[&format!("file:{}", directory.path().display())]).unwrap();
    assert!(find(&site.store, &site.package).unwrap().path.symlink_metadata().unwrap().is_file());
    assert!(file.is_file(), "the archive keeps its own");
}

static CACHING: OnceLock<tempfile::TempDir> = OnceLock::new();

/// With a configuration whose cache is the test's.
fn caching(command: &mut Command) -> &mut Command {
    command.env("APT_CONFIG", CACHING.get().unwrap().path().join("apt.conf"))
}

#[test]
fn what_the_hosts_apt_has_fetched_is_taken_if_its_bytes_are_right() {
    let site = Site::new();
    let cache = CACHING.get_or_init(|| tempfile::tempdir().unwrap()).path();
    std::fs::write(cache.join("apt.conf"), format!("Dir::Cache::archives \"{}\";\n", cache.display()))
        .unwrap();
    let epoch = LockedPackage { version: "2:1".to_owned(), ..site.package.clone() };
    let builder = Builder::new(&site.store, &Silent).children(caching);
    std::fs::write(cache.join("other_2%3a1_amd64.deb"), b"what was locked, and a little more of IT").unwrap();
    assert_eq!(from_host_cache(&builder, vec![&epoch], &|_| true).unwrap(), [&epoch]);
    assert!(site.has_nothing());
    std::fs::write(cache.join("other_2%3a1_amd64.deb"), BYTES).unwrap();
    assert!(from_host_cache(&builder, vec![&epoch], &|_| true).unwrap().is_empty());
    assert_eq!(read(&epoch, &find(&site.store, &epoch).unwrap()).unwrap(), BYTES);
}

#[test]
fn batches_begin_with_the_largest_and_hold_a_few_small_ones() {
    let sized = |name: &str, size| LockedPackage { size, ..testing::locked(name, b"") };
    let packages: Vec<_> = (0..8).map(|n| sized(&format!("small{n}"), 1000)).collect();
    let large = sized("large", 50 << 20);
    let mut all: Vec<&LockedPackage> = packages.iter().collect();
    all.push(&large);
    let sizes: Vec<usize> = batches(all).iter().map(Vec::len).collect();
    assert_eq!(sizes, [1, 6, 2]);
}

#[test]
fn what_apt_left_half_fetched_has_not_come() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("other_1_amd64.deb");
    let package = testing::locked("other", b"what was locked");
    assert!(!came(&package, &file, true));
    std::fs::write(&file, b"what").unwrap();
    assert!(!came(&package, &file, false));
    // apt says that it is whole: then it is the hash that decides.
    assert!(came(&package, &file, true));
    std::fs::write(&file, b"what was locked").unwrap();
    assert!(came(&package, &file, false));
}

#[test]
fn apts_words_become_the_error_they_mean() {
    let package = testing::locked("other", b"what was locked");
    let explained = |said: &[&str]| {
        let mut attempts = Attempts::default();
        attempts.add("base", said.iter().map(|said| (*said).to_owned()).collect());
        attempts.explain("tmp".into(), &[&package])
    };
    let full = "E: Failed to fetch x  Error writing to file - write (28: No space left on device)";
    assert!(matches!(explained(&[full]), GuestError::NoSpace { .. }));
    let mismatch = "E: Failed to fetch x  Hash Sum mismatch";
    let absent = "E: Failed to fetch x  404  Not Found";
    assert_eq!(explained(&[mismatch]).class(), FailureClass::HashMismatch);
    assert_eq!(explained(&[absent, mismatch]).class(), FailureClass::HashMismatch);
    assert!(matches!(explained(&[absent]), GuestError::Fetch(FetchError::Gone { .. })));
    let cut = "E: Failed to fetch x  Error reading from server. Remote end closed connection";
    assert!(matches!(explained(&[absent, cut]), GuestError::Apt(AptError::Failed { .. })));

    let lost = |name: &str| {
        format!("Err:1 base {name}\nE: Failed to fetch {name}  Temporary failure\nE: Download Failed")
    };
    let said: Vec<String> = (0..100).map(|n| lost(&format!("p{n}"))).collect();
    let GuestError::Apt(AptError::Failed { output, .. }) =
        explained(&said.iter().map(String::as_str).collect::<Vec<_>>())
    else {
        panic!("no network is no other failure");
    };
    assert_eq!(output, "Temporary failure: p0 and 99 more", "one reason is told once");
}
