//! Builds the guest's first process and hands its bytes to `src/init.rs`.
//!
//! It is always the same program: its own cargo profile, static, paths remapped, in a target directory of its own, so
//! that neither the outer profile nor the outer flags, nor where the checkout and the cargo home lie, reach its bytes:
//! they are inputs of every initramfs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    if let Err(problem) = build() {
        println!("cargo::error=the guest's first process could not be built: {problem}");
    }
}

fn build() -> Result<(), String> {
    let here = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = here.parent().ok_or("guests/ has no parent directory")?;
    for input in ["guests/init", "guests/job", "profiles/mac", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(variable("OUT_DIR")?);
    // TARGET/PROFILE/build/PACKAGE/out: one for all profiles, since what is in it depends on none of them.
    let target_dir = match out.ancestors().nth(4) {
        Some(target) => target.join("vmprof-init"),
        None => out.join("init"),
    };
    // Named even though it is the host's: with a target, flags do not reach build scripts and proc-macros.
    let target = variable("TARGET")?;
    let cargo = variable("CARGO")?;

    let mut command = Command::new(&cargo);
    command
        .current_dir(workspace)
        .args(["build", "--profile", "init", "-p", "vmprof-init", "--locked", "--target", &target])
        .arg("--target-dir")
        .arg(&target_dir);
    // What the outer cargo set for this build or its caller for that one: none of it is meant for the inner one.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let inherited = [
            "CARGO_PKG_",
            "CARGO_CFG_",
            "CARGO_FEATURE_",
            "CARGO_PROFILE_",
            "CARGO_TARGET_",
            "CARGO_BUILD_",
            "DEP_",
        ];
        let exact = [
            "CARGO_MANIFEST_DIR",
            "CARGO_MANIFEST_PATH",
            "CARGO_MANIFEST_LINKS",
            "CARGO_MAKEFLAGS",
            "CARGO_PRIMARY_PACKAGE",
            "CARGO_ENCODED_RUSTFLAGS",
            "RUSTFLAGS",
            "RUSTC",
            "RUSTDOC",
            "RUSTC_LINKER",
            "RUSTC_WRAPPER",
            "RUSTC_WORKSPACE_WRAPPER",
            "CARGO_INCREMENTAL",
            "OUT_DIR",
            "TARGET",
            "HOST",
            "PROFILE",
            "OPT_LEVEL",
            "DEBUG",
            "NUM_JOBS",
            "LD_LIBRARY_PATH",
        ];
        if inherited.iter().any(|start| name.starts_with(start)) || exact.contains(&name.as_ref()) {
            command.env_remove(name.as_ref());
        }
    }
    // Empty, not absent: the workspace's wrapper adds a flag that stands below already, and its path would become part of
    // the hashes in symbol names.
    command.env("RUSTC_WORKSPACE_WRAPPER", "").env("RUSTC_WRAPPER", "");
    command.env("CARGO_ENCODED_RUSTFLAGS", flags(workspace, &target_dir)?.join("\x1f"));

    let output = command.output().map_err(|error| format!("{cargo} does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let program = target_dir.join(&target).join("init/vmprof-init");
    let embedded = out.join("vmprof-init");
    fs::copy(&program, &embedded).map_err(|error| format!("{} is not there: {error}", program.display()))?;
    Ok(())
}

/// Static, and without a path of this machine.
fn flags(workspace: &Path, target_dir: &Path) -> Result<Vec<String>, String> {
    let cargo_home = match env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => PathBuf::from(variable("HOME")?).join(".cargo"),
    };
    let rustc = variable("RUSTC")?;
    let sysroot =
        Command::new(&rustc).args(["--print", "sysroot"]).output().map_err(|error| error.to_string())?;
    let sysroot = PathBuf::from(String::from_utf8_lossy(&sysroot.stdout).trim());
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // The last match wins, so what lies inside another comes later.
    let remapped = [
        (sysroot, "/rustc"),
        (cargo_home, "/cargo"),
        (workspace.to_owned(), "/vmprof"),
        (target_dir.to_owned(), "/target"),
    ];
    for (path, short) in remapped {
        flags.push(format!("--remap-path-prefix={}={short}", path.display()));
    }
    Ok(flags)
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|_| format!("cargo did not set {name}"))
}
