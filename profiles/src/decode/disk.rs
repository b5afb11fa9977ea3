//! `disk NAME { source …; queues …; scheduler …; format …; readonly }`; its `driver` and `iothread-vq-mapping` have files of
//! their own.

use std::collections::BTreeMap;

use vmprof_document::{Line, Node, SourceSpan, Value, format_size};

use super::Reading;
use crate::profile::{Disk, DiskSource, Format, IoThreads, Mapping, Written};
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
        let (queues, queues_line, queue_size, packed) = match block.only("queues") {
            Some(node) => self.queues(node, vcpus),
            None => (vcpus, None, QUEUE_SIZE, false),
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
        let (logical, physical) = block.only("blockio").map(|node| self.blockio(node)).unwrap_or_default();
        let format = block.only("format").map(|node| self.filesystem(node));
        if let (Some(Some(format)), true) = (&format, readonly) {
            self.findings.push(
                self.findings
                    .error("format_readonly", "no filesystem can be made on a disk that may only be read")
                    .at(format.span, "made here")
                    .help("remove `readonly`, or remove `format` and bring a formatted file"),
            );
        }
        block.not_yet(&[
            ("throttle", "remove it; limit the I/O of the VM's cgroup with `io.max` instead"),
            ("serial", "remove it; the disk's name is its serial"),
        ]);
        block.finish();
        node.finish();
        if let (Some(mapping), Some(queues), Some(name)) = (&mapping, queues, &name) {
            validate::spread(self.findings, mapping, name, driver.aio, queues, iothreads);
        }
        Some(Disk {
            name: name?,
            source: source?,
            cache: driver.cache,
            aio: driver.aio,
            aio_fallback: driver.fallback,
            iopoll: driver.iopoll,
            discard: driver.discard,
            rerror: driver.rerror,
            werror: driver.werror,
            logical_block_bytes: logical,
            physical_block_bytes: physical,
            format: match format {
                Some(format) => Some(format?),
                None => None,
            },
            readonly,
            queues: queues?,
            queues_line,
            queue_size,
            packed,
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
                let problem = node.problem("missing_property", "`source` names neither a file nor a device");
                // A path without its key is the same mistake.
                let path = node.arg("a path").and_then(|v| Some((v, v.raw().as_string()?)));
                self.findings.push(match path {
                    Some((value, path)) => {
                        let key = if is_device(path) { "dev" } else { "file" };
                        problem.at(value.span(), "a path of what?").help(format!("write `{key}=\"{path}\"`"))
                    }
                    None => problem.help("write `file=\"data.raw\" size=\"8GiB\"` or `dev=\"/dev/…\"`"),
                });
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
                if is_device(path) {
                    self.findings.push(
                        value
                            .problem("device_as_file", format!("`{path}` is a device, and no file"))
                            .help(format!("write `source dev=\"{path}\"`, without a size")),
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

    /// How many, the line that says so, the size of each, and whether they are offered packed.
    fn queues(&self, node: Node<'a>, vcpus: Option<u32>) -> (Option<u32>, Option<Line>, u16, bool) {
        let line = node.line();
        let value = node.required_arg("how many", "write `queues auto` or `queues 4`");
        let (count, said) = match value {
            Some(v) if v.raw().is_integer() => {
                (v.u64(1..=MOST_QUEUES).and_then(|n| u32::try_from(n).ok()), Some(line))
            }
            Some(v) => (v.word(&[("auto", ())]).and(vcpus), None),
            None => (None, None),
        };
        let size = self.queue_size(&node);
        let packed = node.prop("ring").and_then(|v| v.word(&[("split", false), ("packed", true)]));
        node.finish();
        (count, said, size.unwrap_or(QUEUE_SIZE), packed.unwrap_or(false))
    }

    /// `format ext4 mount="/srv"`.
    fn filesystem(&self, node: Node<'a>) -> Option<Written<Format>> {
        let value = node.required_arg("the filesystem", "write `format ext4 mount=\"/srv\"`");
        let filesystem = value.and_then(|v| Some((v, v.word(&[("ext4", "ext4"), ("xfs", "xfs")])?)));
        let mount_at = node.prop("mount");
        let mount = mount_at.map(|v| self.mount(v));
        node.finish();
        let (at, filesystem) = filesystem?;
        let mount = match mount {
            Some(mount) => Some(mount?),
            None => None,
        };
        Some(self.written(at, Format { filesystem: filesystem.to_owned(), mount }))
    }

    fn mount(&self, value: Value<'a>) -> Option<String> {
        let path = value.text()?;
        let plain = path.trim_end_matches('/');
        let odd = |part: &str| matches!(part, "" | "." | "..");
        let right = path.starts_with('/') && !plain.is_empty() && !plain.split('/').skip(1).any(odd);
        if !right {
            let help = match path.starts_with('/') {
                true => "write the path of a directory below `/`, without `.` and `..`, such as \"/srv\""
                    .to_owned(),
                false => format!("write an absolute path: \"/{path}\""),
            };
            self.findings
                .push(value.problem("bad_mount", format!("`{path}` is no place to mount a disk")).help(help));
            return None;
        }
        Some(plain.to_owned())
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

/// Whether a path is a device's by its place. Files lie in /dev/shm.
fn is_device(path: &str) -> bool {
    path.starts_with("/dev/") && !path.starts_with("/dev/shm/")
}
