//! Why a profile does not say what a domain says: the reason for each element that has no place in the language.

/// The reason for a child of `<domain>`, of `<devices>` or of another element, by its name.
pub(super) fn why(parent: &str, element: &str) -> &'static str {
    match (parent, element) {
        ("domain", "uuid" | "metadata" | "genid") => "a profile is known by its name alone",
        ("domain", "os") => {
            "vmprof boots the kernel of the guest's recipe; a loader and boot devices have no place there"
        }
        ("domain", "features" | "clock" | "pm") => {
            "vmprof's machine has what its guests need, and no switches for it"
        }
        ("domain", "on_poweroff" | "on_reboot" | "on_crash" | "on_lockfailure") => {
            "the VM ends when its guest does; `vmprof up` gives the exit status"
        }
        ("domain", "currentMemory" | "maxMemory") => {
            "the guest has all of its memory from the start: there is no balloon"
        }
        ("domain", "memtune" | "blkiotune" | "resource" | "throttlegroups") => {
            "vmprof sets no cgroup limits; start it inside a cgroup that has them"
        }
        ("domain", "seclabel" | "launchSecurity" | "keywrap") => "vmprof runs as its caller, without labels",
        ("domain", "vcpus") => "all vCPUs are there from the start",
        ("domain", "sysinfo" | "idmap" | "bootloader" | "perf" | "cpuset") => "a profile has no word for it",
        ("domain", "commandline" | "capabilities" | "deprecation" | "override") => {
            "it is for QEMU, and vmprof is the VM's own monitor"
        }
        ("domain", "defaultiothread") => "vmprof's emulator thread has no pool of its own",
        ("cputune", "vcpusched" | "iothreadsched" | "emulatorsched") => {
            "vmprof does not set scheduling classes"
        }
        ("cputune", "cachetune" | "memorytune") => "vmprof does not use resctrl",
        ("cputune", _) => "vmprof sets no CPU quotas; pins and whole cores are its means",
        ("memoryBacking", "source" | "access") => "guest memory is a shared memfd",
        ("memoryBacking", _) => "a profile has no word for it",
        ("numatune", "memnode") => "the guest has one node",
        ("cpu", "topology") => "the guest's sockets and cores follow from its vCPUs",
        ("cpu", "numa") => "the guest has one node",
        ("cpu", _) => "the guest sees the host's CPU as it is",
        ("devices", "emulator") => "vmprof is the VM's own monitor",
        ("devices", "controller" | "hub") => "buses follow from the devices",
        ("devices", "serial" | "console" | "parallel") => "every guest has one serial console",
        ("devices", "channel") => "vmprof has channels of its own to the guest's first process",
        ("devices", "graphics" | "video" | "sound" | "audio" | "input") => {
            "a guest of vmprof has no display, sound or input"
        }
        ("devices", "memballoon") => "there is no balloon: memory is the guest's from the start",
        ("devices", "rng") => "every guest has one virtio-rng, which gives what the host's getrandom(2) does",
        ("devices", "vsock") => {
            "every guest has one vsock, whose host side is a Unix socket and not an address"
        }
        ("devices", "tpm" | "smartcard" | "watchdog" | "panic" | "nvram" | "pstore" | "crypto") => {
            "vmprof has no such device"
        }
        ("devices", "hostdev" | "redirdev" | "redirfilter") => "vmprof hands no host devices through",
        ("devices", "filesystem" | "shmem" | "memory" | "iommu") => "vmprof has no such device",
        ("disk", "iotune" | "throttlefilters") => "vmprof does not throttle disks",
        ("disk", "boot") => "the guest's root is vmprof's own disk",
        ("disk", "encryption" | "auth") => "vmprof opens plain files and devices",
        ("disk", "shareable") => "a disk belongs to one VM",
        ("disk", "transient") => "what a guest writes stays; copy the file first",
        ("disk", "geometry" | "wwn" | "vendor" | "product") => "a virtio disk is found by its serial",
        ("disk", "backingStore" | "mirror") => "a raw disk has no layers",
        ("source", "encryption") => "vmprof opens plain files and devices",
        ("source", "slices") => "vmprof opens a file whole",
        ("source", "reservations" | "cookies" | "ssl") => "vmprof opens plain files and devices",
        ("source", "seclabel") => "vmprof runs as its caller, without labels",
        ("interface", "boot") => "vmprof does not boot from the network",
        ("interface", "bandwidth" | "vlan" | "virtualport" | "filterref" | "port") => {
            "set it on the host's side of the device"
        }
        _ => "a profile has no word for it",
    }
}
