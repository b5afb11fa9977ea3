//! Words of systemd's units, of Docker and Compose files, of cloud-init and of other image builders, and what to write here
//! instead.

use vmprof_document::{Foreign, Kind};

const fn node(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Node, within, word, write }
}

const fn key(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Property, within, word, write }
}

const fn value(within: &'static str, word: &'static str, write: &'static str) -> Foreign {
    Foreign { kind: Kind::Value, within, word, write }
}

const EXEC: &str = "write `exec \"/usr/bin/program\" \"argument\"`";
const AFTER: &str =
    "write `after \"NAME\"`: that service is ready before this one starts, and stops after it";
const ENV: &str = "write `env { NAME \"value\" }`";
const KIND: &str =
    "write `kind once` for oneshot, `ready notify` for notify, and nothing for simple and exec";
const WANTED: &str = "remove it: every service of the guest is started, in the order that `after` gives";
const DIRECTORY: &str = "write `directory \"/run/name\" owner=\"user:group\"`: made at every start";
const READY: &str = "write `ready command \"/usr/bin/program\" timeout=\"60s\"`";
const STOP: &str = "write `stop signal=SIGINT timeout=\"30s\"`";
const RESTART: &str = "write `restart on-failure delay=\"1s\" most=5 within=\"60s\"`";
const MOUNT: &str = "write `mount \"/path\" disk=NAME` with a disk of the profile, or `tmpfs=\"512MiB\"`";
const PORTS: &str = "write it in the profile: `net passt { forward tcp host=8080 guest=80 }`";
const FILE: &str = "write `file \"/path\" from=\"source\"`, or its text";
const RUN: &str = "write `run \"/usr/bin/program\" \"argument\"`, or a `service` that `exec`s it";
const NO_SHELL: &str = "remove it: nothing runs while an image is built; declare files, users and packages";
const UNITS: &str = "write it within `init systemd { … }`";
const SCRIPT: &str = "write it with `prepare`, or in a script that `exec` names";
const ONE_USER: &str = "write one `user NAME uid=101` for each";
const NO_LIMITS: &str = "write the limit into a script that `exec` names; the profile limits the whole guest";
const NO_TIMES: &str = "remove it: all times in the image are 0";

/// A word for this very node wins over one for any.
pub(super) static WORDS: &[Foreign] = &[
    // systemd.service(5), systemd.exec(5), systemd.unit(5)
    node("service", "ExecStart", EXEC),
    node("service", "ExecStartPre", "write `prepare \"/usr/bin/program\"`: run before `exec`, to its end"),
    node("service", "ExecStartPost", READY),
    node("service", "ExecStop", STOP),
    node("service", "ExecStopPost", SCRIPT),
    node("service", "ExecReload", "remove it: `vmprof exec NAME -- kill -HUP …` does it when it is wanted"),
    node("service", "ExecCondition", SCRIPT),
    node("service", "Type", KIND),
    node("service", "RemainAfterExit", "write `kind once`: it counts as ready after its end"),
    node("service", "Group", "write `user NAME group=GROUP`"),
    node(
        "service",
        "SupplementaryGroups",
        "write `groups=\"adm,ssl-cert\"` of the guest's `user NAME uid=101`",
    ),
    node("service", "WorkingDirectory", "write `working-directory \"/srv\"`"),
    node("service", "working_dir", "write `working-directory \"/srv\"`"),
    node("service", "workdir", "write `working-directory \"/srv\"`"),
    node("service", "cwd", "write `working-directory \"/srv\"`"),
    node("service", "Environment", ENV),
    node("service", "EnvironmentFile", ENV),
    node("service", "env_file", ENV),
    node("service", "PassEnvironment", ENV),
    node("service", "Requires", AFTER),
    node("service", "Requisite", AFTER),
    node("service", "Wants", AFTER),
    node("service", "BindsTo", AFTER),
    node("service", "PartOf", AFTER),
    node("service", "depends_on", AFTER),
    node("service", "needs", AFTER),
    node("service", "Before", "write `after` in the other service"),
    node("service", "RestartSec", RESTART),
    node("service", "StartLimitBurst", RESTART),
    node("service", "StartLimitInterval", RESTART),
    node("service", "StartLimitIntervalSec", RESTART),
    node("service", "TimeoutStartSec", "write `ready timeout=\"60s\"`"),
    node("service", "TimeoutStopSec", STOP),
    node("service", "TimeoutSec", "write `ready timeout=\"60s\"` and `stop timeout=\"30s\"`"),
    node("service", "KillSignal", STOP),
    node("service", "KillMode", "remove it: after its time the whole process group is killed"),
    node("service", "stop_signal", STOP),
    node("service", "stop_grace_period", STOP),
    node("service", "RuntimeDirectory", DIRECTORY),
    node("service", "StateDirectory", DIRECTORY),
    node("service", "CacheDirectory", DIRECTORY),
    node("service", "LogsDirectory", DIRECTORY),
    node("service", "StandardOutput", "remove it: `vmprof logs` has what a service writes"),
    node("service", "StandardError", "remove it: `vmprof logs` has what a service writes"),
    node("service", "WantedBy", WANTED),
    node("service", "RequiredBy", WANTED),
    node("service", "Install", WANTED),
    node("service", "enable", WANTED),
    node("service", "enabled", WANTED),
    node("service", "Unit", "write what it says right within `service NAME { … }`"),
    node("service", "Service", "write what it says right within `service NAME { … }`"),
    node("service", "Description", "write it as a comment: `// …`"),
    node("service", "LimitNOFILE", NO_LIMITS),
    node("service", "MemoryMax", NO_LIMITS),
    node("service", "CPUQuota", NO_LIMITS),
    node("service", "ulimits", NO_LIMITS),
    key("service", "Type", KIND),
    key("service", "enable", WANTED),
    key("service", "after", AFTER),
    key("service", "user", "write `user NAME` in the service's braces"),
    // Docker and Compose
    node("service", "command", EXEC),
    node("service", "entrypoint", EXEC),
    node("service", "run", EXEC),
    node("service", "healthcheck", READY),
    node("service", "environment", ENV),
    node(
        "service",
        "image",
        "write `root oci=\"image\" digest=\"sha256:…\"` in the guest; a guest has one root",
    ),
    node("service", "build", NO_SHELL),
    node("service", "ports", PORTS),
    node("service", "expose", PORTS),
    node("service", "volumes", "write `mount` in the guest: `mount \"/path\" disk=NAME`"),
    node("service", "mount", "write `mount` in the guest, not in a service"),
    node("service", "tmpfs", "write `mount \"/path\" tmpfs=\"512MiB\"` in the guest"),
    node("service", "networks", PORTS),
    node("guest", "services", "write one `service NAME { … }` for each"),
    node("guest", "environment", ENV),
    node("guest", "volumes", MOUNT),
    node("guest", "volume", MOUNT),
    node("guest", "mounts", MOUNT),
    node("guest", "disk", "write the disk in the profile, and here `mount \"/path\" disk=NAME`"),
    node("guest", "tmpfs", "write `mount \"/path\" tmpfs=\"512MiB\"`"),
    node("guest", "ports", PORTS),
    node("guest", "EXPOSE", PORTS),
    node("guest", "net", PORTS),
    node("guest", "command", RUN),
    node("guest", "CMD", RUN),
    node("guest", "ENTRYPOINT", RUN),
    node("guest", "exec", RUN),
    node("guest", "FROM", "write `root oci=\"image\" digest=\"sha256:…\"`, or packages"),
    node("guest", "oci", "write `root oci=\"image\" digest=\"sha256:…\"`"),
    node("guest", "tar", "write `root tar=\"rootfs.tar\" sha256=\"…\"`"),
    node("guest", "COPY", FILE),
    node("guest", "ADD", FILE),
    node("guest", "WORKDIR", "write `working-directory \"/srv\"` in a service"),
    node("guest", "healthcheck", "write `ready` in a service"),
    node("guest", "restart", "write `restart on-failure` in a service"),
    // cloud-init
    node("guest", "write_files", FILE),
    node("guest", "runcmd", "write a `service NAME { kind once; exec … }`"),
    node("guest", "bootcmd", "write a `service NAME { kind once; exec … }`"),
    node("guest", "users", ONE_USER),
    node("guest", "groups", "write one `group NAME gid=110` for each"),
    node("guest", "fs_setup", "write `mount \"/path\" disk=NAME format=ext4`: made where the disk is empty"),
    node("guest", "ssh_authorized_keys", "write `file \"/root/.ssh/authorized_keys\" mode=0o600 \"…\"`"),
    node("guest", "fqdn", "write `hostname \"db-1\"`"),
    node(
        "guest",
        "timezone",
        "write `link \"/etc/localtime\" to=\"/usr/share/zoneinfo/…\"`, with the package tzdata",
    ),
    // mkosi, mmdebstrap, NixOS and others
    node("guest", "release", "write `distribution debian suite=bookworm`"),
    node("guest", "suite", "write `distribution debian suite=bookworm`"),
    node("guest", "arch", "write `distribution debian suite=bookworm arch=amd64`"),
    node("guest", "include", "write `extends \"base.kdl\"`"),
    node("guest", "imports", "write `extends \"base.kdl\"`"),
    node("guest", "package", "write `packages NAME`"),
    node("guest", "install", "write `packages NAME`"),
    node("guest", "files", "write one `file \"/path\" \"text\"` for each"),
    node("guest", "directories", "write one `directory \"/path\"` for each"),
    node("guest", "symlink", "write `link \"/path\" to=\"target\"`"),
    node("guest", "links", "write one `link \"/path\" to=\"target\"` for each"),
    node("guest", "cmdline", "write `kernel package=… cmdline=\"…\"`"),
    node("guest", "format", "write `image root { format squashfs; }`"),
    node("guest", "exclude", "write `image root { exclude \"/path\"; }`"),
    node("guest", "overlay", "remove it: a root that is not ext4 has a writable overlay in memory"),
    node("guest", "ready", "write `ready` in a service"),
    node("guest", "systemd", "write `init systemd { enable \"ssh.service\"; }`"),
    node("guest", "enable", UNITS),
    node("guest", "mask", UNITS),
    node("guest", "swap", "remove it: the profile gives the guest its memory"),
    node("guest", "memory", "write it in the profile: `memory \"2GiB\"`"),
    node("guest", "vcpu", "write it in the profile: `vcpu 4`"),
    node(
        "init",
        "disable",
        "leave it out: only what `enable` names is enabled; `mask` keeps a unit from starting",
    ),
    node("image", "epoch", NO_TIMES),
    node(
        "image",
        "owner",
        "remove it: owners are the packages' own, and those that `owner=` of a path names",
    ),
    node("image", "compression", "write `format squashfs compression=lz4`"),
    node("image", "size", "write `format ext4 size=\"8GiB\"`"),
    node("sysctl", "sysctl", "write the settings themselves: `vm.swappiness 1`"),
    key("prepare", "user", "write `as=NAME`"),
    key("exec", "user", "write `user NAME` in the service's braces"),
    key("exec", "as", "write `user NAME` in the service's braces; `as=` is of `prepare`"),
    key("ready", "command", "write `ready command \"/usr/bin/program\" \"argument\"`"),
    key("ready", "port", "write `tcp=5432`"),
    key("ready", "socket", "write `unix=\"/run/name\"`"),
    key("ready", "within", "write `timeout=\"60s\"`"),
    key("stop", "within", "write `timeout=\"30s\"`"),
    key("mount", "fstype", "write `format=ext4`"),
    key("mount", "type", "write `format=ext4`, or `tmpfs=\"512MiB\"`"),
    key("mount", "dev", "write `disk=NAME`, a disk of the profile"),
    key("mount", "device", "write `disk=NAME`, a disk of the profile"),
    key("mount", "size", "write `tmpfs=\"512MiB\"`"),
    key("file", "content", "write the text as second argument: `file \"/path\" \"text\"`"),
    key("file", "text", "write it as second argument: `file \"/path\" \"text\"`"),
    key("file", "source", "write `from=\"path\"`"),
    key("file", "src", "write `from=\"path\"`"),
    key("file", "permissions", "write `mode=0o644`"),
    key("file", "perm", "write `mode=0o644`"),
    key("file", "user", "write `owner=\"user:group\"`"),
    key("file", "group", "write `owner=\"user:group\"`"),
    key("directory", "user", "write `owner=\"user:group\"`"),
    key("directory", "group", "write `owner=\"user:group\"`"),
    key("link", "target", "write `to=\"target\"`"),
    key("user", "id", "write `uid=101`"),
    key("user", "group", "write `gid=104`, the number of the group"),
    key("group", "id", "write `gid=110`"),
    key("kernel", "args", "write `cmdline=\"…\"`"),
    key("distribution", "release", "write `suite=bookworm`"),
    key("distribution", "version", "write `suite=bookworm`"),
    key("distribution", "mirror", "remove it: packages come from the archive that the host's apt uses"),
    key("distribution", "components", "remove it: packages come from main alone"),
    value(
        "distribution",
        "ubuntu",
        "write `distribution debian suite=bookworm`, or take the root from an archive: `root tar=…`",
    ),
    value(
        "distribution",
        "fedora",
        "write `distribution debian suite=bookworm`, or take the root from an archive: `root tar=…`",
    ),
    value(
        "distribution",
        "alpine",
        "write `distribution debian suite=bookworm`, or take the root from an archive: `root tar=…`",
    ),
    value("arch", "x86_64", "write `arch=amd64`, Debian's name of it"),
    value("arch", "x86-64", "write `arch=amd64`, Debian's name of it"),
    value("kind", "oneshot", "write `kind once`"),
    value("kind", "simple", "write `kind daemon`, or leave it out"),
    value("kind", "exec", "write `kind daemon`, or leave it out"),
    value("kind", "notify", "write `ready notify`; the kind is daemon"),
    value("kind", "forking", "write the program's option that keeps it in the foreground, and `kind daemon`"),
    value("restart", "no", "write `restart never`, or leave it out"),
    value("restart", "unless-stopped", "write `restart always`: a stopped guest starts nothing anyway"),
    value("restart", "on-abnormal", "write `restart on-failure`"),
    value("restart", "on-abort", "write `restart on-failure`"),
    value("restart", "on-watchdog", "write `restart on-failure`"),
    value("signal", "TERM", "write `signal=SIGTERM`"),
    value("signal", "INT", "write `signal=SIGINT`"),
    value("signal", "QUIT", "write `signal=SIGQUIT`"),
    value("signal", "HUP", "write `signal=SIGHUP`"),
    value("signal", "KILL", "write `signal=SIGKILL`"),
    value("format", "ext2", "write `format=ext4`"),
    value("format", "ext3", "write `format=ext4`"),
    value("format", "btrfs", "write `ext4` or `xfs`"),
    value("format", "qcow2", "write `squashfs`, `erofs` or `ext4`: the image is a raw disk"),
    value("format", "raw", "write `squashfs`, `erofs` or `ext4`: the image is a raw disk"),
    value("compression", "gzip", "write `compression=lz4`, or zstd for a squashfs"),
    value("compression", "xz", "write `compression=lz4`, or zstd for a squashfs"),
    value("compression", "lz4hc", "write `compression=lz4`"),
    value("init", "sysvinit", "write `init vmprof`, or leave it out"),
    value("init", "openrc", "write `init vmprof`, or leave it out"),
    value("init", "tini", "write `init vmprof`, or leave it out"),
];
