//! `driver raw cache=… aio=… fallback=… iopoll=… discard=… rerror=… werror=…`, in libvirt's and QEMU's words, and the block sizes that
//! the guest is shown.

use vmprof_document::{Node, Value};

use super::Reading;
use crate::profile::{Aio, CacheMode, ErrorPolicy};
use crate::validate;

/// The words of `cache`.
pub(super) const CACHE: [(&str, CacheMode); 5] = [
    ("none", CacheMode::None),
    ("directsync", CacheMode::Directsync),
    ("writeback", CacheMode::Writeback),
    ("writethrough", CacheMode::Writethrough),
    ("unsafe", CacheMode::Unsafe),
];
/// The words of `aio`.
pub(super) const AIO: [(&str, Aio); 3] =
    [("io_uring", Aio::IoUring), ("native", Aio::Native), ("threads", Aio::Threads)];
/// The words of `iopoll`.
const IOPOLL: [(&str, bool); 2] = [("off", false), ("on", true)];
/// The words of `discard`.
pub(super) const DISCARD: [(&str, bool); 2] = [("ignore", false), ("unmap", true)];
/// The words of `rerror`.
pub(super) const RERROR: [(&str, ErrorPolicy); 3] =
    [("report", ErrorPolicy::Report), ("ignore", ErrorPolicy::Ignore), ("stop", ErrorPolicy::Stop)];
/// The words of `werror`.
pub(super) const WERROR: [(&str, ErrorPolicy); 4] = [
    ("report", ErrorPolicy::Report),
    ("ignore", ErrorPolicy::Ignore),
    ("stop", ErrorPolicy::Stop),
    ("enospc", ErrorPolicy::Enospc),
];

/// What `driver` says.
pub(super) struct Driver {
    pub(super) cache: CacheMode,
    pub(super) aio: Aio,
    pub(super) fallback: Option<Aio>,
    pub(super) iopoll: bool,
    pub(super) discard: bool,
    pub(super) rerror: ErrorPolicy,
    pub(super) werror: ErrorPolicy,
}

impl Default for Driver {
    fn default() -> Self {
        Driver {
            cache: CacheMode::None,
            aio: Aio::IoUring,
            fallback: None,
            iopoll: false,
            discard: false,
            rerror: ErrorPolicy::default(),
            werror: ErrorPolicy::default(),
        }
    }
}

impl<'a> Reading<'a> {
    pub(super) fn driver(&self, node: Node<'a>) -> Driver {
        if let Some(value) = node.required_arg("the format", "write `driver raw`") {
            self.image_format(value);
        }
        let cache_at = node.prop("cache");
        let cache = cache_at.and_then(|v| v.word(&CACHE)).unwrap_or(CacheMode::None);
        let (aio_at, io_at) = (node.prop("aio"), node.prop("io"));
        if let (Some(_), Some(io)) = (aio_at, io_at) {
            self.findings.push(
                io.problem("two_engines", "`aio` and `io` are two words for one thing")
                    .help("keep one of them"),
            );
        }
        let aio_at = aio_at.or(io_at);
        let aio = aio_at.and_then(|v| v.word(&AIO)).unwrap_or(Aio::IoUring);
        let fallback_at = node.prop("fallback");
        let fallback = fallback_at.and_then(|v| Some((v, v.word(&AIO)?)));
        let word = |key: &'static str, words: &[(&str, ErrorPolicy)]| {
            node.prop(key).and_then(|v| v.word(words)).unwrap_or_default()
        };
        let iopoll_at = node.prop("iopoll").filter(|v| v.word(&IOPOLL) == Some(true));
        let discard = node.prop("discard").and_then(|v| v.word(&DISCARD)).unwrap_or(false);
        let (rerror, werror) = (word("rerror", &RERROR), word("werror", &WERROR));
        let place = |v: Option<Value<'a>>| v.map_or(node.name_span(), |v| v.span());
        validate::cache_and_aio(self.findings, cache, place(cache_at), aio, place(aio_at), "aio");
        if let Some((value, fallback)) = fallback {
            if fallback == aio {
                self.findings.push(
                    value
                        .problem("fallback_same", "the fallback is the engine that it stands in for")
                        .help("name another engine, or remove `fallback`: then a host without the engine is refused"),
                );
            }
            validate::native_needs_direct(
                self.findings,
                cache,
                place(cache_at),
                fallback,
                value.span(),
                "fallback",
            );
        }
        if let Some(value) = iopoll_at {
            let engines = [(aio, place(aio_at), "aio")].into_iter();
            let engines = engines.chain(fallback.map(|(value, aio)| (aio, value.span(), "fallback")));
            validate::iopoll(self.findings, value.span(), (cache, place(cache_at)), engines);
        }
        node.finish();
        let (fallback, iopoll) = (fallback.map(|(_, aio)| aio), iopoll_at.is_some());
        Driver { cache, aio, fallback, iopoll, discard, rerror, werror }
    }

    fn image_format(&self, value: Value<'a>) {
        if value.raw().as_string() == Some("qcow2") && !value.poisoned() {
            self.findings.push(
                value
                    .problem("not_supported_yet", "qcow2 images are not supported yet")
                    .help("convert it: `qemu-img convert -O raw IMAGE data.raw`"),
            );
        } else if value.string().is_some() {
            value.word(&[("raw", ())]);
        }
    }

    /// `blockio logical=512 physical=4096`, bytes.
    pub(super) fn blockio(&self, node: Node<'a>) -> (Option<u32>, Option<u32>) {
        let logical_at = node.prop("logical");
        let physical_at = node.prop("physical");
        if logical_at.is_none() && physical_at.is_none() && !node.has_unread_props() {
            self.findings.push(
                node.problem("missing_property", "`blockio` names no block size")
                    .help("write `logical=512`, `physical=4096` or both, in bytes"),
            );
        }
        let logical = logical_at.and_then(|v| self.block_bytes(v));
        let physical = physical_at.and_then(|v| self.block_bytes(v));
        if let (Some(l), Some(p), Some(l_at), Some(p_at)) = (logical, physical, logical_at, physical_at)
            && l > p
        {
            self.findings.push(
                self.findings
                    .error(
                        "bad_block_size",
                        format!("a logical block of {l} bytes does not fit a physical one of {p}"),
                    )
                    .at(l_at.span(), "addressed in these")
                    .at(p_at.span(), "written in these")
                    .help(format!("write `physical={l}`, or a smaller `logical`")),
            );
        }
        node.finish();
        (logical, physical)
    }

    fn block_bytes(&self, value: Value<'a>) -> Option<u32> {
        // A size with its unit is how every other number of bytes is written, and libvirt writes this one without.
        if let Some(text) = value.raw().as_string().filter(|_| !value.poisoned())
            && let Ok(bytes) = vmprof_document::parse_size(text)
        {
            self.findings.push(
                value
                    .problem(
                        "wrong_type",
                        format!("`{}` is a bare number of bytes, as in libvirt", value.what()),
                    )
                    .help(format!("write `{}={bytes}`", value.what())),
            );
            return None;
        }
        let bytes = value.u64(512..=65536)?;
        if !bytes.is_power_of_two() {
            self.findings.push(
                value
                    .problem("bad_block_size", format!("a block cannot have {bytes} bytes"))
                    .help(format!("write a power of two, such as {}", bytes.next_power_of_two())),
            );
            return None;
        }
        u32::try_from(bytes).ok()
    }
}
