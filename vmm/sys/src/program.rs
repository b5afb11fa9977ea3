//! This program's own pages.

// UNSAFETY: the program's segments are told as raw addresses, and its pages are taken away under it.
#![allow(unsafe_code, reason = "dl_iterate_phdr and madvise")]

use std::io;

/// What the linker says is never written: the addresses of its pages, whole.
type Segments = Vec<(usize, usize)>;

/// Lets go of every page of this program that is only code or constants. The kernel maps 64 KiB around each page that is
/// touched once; what is touched again comes back from the page cache, which never lost it. Pages that are locked stay: EINVAL.
pub fn let_go_of_code() -> io::Result<()> {
    for (start, bytes) in segments() {
        // SAFETY: these pages belong to a segment of this program that nothing may write, relocations and RELRO included: they
        // lie in segments that are writable. So each is the file's, private and clean, and is mapped again as it was.
        let done = unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_DONTNEED) };
        if done != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

fn segments() -> Segments {
    let mut segments = Segments::new();
    // SAFETY: `first` is called while this call runs, with the pointer that is given here, and keeps nothing of it.
    unsafe { libc::dl_iterate_phdr(Some(first), (&raw mut segments).cast()) };
    segments
}

/// Takes the segments of the first object, which is the program (dl_iterate_phdr(3)).
///
/// # Safety
/// `info` is the C library's, good for this call; `into` is what [`segments`] gave.
unsafe extern "C" fn first(
    info: *mut libc::dl_phdr_info,
    _size: libc::size_t,
    into: *mut libc::c_void,
) -> libc::c_int {
    const STOP: libc::c_int = 1;
    // SAFETY: as the caller promises.
    let info = unsafe { &*info };
    // SAFETY: as the caller promises; nobody else has it while this is called.
    let into = unsafe { &mut *into.cast::<Segments>() };
    if info.dlpi_phdr.is_null() {
        return STOP;
    }
    // SAFETY: the C library says where the headers are and how many; they are part of the program, and constant.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
    let page = rustix::param::page_size();
    for header in headers {
        if header.p_type != libc::PT_LOAD || header.p_flags & libc::PF_W != 0 {
            continue;
        }
        let start = info.dlpi_addr as usize + header.p_vaddr as usize;
        let (from, to) = (start.next_multiple_of(page), (start + header.p_filesz as usize) / page * page);
        if from < to {
            into.push((from, to - from));
        }
    }
    STOP
}

#[cfg(test)]
mod tests {
    use super::*;

    static CONSTANT: [u8; 1 << 16] = [7; 1 << 16];

    /// KiB of the mapping that holds `address`, resident.
    fn resident(address: usize) -> u64 {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in smaps.lines() {
            let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
            let bounds = range.and_then(|(from, to)| {
                Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
            });
            if let Some(bounds) = bounds {
                here = bounds.contains(&address);
            } else if let Some(rss) = line.strip_prefix("Rss:")
                && here
            {
                return rss.trim().trim_end_matches(" kB").parse().unwrap();
            }
        }
        panic!("no mapping holds {address:#x}");
    }

    #[test]
    fn pages_go_and_come_back_as_they_were() {
        let sum = || std::hint::black_box(&CONSTANT).iter().map(|byte| u64::from(*byte)).sum::<u64>();
        assert_eq!(sum(), 7 << 16);
        let code = resident as *const () as usize;
        let before = resident(code);
        let_go_of_code().unwrap();
        assert!(resident(code) < before, "{before} KiB before");
        assert_eq!(sum(), 7 << 16);
        // What was relocated is where it was.
        let relocated: Vec<&str> = vec!["a", "b"];
        assert_eq!(format!("{relocated:?}"), r#"["a", "b"]"#);
    }
}
