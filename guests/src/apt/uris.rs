//! Reading what apt prints: addresses, package file names, settings. Pure functions over text.

use super::Archives;
use crate::digest::Sha256;
use crate::lock::{LockedPackage, file::is_pool_path};

/// The archives of `apt-get --print-uris update`. Likely are those that hold `suite`, then the host's own release's, and of
/// each kind first those with a component main: third-party sources often carry a suite of the same name without it.
pub(super) fn archives(text: &str, suite: &str, codename: Option<&str>) -> Archives {
    let lines: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| line.strip_prefix('\'')?.split_once('\''))
        .filter_map(|(uri, _)| uri.split_once("/dists/"))
        .collect();
    const UNLIKELY: u8 = 4;
    // The best rank of each, in the order of the sources.
    let mut found: Vec<(u8, String)> = Vec::new();
    for (base, rest) in &lines {
        let Some(of) = rest.strip_suffix("/InRelease") else { continue };
        let main = format!("{of}/main/binary-");
        let has_main = lines.iter().any(|(b, r)| b == base && r.starts_with(&main));
        let rank = match (of == suite, Some(of) == codename, has_main) {
            (true, _, true) => 0,
            (_, true, true) => 1,
            (true, _, false) => 2,
            (_, true, false) => 3,
            _ => UNLIKELY,
        };
        match found.iter_mut().find(|(_, known)| known == base) {
            Some((known, _)) => *known = rank.min(*known),
            None => found.push((rank, (*base).to_owned())),
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    let (likely, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(rank, _)| *rank < UNLIKELY);
    let bases = |ranked: Vec<(u8, String)>| ranked.into_iter().map(|(_, base)| base).collect();
    Archives { likely: bases(likely), others: bases(others) }
}

/// `VERSION_CODENAME` of /etc/os-release.
pub(super) fn codename(os_release: &str) -> Option<&str> {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"'))
}

/// A line of `--print-uris`: `'URI' NAME_VERSION_ARCH.deb SIZE SHA256:…`.
pub(super) fn package(line: &str) -> Option<LockedPackage> {
    let (uri, rest) = line.strip_prefix('\'')?.split_once('\'')?;
    let mut words = rest.split_whitespace();
    let file = words.next()?.strip_suffix(".deb")?;
    let size = words.next()?.parse().ok()?;
    let sha256: Sha256 = words.next()?.strip_prefix("SHA256:")?.parse().ok()?;
    let mut parts = file.splitn(3, '_');
    let (name, version, arch) = (parts.next()?, parts.next()?, parts.next()?);
    let path = decode(&uri[uri.find("/pool/")? + 1..]);
    is_pool_path(&path).then(|| LockedPackage {
        name: name.to_owned(),
        version: decode(version),
        arch: arch.to_owned(),
        size,
        sha256,
        path,
    })
}

/// Undoes %XX.
fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let escaped = (byte == b'%').then(|| {
            let high = char::from(ahead.next()?).to_digit(16)?;
            let low = char::from(ahead.next()?).to_digit(16)?;
            u8::try_from(high * 16 + low).ok()
        });
        match escaped.flatten() {
            Some(value) => {
                out.push(value);
                bytes = ahead;
            }
            None => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A pool path as it stands in an address: apt escapes `+`, which some servers take for a blank.
pub(crate) fn encode_path(path: &str) -> String {
    path.replace('%', "%25").replace('+', "%2b")
}

/// Of `apt-config dump`, how to reach the network: proxies, certificates, timeouts.
pub(super) fn network_settings(dump: &str) -> String {
    const KEPT: [&str; 7] = [
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Retries",
        "Acquire::ForceIPv",
        "Acquire::tor::",
        "Acquire::http-proxy",
        "Acquire::Check-Valid-Until",
    ];
    dump.lines()
        .filter(|line| KEPT.iter().any(|kept| line.starts_with(kept)))
        .map(|line| format!("{line}\n"))
        .collect()
}

/// The name in apt's complaint about a package it does not know.
pub(super) fn unknown_package(stderr: &str) -> Option<String> {
    stderr.lines().find_map(|line| {
        let name = line
            .strip_prefix("E: Unable to locate package ")
            .or_else(|| line.strip_prefix("E: Package '")?.strip_suffix("' has no installation candidate"))
            .or_else(|| line.strip_prefix("E: Couldn't find any package by glob '")?.strip_suffix('\''))?;
        Some(name.trim().to_owned())
    })
}

/// In apt's complaint about dependencies that cannot be met: who needs whom.
///
/// ```text
///  fio : Depends: libc6 (>= 2.99) but 2.36-9 is to be installed
///        Depends: libaio1 but it is not going to be installed
/// ```
pub(super) fn unmet(said: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut needing = "";
    for line in said.lines().filter(|line| line.starts_with(' ')) {
        let relation = match line.split_once(" : ") {
            Some((name, rest)) => {
                needing = name.trim();
                rest
            }
            None => line,
        };
        let needed = ["Depends:", "PreDepends:", "Recommends:", "Breaks:", "Conflicts:"]
            .iter()
            .find_map(|kind| relation.trim().strip_prefix(kind));
        if let Some(needed) = needed.and_then(|rest| rest.split_whitespace().next()) {
            let bare = |name: &str| name.split(':').next().unwrap_or(name).to_owned();
            found.push((bare(needing), bare(needed)));
        }
    }
    found
}

/// The suite in apt's complaint about one that the archive does not have. Not reaching the archive is another complaint.
pub(super) fn unknown_suite(stderr: &str, suites: &[&str]) -> Option<String> {
    let line = stderr.lines().find(|line| line.contains("does not have a Release file"))?;
    let named = |suite: &str| line.split([' ', '\'']).any(|word| word == suite);
    suites.iter().find(|suite| named(suite)).map(|suite| (*suite).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UPDATE: &str = "\
'https://apt.example/docker/dists/bookworm/InRelease' a 0 \n\
'https://apt.example/docker/dists/bookworm/stable/binary-amd64/Packages.xz' b 0 \n\
'http://security.example/dists/bookworm-security/InRelease' c 0 \n\
'http://mirror.example/debian/dists/bookworm/InRelease' d 0 \n\
'http://mirror.example/debian/dists/bookworm-updates/InRelease' e 0 \n\
'http://mirror.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' f 0 \n";

    #[test]
    fn the_archive_with_a_main_component_comes_first() {
        let found = archives(UPDATE, "bookworm", Some("bookworm"));
        assert_eq!(found.likely, ["http://mirror.example/debian", "https://apt.example/docker"]);
        assert_eq!(found.others, ["http://security.example"]);
    }

    #[test]
    fn another_suite_is_looked_for_where_the_hosts_own_release_is() {
        let found = archives(UPDATE, "trixie", Some("bookworm"));
        assert_eq!(found.likely.first().map(String::as_str), Some("http://mirror.example/debian"));
        let unknown = archives(UPDATE, "trixie", None);
        assert!(unknown.likely.is_empty());
        assert_eq!(unknown.others.len(), 3, "each archive once");
    }

    #[test]
    fn a_package_line_gives_name_version_and_a_path_without_a_host() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let line = format!(
            "'http://m.example/debian/pool/main/g/gmp/libgmp10_6.2.1%2bdfsg1-1.1_amd64.deb' \
             libgmp10_2%3a6.2.1+dfsg1-1.1_amd64.deb 562588 SHA256:{hash}"
        );
        let read = package(&line).unwrap();
        assert_eq!(read.name, "libgmp10");
        assert_eq!(read.version, "2:6.2.1+dfsg1-1.1");
        assert_eq!(read.path, "pool/main/g/gmp/libgmp10_6.2.1+dfsg1-1.1_amd64.deb");
        assert_eq!(read.size, 562_588);
        assert!(encode_path(&read.path).contains("6.2.1%2bdfsg1"));
    }

    #[test]
    fn a_line_with_another_hash_or_a_way_up_is_not_a_package() {
        let hash = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(package("'http://m/pool/a/b_1_amd64.deb' b_1_amd64.deb 5 MD5Sum:00").is_none());
        assert!(
            package(&format!("'http://m/pool/../../b_1_amd64.deb' b_1_amd64.deb 5 SHA256:{hash}")).is_none()
        );
    }

    #[test]
    fn only_settings_of_the_network_are_taken_over() {
        let dump = "Acquire::http::Proxy \"http://p\";\nAPT::Update::Post-Invoke:: \"rm\";\nDir \"/\";\n";
        assert_eq!(network_settings(dump), "Acquire::http::Proxy \"http://p\";\n");
    }

    #[test]
    fn apts_complaint_names_the_package() {
        assert_eq!(unknown_package("E: Unable to locate package fioo\n"), Some("fioo".to_owned()));
        assert_eq!(unknown_package("E: something else\n"), None);
    }

    #[test]
    fn apts_complaint_names_the_suite() {
        let said =
            "E: The repository 'http://m.example/debian bookwrm Release' does not have a Release file.\n";
        assert_eq!(unknown_suite(said, &["trixie", "bookwrm"]), Some("bookwrm".to_owned()));
        assert_eq!(unknown_suite("E: Could not connect to 'http://m.example'", &["bookworm"]), None);
    }
}
