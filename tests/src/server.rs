//! `vmprof vhost-user-blk` with a disk of its own.

use std::fs::{self, File};
use std::path::PathBuf;

use rustix::process::Signal;

use crate::{Home, Running, checkout, eventually, spawn_with_log};

pub const DISK_BYTES: u64 = 64 << 20;

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    home: Home,
    words: Vec<String>,
    running: Running,
}

impl Server {
    pub fn start(words: &[&str]) -> Server {
        let home = Home::new();
        File::create(home.path().join("db.raw")).unwrap().set_len(DISK_BYTES).unwrap();
        Server::listen(home, words.iter().map(|word| (*word).to_owned()).collect())
    }

    fn listen(home: Home, words: Vec<String>) -> Server {
        let log = home.path().join("log");
        let mut command = home.vmprof(["vhost-user-blk", "--socket"]);
        command.arg(home.path().join("db.sock")).arg("--source").arg(home.path().join("db.raw")).args(&words);
        let mut running = spawn_with_log(&mut command, &log);
        eventually("the server to listen", || {
            let said = fs::read_to_string(&log).unwrap();
            assert!(!running.has_ended(), "{said}");
            said.contains("listening at").then_some(())
        });
        Server { home, words, running }
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("db.sock")
    }

    pub fn disk(&self) -> PathBuf {
        self.home.path().join("db.raw")
    }

    pub fn home(&self) -> &Home {
        &self.home
    }

    pub fn pid(&self) -> u32 {
        self.running.pid()
    }

    /// Ends it in order; what it said.
    pub fn stop(self, signal: Signal) -> String {
        self.running.signal(signal);
        self.running.finish().expect(0);
        assert!(!self.home.path().join("db.sock").exists(), "the socket is still there");
        fs::read_to_string(self.home.path().join("log")).unwrap()
    }

    /// SIGKILL, and its end awaited.
    pub fn kill(self) -> Killed {
        self.running.signal(Signal::KILL);
        assert_eq!(self.running.finish().status, None, "killed by a signal");
        assert!(self.home.path().join("db.sock").exists(), "a killed server removes nothing");
        let said = fs::read_to_string(self.home.path().join("log")).unwrap();
        Killed { home: self.home, words: self.words, said }
    }
}

/// What a killed server leaves behind: its disk, its socket, and what it had said.
#[derive(Debug)]
pub struct Killed {
    home: Home,
    words: Vec<String>,
    pub said: String,
}

impl Killed {
    /// The next server of the same disk, at the same socket.
    pub fn start_again(self) -> Server {
        Server::listen(self.home, self.words)
    }
}

/// The blocks of one language in docs/vhost-user.md.
pub fn blocks(language: &str) -> Vec<String> {
    let page = fs::read_to_string(checkout().join("docs/vhost-user.md")).unwrap();
    let opening = format!("```{language}\n");
    page.split(&opening).skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}
