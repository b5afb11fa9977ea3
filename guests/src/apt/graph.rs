//! Who needs whom, from the index's paragraphs: to leave packages out together with all that only they need.

use std::collections::{BTreeMap, BTreeSet};

/// Dependencies among the packages that apt chose.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// Package → each dependency as its alternatives.
    needs: BTreeMap<String, Vec<Vec<String>>>,
    /// Name, real or virtual → packages that stand for it.
    offered: BTreeMap<String, BTreeSet<String>>,
}

impl Graph {
    pub(super) fn read(index: &str, recommends: bool) -> Self {
        let mut graph = Self::default();
        for paragraph in index.split("\n\n") {
            let Some(name) = field(paragraph, "Package") else { continue };
            let mut needs = Vec::new();
            for relation in ["Pre-Depends", "Depends"].into_iter().chain(recommends.then_some("Recommends")) {
                needs.extend(relations(field(paragraph, relation).unwrap_or_default()));
            }
            graph.needs.insert(name.to_owned(), needs);
            let provided = relations(field(paragraph, "Provides").unwrap_or_default()).into_iter().flatten();
            for offered in provided.chain([name.to_owned()]) {
                graph.offered.entry(offered).or_default().insert(name.to_owned());
            }
        }
        graph
    }

    /// What is reached from `names` when nobody goes through `without`.
    pub(super) fn reachable(&self, names: &[String], without: &[String]) -> BTreeSet<String> {
        let mut open: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut reached = BTreeSet::new();
        while let Some(name) = open.pop() {
            for package in self.offered.get(name).into_iter().flatten() {
                if without.contains(package) || !reached.insert(package.clone()) {
                    continue;
                }
                let needs = self.needs.get(package).into_iter().flatten();
                open.extend(needs.flatten().map(String::as_str));
            }
        }
        reached
    }
}

/// How the packages start that hold a kernel or a part of one.
pub(super) const KERNEL_PARTS: [&str; 3] = ["linux-image-", "linux-modules-", "linux-binary-"];

/// Of a kernel package's paragraph, the packages its parts are in.
pub(super) fn kernel_dependencies(index: &str) -> Vec<String> {
    let depends = relations(field(index, "Depends").unwrap_or_default());
    depends
        .into_iter()
        .flatten()
        .filter(|name| KERNEL_PARTS.iter().any(|part| name.starts_with(part)))
        .collect()
}

/// A field of one paragraph; its continuation lines are joined.
fn field<'a>(paragraph: &'a str, name: &str) -> Option<&'a str> {
    paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// `a (>= 1), b | c:any` → `[[a], [b, c]]`. Versions and qualifiers do not matter: apt has already chosen.
fn relations(text: &str) -> Vec<Vec<String>> {
    let bare =
        |one: &str| one.split([' ', '(', ':', '[', '<']).find(|word| !word.is_empty()).map(str::to_owned);
    text.split(',').map(|group| group.split('|').filter_map(|one| bare(one.trim())).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = "\
Package: fio\nDepends: libaio1 (>= 0.3), python3:any, mail | mawk\n\n\
Package: python3\nPre-Depends: python3-minimal\nDepends: libpython\n\n\
Package: python3-minimal\nDepends: libc6\n\n\
Package: libpython\nDepends: libc6, libexpat1\n\n\
Package: libexpat1\nDepends: libc6\n\n\
Package: libaio1\nDepends: libc6\n\n\
Package: exim\nProvides: mail (= 1)\nRecommends: perl\n\n\
Package: perl\n\n\
Package: libc6\n";

    fn names(all: &[&str]) -> Vec<String> {
        all.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn leaving_a_package_out_takes_with_it_what_only_it_needs() {
        let graph = Graph::read(INDEX, false);
        let kept = graph.reachable(&names(&["fio"]), &names(&["python3"]));
        assert_eq!(kept, ["exim", "fio", "libaio1", "libc6"].map(str::to_owned).into());
    }

    #[test]
    fn without_exceptions_everything_needed_is_reached() {
        let graph = Graph::read(INDEX, true);
        assert_eq!(graph.reachable(&names(&["fio"]), &[]).len(), 9);
    }

    #[test]
    fn a_kernels_parts_are_found_and_its_helpers_are_not() {
        let shown =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1), kmod\n";
        assert_eq!(kernel_dependencies(shown), ["linux-image-6.1.0-50-cloud-amd64"]);
    }
}
