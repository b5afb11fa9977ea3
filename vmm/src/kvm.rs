//! Whether this host's KVM can run a stock kernel, and if not, what exactly was found. Reading the host and deciding are two
//! functions, so that every kind of host can be decided on from a table.

use std::fs;
use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

/// The only API version there ever was since KVM became stable.
const API_VERSION: i32 = 12;
/// Local APIC ids have one byte, 255 means all processors, and the I/O APIC has an id, too.
const MOST_VCPUS: usize = 254;

/// What a machine of ours cannot do without.
const NEEDED: [(Cap, &str); 9] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::IoeventfdNoLength, "KVM_CAP_IOEVENTFD_NO_LENGTH"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// A KVM that runs stock kernels on the processor itself.
#[derive(Debug)]
pub struct Usable {
    pub kvm: Kvm,
    /// The most vCPUs that one machine can have here.
    pub most_vcpus: u32,
}

/// Why there is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoKvm {
    #[error("this host has no /dev/kvm{}", processor_note(*.processor_can))]
    NoDevice {
        /// The processor has VT-x or AMD-V: the kernel's module is what is missing.
        processor_can: bool,
    },
    #[error("/dev/kvm is there but may not be opened ({reason})")]
    Denied { reason: String },
    #[error("/dev/kvm is there but cannot be opened ({reason})")]
    Unopenable { reason: String },
    #[error(
        "/dev/kvm is there, but behind it is PVM, which interprets a stock kernel instruction by instruction: \
         the processor shows neither VT-x nor AMD-V"
    )]
    Pvm,
    #[error(
        "/dev/kvm is there, but the processor shows neither VT-x nor AMD-V, which a stock kernel needs to run at speed"
    )]
    NoVirtualisation,
    #[error(
        "/dev/kvm speaks version {found} of its interface, and version {API_VERSION} is the one in use since 2007"
    )]
    Version { found: i32 },
    #[error("this host's KVM lacks {}", .capabilities.join(", "))]
    Lacking { capabilities: Vec<&'static str> },
}

fn processor_note(can: bool) -> &'static str {
    if can { ", though its processor has the extensions for it" } else { "" }
}

/// What was found on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub device: Device,
    /// `vmx` or `svm` among the flags in /proc/cpuinfo.
    pub hardware: bool,
    /// /sys/module/kvm_pvm is there.
    pub pvm: bool,
}

/// What opening /dev/kvm came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    Missing,
    Denied(String),
    Failed(String),
    Open { version: i32, lacking: Vec<&'static str> },
}

/// Looks at this host.
pub fn probe() -> Result<Usable, NoKvm> {
    let (facts, kvm) = look(Path::new("/"));
    decide(&facts)?;
    let kvm = kvm.ok_or(NoKvm::NoDevice { processor_can: facts.hardware })?;
    let most_vcpus = kvm.get_max_vcpus().min(MOST_VCPUS) as u32;
    Ok(Usable { kvm, most_vcpus })
}

/// Opens /dev/kvm whatever it can run: for bare-metal guests in tests, which an interpreter runs too.
pub fn open_any() -> Result<Usable, NoKvm> {
    let (mut facts, kvm) = look(Path::new("/"));
    facts.hardware = true;
    decide(&facts)?;
    let kvm = kvm.ok_or(NoKvm::NoDevice { processor_can: false })?;
    let most_vcpus = kvm.get_max_vcpus().min(MOST_VCPUS) as u32;
    Ok(Usable { kvm, most_vcpus })
}

/// Decides on a host by what was found there.
pub fn decide(facts: &Facts) -> Result<(), NoKvm> {
    match &facts.device {
        Device::Missing => Err(NoKvm::NoDevice { processor_can: facts.hardware }),
        Device::Denied(reason) => Err(NoKvm::Denied { reason: reason.clone() }),
        Device::Failed(reason) => Err(NoKvm::Unopenable { reason: reason.clone() }),
        // The flags decide, not the module: a kernel with PVM built in may run on hardware that has no need of it.
        Device::Open { .. } if !facts.hardware && facts.pvm => Err(NoKvm::Pvm),
        Device::Open { .. } if !facts.hardware => Err(NoKvm::NoVirtualisation),
        Device::Open { version, .. } if *version != API_VERSION => Err(NoKvm::Version { found: *version }),
        Device::Open { lacking, .. } if !lacking.is_empty() => {
            Err(NoKvm::Lacking { capabilities: lacking.clone() })
        }
        Device::Open { .. } => Ok(()),
    }
}

fn look(root: &Path) -> (Facts, Option<Kvm>) {
    let cpuinfo = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let hardware = has_extensions(&cpuinfo);
    let pvm = root.join("sys/module/kvm_pvm").is_dir();
    let path = root.join("dev/kvm");
    let (device, kvm) = match open(&path) {
        Ok(kvm) => {
            let lacking =
                NEEDED.iter().filter(|(cap, _)| !kvm.check_extension(*cap)).map(|(_, name)| *name).collect();
            (Device::Open { version: kvm.get_api_version(), lacking }, Some(kvm))
        }
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => (Device::Missing, None),
            io::ErrorKind::PermissionDenied => (Device::Denied(error.to_string()), None),
            _ if matches!(error.raw_os_error(), Some(ENODEV | ENXIO)) => (Device::Missing, None),
            _ => (Device::Failed(error.to_string()), None),
        },
    };
    (Facts { device, hardware, pvm }, kvm)
}

/// A device node whose driver is not there.
const ENXIO: i32 = 6;
const ENODEV: i32 = 19;

fn open(path: &Path) -> io::Result<Kvm> {
    let text = path.to_str().and_then(|text| std::ffi::CString::new(text).ok());
    let text = text.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    Kvm::new_with_path(text).map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Whether a /proc/cpuinfo shows VT-x or AMD-V.
fn has_extensions(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| key.trim() == "flags")
        .any(|(_, flags)| flags.split_ascii_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open_with(lacking: Vec<&'static str>) -> Device {
        Device::Open { version: API_VERSION, lacking }
    }

    #[test]
    fn each_kind_of_host_is_told_apart() {
        let denied = "Permission denied".to_owned();
        let table = [
            (open_with(vec![]), true, false, None),
            (open_with(vec![]), true, true, None),
            (open_with(vec![]), false, true, Some(NoKvm::Pvm)),
            (open_with(vec![]), false, false, Some(NoKvm::NoVirtualisation)),
            (Device::Missing, false, false, Some(NoKvm::NoDevice { processor_can: false })),
            (Device::Missing, true, false, Some(NoKvm::NoDevice { processor_can: true })),
            (Device::Denied(denied.clone()), true, false, Some(NoKvm::Denied { reason: denied.clone() })),
            // What may not be opened is said first: the user can mend it, and then learns the rest.
            (Device::Denied(denied.clone()), false, true, Some(NoKvm::Denied { reason: denied })),
            (Device::Open { version: 11, lacking: vec![] }, true, false, Some(NoKvm::Version { found: 11 })),
            (
                open_with(vec!["KVM_CAP_IRQFD"]),
                true,
                false,
                Some(NoKvm::Lacking { capabilities: vec!["KVM_CAP_IRQFD"] }),
            ),
        ];
        for (device, hardware, pvm, expected) in table {
            let facts = Facts { device, hardware, pvm };
            assert_eq!(decide(&facts).err(), expected, "{facts:?}");
        }
    }

    #[test]
    fn extensions_are_whole_words_among_the_flags() {
        assert!(has_extensions("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(has_extensions("flags : svm\n"));
        assert!(!has_extensions("flags : fpu svm_lock vmxfake\nmodel name : svm\n"));
        assert!(!has_extensions(""));
    }

    #[test]
    fn a_tree_without_the_device_is_a_host_without_kvm() {
        let root = tempfile::tempdir().unwrap();
        let (facts, kvm) = look(root.path());
        assert_eq!(facts.device, Device::Missing);
        assert!(kvm.is_none());
    }
}
