//! Whether a program of the image would start: every shared library that it and its libraries name must be where Debian's
//! dynamic linker looks without an ld.so.cache, which no image has.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

use crate::tree::{Kind, Node, Tree};

/// Debian's ld.so, compiled in.
const LIBRARY_DIRS: [&str; 4] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib", "usr/lib"];
const PROGRAM_DIRS: [&str; 5] =
    ["usr/bin/", "usr/sbin/", "usr/local/bin/", "usr/local/sbin/", "usr/libexec/"];

/// What a dynamic ELF file asks for.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) libraries: Vec<String>,
    /// RUNPATH or RPATH, as it stands there.
    search: Vec<String>,
}

/// Reads what an ELF file needs; `None` for what is not a 64-bit ELF file or not dynamic.
pub(crate) fn needs(content: &[u8]) -> Option<Needs> {
    let file = ElfFile64::<Endianness>::parse(content).ok()?;
    let endian = file.endian();
    let headers = file.elf_header().program_headers(endian, content).ok()?;
    let entries = headers.iter().find_map(|header| header.dynamic(endian, content).ok().flatten())?;
    let strings = entries.iter().find(|e| e.d_tag(endian) == elf::DT_STRTAB)?.d_val(endian);
    // DT_STRTAB is an address; the loaded segment that holds it says where in the file that is.
    let at = headers.iter().find_map(|header| {
        let (start, size) = (header.p_vaddr(endian), header.p_filesz(endian));
        let loaded = header.p_type(endian) == elf::PT_LOAD && strings >= start && strings - start < size;
        loaded.then(|| strings - start + header.p_offset(endian))
    })?;
    let table = content.get(usize::try_from(at).ok()?..)?;
    let text = |offset: u32| {
        let bytes = table.get(offset as usize..)?;
        let end = bytes.iter().position(|byte| *byte == 0)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    };
    let all =
        |tag| entries.iter().filter(move |e| e.d_tag(endian) == tag).filter_map(|e| text(e.val32(endian)?));
    let search = all(elf::DT_RUNPATH).chain(all(elf::DT_RPATH));
    Some(Needs {
        libraries: all(elf::DT_NEEDED).collect(),
        search: search.flat_map(|dirs| dirs.split(':').map(str::to_owned).collect::<Vec<_>>()).collect(),
    })
}

/// A library that a program names and the image lacks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct MissingLibrary {
    pub library: String,
    pub needed_by: String,
}

/// The libraries that programs on the usual paths need, over any number of steps, and that are not in the tree.
pub(crate) fn missing_libraries(tree: &Tree) -> Vec<MissingLibrary> {
    let programs = tree.iter().filter(|(path, node)| {
        matches!(node.kind, Kind::File(_))
            && node.mode & 0o111 != 0
            && PROGRAM_DIRS.iter().any(|dir| path.starts_with(dir))
    });
    let mut known = BTreeMap::new();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    for (program, _) in programs {
        // In ld.so's order, breadth first: what a library needs is found without a search if something before it has loaded
        // it by that name, as libraries beside a program's own directory rely on.
        let mut loaded: BTreeSet<String> = BTreeSet::new();
        let mut open = VecDeque::from([program.to_owned()]);
        while let Some(path) = open.pop_front() {
            let needed = known.entry(path.clone()).or_insert_with(|| needed(tree, &path));
            for (library, at) in needed {
                if loaded.contains(library) {
                    continue;
                }
                let Some(at) = at else {
                    let first = missing.entry(library.clone()).or_insert_with(|| path.clone());
                    if path < *first {
                        first.clone_from(&path);
                    }
                    continue;
                };
                loaded.insert(library.clone());
                open.push_back(at.clone());
            }
        }
    }
    missing
        .into_iter()
        .map(|(library, needed_by)| MissingLibrary { library, needed_by: format!("/{needed_by}") })
        .collect()
}

/// What the file at `path` names, each with where its own search finds it.
fn needed(tree: &Tree, path: &str) -> Vec<(String, Option<String>)> {
    let Some((_, Node { kind: Kind::File(content), .. })) = tree.look(path) else { return Vec::new() };
    let needs = needs(content).unwrap_or_default();
    let found = |library: String| {
        let at = find(tree, &library, &needs.search, path);
        (library, at)
    };
    needs.libraries.iter().cloned().map(found).collect()
}

fn find(tree: &Tree, library: &str, search: &[String], needed_by: &str) -> Option<String> {
    let origin = needed_by.rsplit_once('/').map_or("", |(directory, _)| directory);
    let own = search.iter().map(|dir| dir.replace("$ORIGIN", origin).replace("${ORIGIN}", origin));
    let dirs = own.chain(LIBRARY_DIRS.iter().map(|dir| (*dir).to_owned()));
    dirs.map(|dir| format!("{dir}/{library}")).find_map(|path| {
        let (at, node) = tree.look(&path)?;
        matches!(node.kind, Kind::File(_)).then_some(at)
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The smallest ELF file that needs these libraries.
    pub(crate) fn dynamic(libraries: &[&str]) -> Vec<u8> {
        dynamic_with_runpath(libraries, None)
    }

    fn dynamic_with_runpath(libraries: &[&str], runpath: Option<&str>) -> Vec<u8> {
        let mut names = vec![0_u8];
        let mut entries: Vec<(u64, u64)> = Vec::new();
        let runpath = runpath.map(|path| (29, path));
        for (tag, text) in libraries.iter().map(|library| (1, *library)).chain(runpath) {
            entries.push((tag, names.len() as u64));
            names.extend_from_slice(text.as_bytes());
            names.push(0);
        }
        let headers = 64 + 2 * 56;
        let table = headers + 16 * (entries.len() + 2);
        const LOADED_AT: u64 = 0x40_0000;
        entries.push((5, LOADED_AT + table as u64));
        entries.push((0, 0));
        let size = (table + names.len()) as u64;

        let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
        elf.resize(64, 0);
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(16, &3_u16.to_le_bytes()); // shared object
        put(18, &62_u16.to_le_bytes()); // x86-64
        put(20, &1_u32.to_le_bytes());
        put(32, &64_u64.to_le_bytes()); // program headers
        put(52, &64_u16.to_le_bytes());
        put(54, &56_u16.to_le_bytes());
        put(56, &2_u16.to_le_bytes());
        for (kind, offset, length) in [(1_u32, 0, size), (2, headers as u64, 16 * entries.len() as u64)] {
            elf.extend_from_slice(&kind.to_le_bytes());
            elf.extend_from_slice(&4_u32.to_le_bytes());
            for value in [offset, LOADED_AT + offset, LOADED_AT + offset, length, length, 8] {
                elf.extend_from_slice(&value.to_le_bytes());
            }
        }
        for (tag, value) in entries {
            elf.extend_from_slice(&tag.to_le_bytes());
            elf.extend_from_slice(&value.to_le_bytes());
        }
        elf.extend_from_slice(&names);
        elf
    }

    #[test]
    fn needed_libraries_are_read_from_the_dynamic_section() {
        let needs = needs(&dynamic(&["libc.so.6", "libm.so.6"])).unwrap();
        assert_eq!(needs.libraries, ["libc.so.6", "libm.so.6"]);
        assert!(needs.search.is_empty());
    }

    #[test]
    fn scripts_static_programs_and_torn_files_need_nothing() {
        assert_eq!(needs(b"#!/bin/sh\n"), None);
        assert_eq!(needs(crate::init::PROGRAM).map(|needs| needs.libraries).unwrap_or_default(), [""; 0]);
        let whole = dynamic(&["libc.so.6"]);
        assert_eq!(needs(&whole[..whole.len() - 12]), None);
    }

    #[test]
    fn a_library_that_was_loaded_before_is_not_searched_for_again() {
        let library = |tree: &mut Tree, path: &str, needs: &[&str]| {
            let node = Node::file(0o644, dynamic(needs));
            tree.put(path, node, &crate::tree::Origin::Builder).unwrap();
        };
        let missing = |program_needs: &[&str]| {
            let mut tree = Tree::default();
            let program = Node::file(0o755, dynamic_with_runpath(program_needs, Some("/usr/lib/own")));
            tree.put("usr/bin/program", program, &crate::tree::Origin::Builder).unwrap();
            library(&mut tree, "usr/lib/own/core.so", &["shared.so"]);
            library(&mut tree, "usr/lib/own/shared.so", &[]);
            missing_libraries(&tree).into_iter().map(|one| one.library).collect::<Vec<_>>()
        };
        assert_eq!(missing(&["core.so", "shared.so"]), [""; 0]);
        assert_eq!(missing(&["core.so"]), ["shared.so"], "core.so has no search path of its own");
    }
}
