//! Refuses a binary that would not be one static file (docs/decisions/0001).

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=RUSTC_WORKSPACE_WRAPPER");
    // Clippy and other checkers stand in the wrapper's place and link nothing.
    let wrapper = std::env::var("RUSTC_WORKSPACE_WRAPPER").unwrap_or_default();
    let ours = wrapper.ends_with(".cargo/rustc-static");
    if !ours && std::env::var("PROFILE").as_deref() == Ok("release") && !wrapper.contains("clippy") {
        println!(
            "cargo::error=this build is not static: build below the checkout's .cargo/config.toml, without a \
             RUSTC_WORKSPACE_WRAPPER of your own (found {wrapper:?})"
        );
    }
}
