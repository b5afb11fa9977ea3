//! In a guest: the program that the kernel starts first (`rdinit=`). It says so on the console, which both machines' outsides
//! hear the same way, and goes on as the guest's real first process.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// Where it lies in the guest's initramfs.
pub const PATH: &str = "bench/mark";
/// The line it says.
pub const LINE: &str = "bench: init";

/// Never returns: the kernel panics when its first process ends, which ends the machine, which is seen.
pub fn become_first_process() -> ! {
    let _ = writeln!(std::io::stdout(), "{LINE}");
    let error = Command::new("/init").exec();
    eprintln!("bench: /init cannot be started: {error}");
    std::process::exit(1)
}
