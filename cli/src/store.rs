//! The verbs on the store: `ls`, `path`, `verify`, `gc`, `why`.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use vmprof_guests::{Builder, Chain, Collected, GuestError, Keeper, Listed, Listing, Silent, Store, Sweep};

use crate::args::{Format, StoreVerb};
use crate::failure::{Failure, Kind};
use crate::guest::{open_store, recipe_of};
use crate::progress::Stages;
use crate::report::Report;

/// What every JSON of these verbs names as its schema.
const SCHEMA: &str = "vmprof.store/1";

pub fn store(verb: &StoreVerb, report: Report) -> Result<(), Failure> {
    let store = open_store()?;
    match verb {
        StoreVerb::Ls { format } => ls(&store, *format, report),
        StoreVerb::Path { file: None } => report.data(&format!("{}\n", store.root().display())),
        StoreVerb::Path { file: Some(file) } => path(&store, file, report),
        StoreVerb::Verify { repair } => verify(&store, *repair, report),
        StoreVerb::Gc { dry_run, packages, all, format } => {
            gc(&store, Sweep { dry_run: *dry_run, packages: *packages, all: *all }, *format, report)
        }
        StoreVerb::Why { entry, format } => why(&store, entry, *format, report),
    }
}

/// An entry as JSON.
#[derive(Serialize)]
struct EntryAnswer<'a> {
    name: &'a str,
    digest: &'a str,
    kind: &'a str,
    path: &'a Path,
    bytes: u64,
    disk_bytes: u64,
    roots: usize,
    /// Only in what `why` answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    kept: Option<&'a [Chain]>,
}

impl<'a> EntryAnswer<'a> {
    fn of(listed: &'a Listed) -> Self {
        Self {
            name: &listed.entry.name,
            digest: listed.entry.digest(),
            kind: &listed.kind,
            path: &listed.entry.path,
            bytes: listed.bytes,
            disk_bytes: listed.disk_bytes,
            roots: listed.roots(),
            kept: None,
        }
    }

    fn with_chains(listed: &'a Listed) -> Self {
        Self { kept: Some(&listed.kept), ..Self::of(listed) }
    }
}

#[derive(Serialize)]
struct ListAnswer<'a> {
    schema: &'static str,
    store: &'a Path,
    entries: Vec<EntryAnswer<'a>>,
    records: usize,
    bytes: u64,
    disk_bytes: u64,
}

fn ls(store: &Store, format: Format, report: Report) -> Result<(), Failure> {
    let listing = store.list()?;
    match format {
        Format::Json => report.json(&ListAnswer {
            schema: SCHEMA,
            store: store.root(),
            entries: listing.entries.iter().map(EntryAnswer::of).collect(),
            records: listing.records,
            bytes: listing.bytes(),
            disk_bytes: listing.disk_bytes(),
        }),
        Format::Text => report.data(&table(&listing)),
    }
}

/// Enough of a digest to tell the entries of any store apart, and to ask `why` with.
const SHOWN_DIGITS: usize = 12;

fn table(listing: &Listing) -> String {
    let mut text =
        format!("{:<12}  {:<12} {:>10} {:>10} {:>7}  NAME\n", "DIGEST", "KIND", "DISK", "SIZE", "KEPT BY");
    for listed in &listing.entries {
        let digest = listed.entry.digest().get(..SHOWN_DIGITS).unwrap_or_default();
        let kept = match listed.roots() {
            0 => "nobody".to_owned(),
            roots => roots.to_string(),
        };
        let (disk, bytes) = (size(listed.disk_bytes), size(listed.bytes));
        let name = listed.short_name();
        let _ = writeln!(text, "{digest}  {:<12} {disk:>10} {bytes:>10} {kept:>7}  {name}", listed.kind);
    }
    let (disk, bytes) = (size(listing.disk_bytes()), size(listing.bytes()));
    let _ = writeln!(
        text,
        "{:<12}  {:<12} {disk:>10} {bytes:>10}",
        "total",
        count(listing.entries.len(), "entry", "entries")
    );
    text
}

/// Bytes for people, with three digits that count.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    // Where rounding would write 1024, the next unit is meant.
    while amount >= 1023.95 && unit + 1 < UNITS.len() {
        amount /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        unit => format!("{amount:.1} {}", UNITS[unit]),
    }
}

fn count(number: usize, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

fn path(store: &Store, file: &Path, report: Report) -> Result<(), Failure> {
    let recipe = recipe_of(file)?;
    let image = Builder::new(store, &Silent).built(&recipe)?.ok_or(GuestError::NotBuilt)?;
    // The image is its root; a guest without one is its initramfs.
    let path = image.root.as_ref().map_or(&image.initramfs, |root| &root.path);
    report.data(&format!("{}\n", path.display()))
}

fn verify(store: &Store, repair: bool, report: Report) -> Result<(), Failure> {
    let stages = Stages::new(report);
    let mut verified = store.verify_all(&stages)?;
    for fault in &verified.faults {
        report.diagnostic(fault);
    }
    if repair {
        store.repair(&mut verified, &waiting(report))?;
        for path in &verified.moved {
            report.notice(format_args!("moved to {}", path.display()));
        }
    }
    let faults = verified.faults.len();
    if faults == 0 {
        report.notice(format_args!(
            "{}, {} and {}: as they should be",
            count(verified.entries, "entry", "entries"),
            count(verified.records, "record", "records"),
            count(verified.roots, "root", "roots"),
        ));
        return Ok(());
    }
    let help = match repair {
        true => {
            "what is missing now, the next build makes anew; `vmprof store gc` frees the space of what was moved"
        }
        false => "`vmprof store verify --repair` moves them out of the way: the next build makes them anew",
    };
    let problems = count(
        faults,
        "thing in the store is not as it should be",
        "things in the store are not as they should be",
    );
    let message = format!("{problems}, of {} entries", verified.entries);
    Err(Failure::said(Kind::HashMismatch, "vmprof::store::damaged", message, help))
}

fn waiting(report: Report) -> impl Fn() {
    move || report.notice("waiting for the builds that use the store")
}

#[derive(Serialize)]
struct GcAnswer<'a> {
    schema: &'static str,
    dry_run: bool,
    removed: Vec<EntryAnswer<'a>>,
    records: usize,
    roots: &'a [Keeper],
    disk_bytes: u64,
    /// Entries that nobody keeps and that could not be removed.
    left: Vec<LeftAnswer<'a>>,
}

#[derive(Serialize)]
struct LeftAnswer<'a> {
    name: &'a str,
    because: &'a str,
}

/// What nothing but a build makes; packages alone are what a failed one fetched.
const BUILT: [&str; 4] = ["kernel", "initramfs", "root image", "toolset"];

/// Who keeps what is written down since some version; a store that is older says of nothing that it is kept.
fn refuse_to_empty(store: &Store) -> Result<(), Failure> {
    if store.roots()?.iter().any(|found| !matches!(found.root.kept_by, Keeper::Vm(_))) {
        return Ok(());
    }
    let listing = store.list()?;
    let built = listing.entries.iter().filter(|listed| BUILT.contains(&listed.kind.as_str())).count();
    if built == 0 {
        return Ok(());
    }
    let message = format!(
        "nobody is known to keep anything in {}: gc would remove all {}, {} of them built",
        store.root().display(),
        count(listing.entries.len(), "entry", "entries"),
        built,
    );
    let help = "the store is older than this vmprof, which writes down who keeps what: `vmprof build` first what you want to keep, which takes no time. `vmprof store gc --all` removes everything";
    Err(Failure::said(Kind::Failure, "vmprof::store::no_keepers", message, help))
}

fn gc(store: &Store, sweep: Sweep, format: Format, report: Report) -> Result<(), Failure> {
    if !sweep.all {
        match (refuse_to_empty(store), sweep.dry_run) {
            (Err(failure), true) => report.notice(&failure.problem),
            (other, _) => other?,
        }
    }
    let collected = store.gc(sweep, &waiting(report))?;
    for (name, because) in &collected.left {
        report.notice(format_args!("{name} stays, although nobody keeps it: {because}"));
    }
    match format {
        Format::Json => report.json(&GcAnswer {
            schema: SCHEMA,
            dry_run: sweep.dry_run,
            removed: collected.entries.iter().map(EntryAnswer::of).collect(),
            records: collected.records,
            roots: &collected.roots,
            disk_bytes: collected.disk_bytes(),
            left: collected.left.iter().map(|(name, because)| LeftAnswer { name, because }).collect(),
        }),
        Format::Text => report.data(&told(&collected, sweep.dry_run)),
    }
}

fn told(collected: &Collected, dry_run: bool) -> String {
    let mut text = String::new();
    for keeper in &collected.roots {
        let _ = writeln!(text, "{keeper} keeps nothing any more");
    }
    for listed in &collected.entries {
        let _ = writeln!(text, "{:>10}  {:<12} {}", size(listed.disk_bytes), listed.kind, listed.entry.name);
    }
    let freed = if dry_run { "would be freed" } else { "freed" };
    let _ = writeln!(
        text,
        "{} {freed}: {} and {}",
        size(collected.disk_bytes()),
        count(collected.entries.len(), "entry", "entries"),
        count(collected.records, "record", "records"),
    );
    text
}

#[derive(Serialize)]
struct WhyAnswer<'a> {
    schema: &'static str,
    asked: &'a str,
    entries: Vec<EntryAnswer<'a>>,
}

fn why(store: &Store, asked: &str, format: Format, report: Report) -> Result<(), Failure> {
    let listing = store.list()?;
    let meant = listing.find(asked)?;
    match format {
        Format::Json => {
            let entries = meant.into_iter().map(EntryAnswer::with_chains).collect();
            report.json(&WhyAnswer { schema: SCHEMA, asked, entries })
        }
        Format::Text => report.data(&meant.into_iter().map(chains).collect::<String>()),
    }
}

fn chains(listed: &Listed) -> String {
    let mut text = format!("{}\n", listed.entry.name);
    for Chain { kept_by, is_package, what, role } in &listed.kept {
        let _ = write!(text, "  {kept_by}");
        if *is_package {
            text += " → its lock";
        }
        if let (Some(what), Some(role)) = (what, role) {
            let _ = write!(text, " → {what} → {role}");
        }
        text += "\n";
    }
    if listed.kept.is_empty() {
        text += "  not reached: gc would remove it\n";
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short_and_never_reach_the_next_unit() {
        let told: Vec<String> =
            [0, 1023, 1024, 1_048_575, 1 << 20, 27_000_000_000].into_iter().map(size).collect();
        assert_eq!(told, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "1.0 MiB", "25.1 GiB"]);
    }
}
