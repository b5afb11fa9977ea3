//! `disk NAME { source …; driver …; queues …; iothread-vq-mapping …; scheduler …; readonly }`.

use std::collections::BTreeMap;

use vmprof_document::{Node, SourceSpan, Value, format_size};

use super::Reading;
use crate::profile::{Aio, CacheMode, Disk, DiskSource, ErrorPolicy, IoThreads, Mapping, Written};
use crate::validate;

/// What virtio-blk's GET_ID can carry (virtio 1.3, 5.2.6): the disk's name is what the guest finds it by.
const SERIAL_BYTES: usize = 20;
const MOST_QUEUES: u64 = 256;
const SECTOR_BYTES: u64 = 512;

impl<'a> Reading<'a> {
    /// Reads one disk. `vcpus` is what `queues auto` becomes, where the profile could say it; `names` holds the
    /// disks before this one.
    pub(super) fn disk(
        &self,
        node: Node<'a>,
        vcpus: Option<u32>,
        iothreads: Option<&IoThreads>,
        names: &mut BTreeMap<String, SourceSpan>,
    ) -> Option<Disk> {
        let name = self.disk_name(&node, names);
        let block = node.children();
        let help = "write `source file=\"data.raw\" size=\"8GiB\"` or `source dev=\"/dev/…\"`";
        let source = block.required("source", help).and_then(|node| self.source(node));
        let driver = block.only("driver").map(|node| self.driver(node)).unwrap_or_default();
        let (queues, queues_line, queue_size) = match block.only("queues") {
            Some(node) => self.queues(node, vcpus),
            None => (vcpus, None, QUEUE_SIZE),
        };
        let mapping = match block.only("iothread-vq-mapping") {
            Some(node) => self.mapping(node, queues, iothreads),
            None => Some(Mapping::RoundRobin),
        };
        let (host_scheduler, guest_scheduler) = match block.only("scheduler") {
            Some(node) => self.scheduler(node),
            None => (None, None),
        };
        let readonly = block.only("readonly").and_then(|node| self.flag(node)).is_some();
        block.not_yet(&[
            ("format", "remove it; make the file system inside the guest, or bring a formatted file"),
            ("mount", "remove it; the guest's recipe says what is mounted"),
            ("throttle", "remove it"),
            ("rerror", "remove it; errors are reported to the guest"),
            ("werror", "remove it; errors are reported to the guest"),
            ("serial", "remove it; the disk's name is its serial"),
        ]);
        block.finish();
        node.finish();
        if let (Some(mapping), Some(queues)) = (&mapping, queues) {
            validate::spread(self.findings, mapping, name.as_ref()?, driver.aio, queues, iothreads);
        }
        Some(Disk {
            name: name?,
            source: source?,
            cache: driver.cache,
            aio: driver.aio,
            aio_fallback: None,
            discard: false,
            rerror: ErrorPolicy::default(),
            werror: ErrorPolicy::default(),
            logical_block_bytes: None,
            physical_block_bytes: None,
            format: None,
            readonly,
            queues: queues?,
            queues_line,
            queue_size,
            mapping: mapping?,
            host_scheduler,
            guest_scheduler,
        })
    }

    fn disk_name(
        &self,
        node: &Node<'a>,
        names: &mut BTreeMap<String, SourceSpan>,
    ) -> Option<Written<String>> {
        let value = node.required_arg("its name", "write `disk data { … }`")?;
        let name = self.name(value, SERIAL_BYTES)?;
        if name == "root" || name.starts_with("vmprof") {
            self.findings.push(
                value
                    .problem(
                        "reserved_name",
                        format!("`{name}` is the name of a disk that vmprof brings itself"),
                    )
                    .help("choose another name"),
            );
            return None;
        }
        if let Some(first) = names.insert(name.clone(), value.span()) {
            self.findings.push(
                self.findings
                    .error("duplicate_disk", format!("two disks are named `{name}`"))
                    .at(value.span(), "again here")
                    .at(first, "first here")
                    .help("the guest finds a disk by its name; rename one"),
            );
        }
        Some(self.written(value, name))
    }

    fn source(&self, node: Node<'a>) -> Option<DiskSource> {
        let file = node.prop("file").map(|v| (v, v.text()));
        let dev = node.prop("dev").map(|v| (v, v.text()));
        let size = node.prop("size");
        let bytes = size.and_then(|v| self.disk_size(v));
        let source = match (file, dev) {
            (Some(_), Some((dev, _))) => {
                self.findings
                    .push(dev.problem("two_sources", "a disk has a `file` and a `dev`").help("keep one of them"));
                None
            }
            (None, None) => {
                self.findings.push(
                    node.problem("missing_property", "`source` names neither a file nor a device")
                        .help("write `file=\"data.raw\" size=\"8GiB\"` or `dev=\"/dev/…\"`"),
                );
                None
            }
            (Some((value, path)), None) => path.and_then(|path| {
                if !path.starts_with('/') && path.split('/').any(|part| part == "..") {
                    self.findings.push(
                        value
                            .problem("path_escapes", format!("`{path}` leads out of the disks' directory"))
                            .help("a relative file lies in vmprof's state directory; write an absolute path for any other"),
                    );
                    return None;
                }
                Some(DiskSource::File { path: path.to_owned(), bytes })
            }),
            (None, Some((value, path))) => path.and_then(|path| {
                if !path.starts_with('/') {
                    self.findings.push(
                        value
                            .problem("relative_device", format!("the device `{path}` is not an absolute path"))
                            .help(format!("write \"/dev/{path}\"")),
                    );
                    return None;
                }
                if let Some(size) = size {
                    self.findings.push(
                        size.problem("size_of_device", "a device has the size it has")
                            .help("remove `size`; it belongs to `file`"),
                    );
                }
                Some(DiskSource::Device { path: path.to_owned() })
            }),
        };
        node.finish();
        source
    }

    fn disk_size(&self, value: Value<'a>) -> Option<u64> {
        let bytes = value.bytes()?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR_BYTES) {
            self.findings.push(
                value
                    .problem("bad_size", format!("a disk cannot have {}", format_size(bytes)))
                    .help("write a whole number of 512-byte sectors, such as \"8GiB\""),
            );
            return None;
        }
        Some(bytes)
    }

    fn driver(&self, node: Node<'a>) -> Driver {
        if let Some(value) = node.required_arg("the format", "write `driver raw`") {
            if value.string() == Some("qcow2") {
                self.findings.push(
                    value
                        .problem("not_supported_yet", "qcow2 images are not supported yet")
                        .help("convert it: `qemu-img convert -O raw IMAGE data.raw`"),
                );
            } else if value.string().is_some() {
                value.word(&[("raw", ())]);
            }
        }
        let cache_at = node.prop("cache");
        let cache = cache_at.and_then(|v| {
            v.word(&[
                ("none", CacheMode::None),
                ("directsync", CacheMode::Directsync),
                ("writeback", CacheMode::Writeback),
                ("writethrough", CacheMode::Writethrough),
                ("unsafe", CacheMode::Unsafe),
            ])
        });
        let (aio_at, io_at) = (node.prop("aio"), node.prop("io"));
        if let (Some(_), Some(io)) = (aio_at, io_at) {
            self.findings.push(
                io.problem("two_engines", "`aio` and `io` are two words for one thing")
                    .help("keep one of them"),
            );
        }
        let aio_at = aio_at.or(io_at);
        let aio = aio_at.and_then(|v| {
            v.word(&[("io_uring", Aio::IoUring), ("native", Aio::Native), ("threads", Aio::Threads)])
        });
        let discard_at = node.prop("discard");
        let unmap = discard_at.and_then(|v| v.word(&[("ignore", false), ("unmap", true)]));
        let driver = Driver { cache: cache.unwrap_or(CacheMode::None), aio: aio.unwrap_or(Aio::IoUring) };
        let place = |v: Option<Value<'a>>| v.map_or(node.name_span(), |v| v.span());
        validate::cache_and_aio(self.findings, driver.cache, place(cache_at), driver.aio, place(aio_at));
        if let (Some(value), Some(true)) = (discard_at, unmap) {
            self.findings.push(
                self.findings
                    .error(
                        "not_supported_yet",
                        "`discard=unmap` is not supported yet: the guest is offered no discard",
                    )
                    .at(value.span(), "asked here")
                    .help("write `discard=ignore`, or leave it out: the disk's file does not shrink"),
            );
        }
        node.finish();
        driver
    }

    fn queues(&self, node: Node<'a>, vcpus: Option<u32>) -> (Option<u32>, Option<u32>, u16) {
        let line = node.line();
        let value = node.required_arg("how many", "write `queues auto` or `queues 4`");
        let (count, said) = match value {
            Some(v) if v.raw().is_integer() => {
                (v.u64(1..=MOST_QUEUES).and_then(|n| u32::try_from(n).ok()), Some(line))
            }
            Some(v) => (v.word(&[("auto", ())]).and(vcpus), None),
            None => (None, None),
        };
        let size = node.prop("size").and_then(|v| {
            let size = v.u64(2..=1024)?;
            if !size.is_power_of_two() {
                self.findings.push(
                    v.problem("bad_queue_size", format!("a virtqueue cannot have {size} descriptors")).help(
                        format!("write a power of two, such as {}", size.next_power_of_two().min(1024)),
                    ),
                );
                return None;
            }
            u16::try_from(size).ok()
        });
        node.finish();
        (count, said, size.unwrap_or(QUEUE_SIZE))
    }

    fn scheduler(&self, node: Node<'a>) -> (Option<Written<String>>, Option<String>) {
        let words = [("none", "none"), ("mq-deadline", "mq-deadline"), ("bfq", "bfq"), ("kyber", "kyber")];
        let host = node.prop("host").and_then(|v| Some(self.written(v, v.word(&words)?.to_owned())));
        let guest = node.prop("guest").and_then(|v| v.word(&words)).map(str::to_owned);
        node.finish();
        (host, guest)
    }
}

/// Descriptors per virtqueue where the profile does not say: what QEMU and libvirt users know.
const QUEUE_SIZE: u16 = 256;

/// What `driver` says.
struct Driver {
    cache: CacheMode,
    aio: Aio,
}

impl Default for Driver {
    fn default() -> Self {
        Driver { cache: CacheMode::None, aio: Aio::IoUring }
    }
}
