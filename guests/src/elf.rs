//! Whether a program of the image would start: every shared library that it and its libraries name must be where Debian's
//! dynamic linker looks without an ld.so.cache, which no image has.

use std::collections::{BTreeMap, BTreeSet};

use object::read::elf::{Dyn as _, ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Endianness, elf};

use crate::error::MissingLibrary;
use crate::tree::{Kind, Tree};

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

/// The libraries that programs on the usual paths need, over any number of steps, and that are not in the tree.
pub(crate) fn missing_libraries(tree: &Tree) -> Vec<MissingLibrary> {
    let programs = tree.iter().filter(|(path, node)| {
        matches!(node.kind, Kind::File(_))
            && node.mode & 0o111 != 0
            && PROGRAM_DIRS.iter().any(|dir| path.starts_with(dir))
    });
    let mut open: Vec<String> = programs.map(|(path, _)| path.to_owned()).collect();
    let mut seen: BTreeSet<String> = open.iter().cloned().collect();
    let mut missing: BTreeMap<String, String> = BTreeMap::new();
    while let Some(path) = open.pop() {
        let Some((_, node)) = tree.look(&path) else { continue };
        let Kind::File(content) = &node.kind else { continue };
        let Some(needs) = needs(content) else { continue };
        for library in needs.libraries {
            match find(tree, &library, &needs.search, &path) {
                Some(at) => {
                    if seen.insert(at.clone()) {
                        open.push(at);
                    }
                }
                None => {
                    let first = missing.entry(library).or_insert_with(|| path.clone());
                    if path < *first {
                        first.clone_from(&path);
                    }
                }
            }
        }
    }
    missing
        .into_iter()
        .map(|(library, needed_by)| MissingLibrary { library, needed_by: format!("/{needed_by}") })
        .collect()
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
        let mut names = vec![0_u8];
        let mut entries: Vec<(u64, u64)> = Vec::new();
        for library in libraries {
            entries.push((1, names.len() as u64));
            names.extend_from_slice(library.as_bytes());
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
}
