//! libvirt's own schema of a domain, which judges documents.

use std::process::Command;
use std::sync::OnceLock;

use vmprof_guests::{Builder, Realised, Silent, Store, Toolset};

use crate::{finish_with_input, shared_store};

/// libvirt's schemas and a program that knows the language they are written in; a megabyte and a half to fetch.
const DOMAIN_SCHEMA: Toolset = Toolset {
    name: "domain-schema",
    // Debian 12's libvirt is too old to know virtqueue mappings.
    suites: &["trixie"],
    packages: &["libvirt-common", "libxml2-utils"],
    programs: &["usr/bin/xmllint"],
    data: &["usr/share/libvirt/schemas/"],
    linked: &[],
    layout: "1",
};

fn schema() -> &'static Realised {
    static SCHEMA: OnceLock<Realised> = OnceLock::new();
    SCHEMA.get_or_init(|| {
        let store = Store::open(shared_store()).expect("the tests' store opens");
        DOMAIN_SCHEMA
            .realise(&Builder::new(&store, &Silent))
            .expect("libvirt's schemas and xmllint come from Debian's trixie")
    })
}

/// Whether the schema takes the document, and what xmllint says.
pub fn valid(document: &str) -> Result<(), String> {
    let argv = schema().argv("usr/bin/xmllint");
    let mut command = Command::new(&argv[0]);
    command.args(&argv[1..]).args(["--nonet", "--noout", "--relaxng"]);
    command.arg(schema().path("usr/share/libvirt/schemas/domain.rng")).arg("-");
    let finished = finish_with_input(&mut command, document.as_bytes());
    if finished.status == Some(0) { Ok(()) } else { Err(finished.stderr) }
}

#[track_caller]
pub fn is_valid(document: &str) {
    if let Err(said) = valid(document) {
        panic!("{said}\n{document}");
    }
}
