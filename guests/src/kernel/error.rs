//! Why something is no kernel to boot, or has not the modules that a guest needs.

use std::path::PathBuf;

use crate::error::FailureClass;

#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum KernelError {
    #[error(
        "`{package}` is not a kernel: no linux-image package with a kernel in it was found through its dependencies"
    )]
    #[diagnostic(
        code(vmprof::guest::not_a_kernel),
        help("name a kernel package such as linux-image-cloud-amd64")
    )]
    NotAKernel { package: String },

    #[error("{} is not a kernel to boot: {problem}", path.display())]
    #[diagnostic(
        code(vmprof::guest::kernel_file),
        help(
            "take a vmlinux or bzImage of x86-64, built with CONFIG_PVH and packed with gzip, xz, zstd, LZ4, bzip2 or lzma"
        )
    )]
    File { path: PathBuf, problem: String },

    #[error("the kernel of {package} is packed in a way vmprof does not know: {found}")]
    #[diagnostic(
        code(vmprof::guest::kernel_format),
        help("gzip, xz, zstd, LZ4, bzip2 and lzma kernels of x86-64 are understood")
    )]
    Format { package: String, found: String },

    #[error("module `{name}` is built for {found}, and the kernel is {release}")]
    #[diagnostic(
        code(vmprof::guest::foreign_module),
        help("name the directory lib/modules/{release} of the same kernel")
    )]
    ForeignModule { name: String, found: String, release: String },

    #[error("the kernel {release} has no module `{name}`, neither as a file nor built in{}", needed_by.as_ref().map(|by| format!(" (needed by `{by}`)")).unwrap_or_default())]
    #[diagnostic(
        code(vmprof::guest::no_module),
        help("check the name under `modules`, or choose a kernel package that has it")
    )]
    NoModule { name: String, release: String, needed_by: Option<String> },
}

impl KernelError {
    pub(crate) fn class(&self) -> FailureClass {
        match self {
            Self::NotAKernel { .. }
            | Self::File { .. }
            | Self::ForeignModule { .. }
            | Self::NoModule { .. } => FailureClass::Invalid,
            Self::Format { .. } => FailureClass::Failure,
        }
    }
}
