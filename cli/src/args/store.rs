//! The verbs about the store.

use std::path::PathBuf;

use clap::Subcommand;

use super::Format;

#[derive(Debug, Subcommand)]
pub enum StoreVerb {
    /// List the entries: what each is, its size, and how many keep it
    #[command(
        after_help = "DISK is what an entry takes of the disk, SIZE what can be read out of it: holes make the difference. \
        KEPT BY counts the recipes, toolsets and running VMs that keep it; `vmprof store why` names them.\n\n\
        Examples:\n  \
        vmprof store ls\n  \
        vmprof store ls --format json  vmprof.store/1, for programs"
    )]
    Ls {
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Print the store's own path, or where a built guest's image is
    #[command(after_help = "Examples:\n  \
        vmprof store path                   the store\n  \
        vmprof store path guests/fio.kdl    the guest's root image; status 1 where it is not built\n  \
        vmprof store path profiles/db.kdl   the same of a profile's guest")]
    Path {
        /// A profile or a guest's recipe, a KDL file
        file: Option<PathBuf>,
    },
    /// Read everything again and compare it with its name; status 102 where something is wrong
    #[command(after_help = "Examples:\n  \
        vmprof store verify            list every problem\n  \
        vmprof store verify --repair   and move what is damaged to STORE/damaged: the next build makes it anew")]
    Verify {
        /// Move what is damaged out of the way, so that the next build makes it anew; the status stays 102
        #[arg(long)]
        repair: bool,
    },
    /// Remove what nobody keeps: no recipe that exists, no toolset, no running VM
    #[command(
        after_help = "A recipe keeps what its last build made, and the packages its lock named, as long as its file exists. \
        A running VM keeps what it was started with. Builds may run meanwhile; gc waits for those that are under way.\n\n\
        Examples:\n  \
        vmprof store gc --dry-run    what would go, and how much that is\n  \
        vmprof store gc              remove it\n  \
        vmprof store gc --packages   packages too: images stay, and the next change of a recipe fetches again\n  \
        vmprof store gc --all        everything but what running VMs use"
    )]
    Gc {
        /// Change nothing: tell what would be removed
        #[arg(long)]
        dry_run: bool,
        /// Remove packages too, whichever lock names them
        #[arg(long)]
        packages: bool,
        /// Remove everything that no running VM uses: what recipes and toolsets keep as well
        #[arg(long)]
        all: bool,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
    /// Say who keeps an entry, and through what
    #[command(after_help = "Examples:\n  \
        vmprof store why fio         entries of that name: a package, an image\n  \
        vmprof store why 07feb369    the beginning of a digest\n  \
        vmprof store why \"$(vmprof store path guests/fio.kdl)\"")]
    Why {
        /// A path, an entry's name, the name of a package or an image, or the beginning of one digest
        entry: String,
        #[arg(long, value_enum, default_value = "text")]
        format: Format,
    },
}
