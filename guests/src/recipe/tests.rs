use super::*;
use crate::error::GuestError;

fn parse(text: &str) -> Result<Recipe> {
    Recipe::parse(Path::new("guests/trial.kdl"), text)
}

/// Codes of all problems, without their area.
fn codes(text: &str) -> Vec<String> {
    match parse(text) {
        Err(GuestError::Document(problems)) => {
            problems.iter().map(|p| p.code().trim_start_matches("vmprof::guest::").to_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

const HEAD: &str =
    "guest trial {\n distribution debian suite=bookworm arch=amd64\n kernel package=linux-image-x\n";

fn codes_in(body: &str) -> Vec<String> {
    codes(&format!("{HEAD}{body}\n}}\n"))
}

#[test]
fn a_whole_recipe_is_read_with_everything_in_it() {
    let recipe = parse(
        r#"/- kdl-version 2
        guest my_guest {
            description "tries everything"
            distribution debian suite=trixie arch=amd64
            lock "other.lock.kdl"
            packages zsh "0ad" recommends=#true { bash; without perl }
            kernel package=linux-image-amd64 cmdline="mitigations=off"
            modules nvme-tcp dm_mod
            modules null_blk
            hostname "db-1"
            env { EDITOR "vi"; PATH "/usr/bin" }
            directory "/srv/data" mode=0o700
            link "/usr/bin/vi" to="busybox"
            file "/etc/motd" "hello"
            file "/usr/bin/tour" mode=0o755 """
                #!/bin/sh
                echo hello
                """
            file "/etc/blob" from="data/blob.bin"
            run "/usr/bin/tour" "--all"
            image root {
                format squashfs compression=zstd
                exclude "/usr/share/man" "/usr/share/doc"
                exclude "/usr/share/doc"
            }
        }"#,
    )
    .unwrap();
    assert_eq!(recipe.name, "my_guest");
    assert_eq!(recipe.conduct.hostname, "db-1");
    assert_eq!(recipe.lock_path, Path::new("guests/other.lock.kdl"));
    assert_eq!(recipe.packages.names, ["0ad", "bash", "zsh"]);
    assert_eq!(recipe.packages.without, ["perl"]);
    assert!(recipe.packages.recommends);
    assert_eq!(recipe.cmdline.as_deref(), Some("mitigations=off"));
    assert_eq!(recipe.modules, ["nvme-tcp", "dm_mod", "null_blk"]);
    let env: Vec<_> = recipe.conduct.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(env, ["EDITOR=vi", "HOME=/root", "PATH=/usr/bin", "TERM=linux"]);
    assert_eq!(recipe.conduct.run, ["/usr/bin/tour", "--all"]);
    let exclude = vec!["/usr/share/doc".to_owned(), "/usr/share/man".to_owned()];
    assert_eq!(
        recipe.image,
        Image::Root { format: Format::Squashfs { compression: Compression::Zstd }, exclude }
    );
    let text = |path: &str| recipe.placed.iter().find(|p| p.path == path).map(|p| p.what.clone());
    assert_eq!(text("/etc/motd"), Some(Place::Text { mode: 0o644, text: "hello\n".to_owned() }));
    assert_eq!(
        text("/usr/bin/tour"),
        Some(Place::Text { mode: 0o755, text: "#!/bin/sh\necho hello\n".to_owned() })
    );
    assert_eq!(text("/etc/blob"), Some(Place::From { mode: 0o644, source: "guests/data/blob.bin".into() }));
    assert_eq!(text("/srv/data"), Some(Place::Directory { mode: 0o700 }));
}

#[test]
fn what_is_left_out_has_a_plain_default() {
    let recipe = parse(&format!("{HEAD} run \"/x\"\n}}")).unwrap();
    assert_eq!(recipe.lock_path, Path::new("guests/trial.lock.kdl"));
    assert_eq!(recipe.conduct.hostname, "trial");
    assert_eq!(
        recipe.image,
        Image::Root { format: Format::Squashfs { compression: Compression::Lz4 }, exclude: Vec::new() }
    );
    assert!(recipe.packages.names.is_empty() && !recipe.packages.recommends);
}

#[test]
fn all_problems_of_a_file_come_at_once() {
    let found = codes(
        "guest trial {\n distribution fedora suite=bookworm\n pakages fio\n hostname \"a b\"\n run\n image root { format ext4 }\n}\n",
    );
    for code in ["unknown_word", "unknown_node", "bad_name", "empty_run", "missing_node"] {
        assert!(found.iter().any(|f| f == code), "{code} is not among {found:?}");
    }
}

#[test]
fn each_rule_has_its_own_code() {
    for (body, code) in [
        ("", "missing_node"),
        ("run \"\"", "empty_run"),
        ("run \"/x\"\n packages fio fio", "duplicate_package"),
        ("run \"/x\"\n packages fio { without fio }", "contradiction"),
        ("run \"/x\"\n packages Fio", "bad_name"),
        ("run \"/x\"\n packages \"-o\"", "bad_name"),
        ("run \"/x\"\n file \"/etc/x\"", "empty_file"),
        ("run \"/x\"\n file \"/etc/x\" \"text\" from=\"y\"", "contradiction"),
        ("run \"/x\"\n file \"etc/x\" \"text\"", "bad_path"),
        ("run \"/x\"\n file \"/etc/../x\" \"text\"", "bad_path"),
        ("run \"/x\"\n file \"/proc/x\" \"text\"", "hidden_path"),
        ("run \"/x\"\n file \"/x\" \"a\"\n link \"/x\" to=\"b\"", "duplicate_path"),
        ("run \"/x\"\n file \"/x\" \"a\" mode=0o10000", "out_of_range"),
        ("run \"/x\"\n link \"/x\"", "missing_property"),
        ("run \"/x\"\n modules \"a b\"", "bad_name"),
        ("run \"/x\"\n env { \"A=B\" \"c\" }", "bad_name"),
        ("run \"/x\"\n image none", "no_image"),
        ("user a uid=301\n image none", "no_image"),
        ("init systemd\n image none", "no_image"),
        ("run \"/x\"\n root oci=\"i\" digest=\"sha256:1\"", "bad_hash"),
        ("run \"/x\"\n root oci=\"i\"", "missing_property"),
        ("run \"/x\"\n root", "missing_property"),
        ("run \"/x\"\n root oci=\"i\" tar=\"t\"", "contradiction"),
        ("run \"/x\"\n user a", "missing_property"),
        ("run \"/x\"\n user Aa uid=1", "bad_name"),
        ("run \"/x\"\n user a uid=4294967295", "out_of_range"),
        ("run \"/x\"\n user a uid=301\n user a uid=302", "duplicate_name"),
        ("run \"/x\"\n user a uid=301\n user b uid=301", "duplicate_id"),
        ("run \"/x\"\n group a gid=301\n group b gid=301", "duplicate_id"),
        ("run \"/x\"\n group a gid=301\n user a uid=303 gid=302", "contradiction"),
        ("run \"/x\"\n user a uid=301 home=\"/a:b\"", "bad_path"),
        ("run \"/x\"\n user a uid=301 groups=\"b c\"", "bad_name"),
        ("run \"/x\"\n file \"/x\" owner=\"a:b:c\" \"y\"", "bad_owner"),
        ("run \"/x\"\n user a uid=301\n file \"/etc/passwd\" \"y\"", "contradiction"),
        ("run \"/x\"\n mount \"/srv\"", "missing_property"),
        ("run \"/x\"\n mount \"/srv\" disk=a tmpfs=\"1MiB\"", "contradiction"),
        ("run \"/x\"\n mount \"/srv\" tmpfs=\"1MiB\" format=ext4", "contradiction"),
        ("run \"/x\"\n mount \"/srv\" tmpfs=5", "wrong_type"),
        ("run \"/x\"\n mount \"/srv\" disk=a format=btrfs", "unknown_word"),
        ("run \"/x\"\n mount \"/srv\" disk=a options=\"a, b\"", "bad_options"),
        ("run \"/x\"\n mount \"/proc\" disk=a", "hidden_path"),
        ("run \"/x\"\n mount \"/srv\" disk=a\n mount \"/srv\" disk=b", "duplicate_path"),
        ("run \"/x\"\n mount \"/a\" disk=a format=ext4\n mount \"/b\" disk=a format=xfs", "contradiction"),
        ("run \"/x\"\n mount \"/srv\" disk=a\n file \"/srv/x\" \"y\"", "hidden_path"),
        ("run \"/x\"\n mount \"/srv\" disk=a\n directory \"/srv\"", "hidden_path"),
        ("run \"/x\"\n sysctl { \"vm/x\" 1 }", "bad_name"),
        ("run \"/x\"\n sysctl { vm.x 1; vm.x 2 }", "duplicate_node"),
        ("run \"/x\"\n sysctl { vm.x #true }", "wrong_type"),
        ("run \"/x\"\n init openrc", "unknown_word"),
        ("run \"/x\"\n init systemd { enable ssh }", "bad_name"),
        ("run \"/x\"\n init systemd { enable \"a.service\"; mask \"a.service\" }", "contradiction"),
        ("init systemd\n service a { exec \"/x\" }", "contradiction"),
        ("run \"/x\"\n stop", "missing_property"),
        ("run \"/x\"\n stop timeout=60", "wrong_type"),
        ("run \"/x\"\n stop timeout=\"60\"", "bad_duration"),
        ("run \"/x\"\n stop timeout=\"60sec\"", "bad_duration"),
        ("run \"/x\"\n stop timeout=\"1000h\"", "out_of_range"),
        ("run \"/x\"\n image root { format ext4 size=\"1KiB\" }", "bad_size"),
        ("run \"/x\"\n image root { format erofs compression=zstd }", "unknown_word"),
        ("run \"/x\"\n image root { format ext4 compression=lz4 }", "unknown_property"),
        ("run \"/x\"\n extends \"base.kdl\"", "extends_nowhere"),
        ("run \"/x\"\n run \"/y\"", "duplicate_node"),
        ("run \"/x\"\n packages fio arch=i386", "unknown_property"),
    ] {
        assert_eq!(codes_in(body), [code], "{body}");
    }
}

#[test]
fn whoever_is_named_must_be_there_and_ids_must_be_free_before_any_package_is_known() {
    for (body, code) in [
        ("file \"/x\" \"y\" owner=\"postgers\"", "unknown_account"),
        ("directory \"/x\" owner=\"root:wheel\"", "unknown_account"),
        ("mount \"/srv\" disk=a owner=web", "unknown_account"),
        ("user web uid=300 groups=\"wheel\"", "unknown_account"),
        ("service a { exec \"/x\"; user web }", "unknown_account"),
        ("service a { exec \"/x\"; user root group=wheel }", "unknown_account"),
        ("service a { exec \"/x\"; prepare \"/y\" as=web }", "unknown_account"),
        ("service a { exec \"/x\"; directory \"/run/x\" owner=web }", "unknown_account"),
        ("user web uid=33", "taken_id"),
        ("group web gid=4", "taken_id"),
    ] {
        assert_eq!(codes_in(&format!("run \"/x\"\n {body}")), [code], "{body}");
    }
    // Numbers need nobody, a user brings its group, and who is wrong in itself is told once.
    for body in
        ["file \"/x\" \"y\" owner=\"7000:7000\"", "user web uid=300\n file \"/x\" \"y\" owner=\"web:web\""]
    {
        parse(&format!("{HEAD} run \"/x\"\n {body}\n}}\n")).unwrap();
    }
    assert_eq!(codes_in("run \"/x\"\n user web\n file \"/x\" \"y\" owner=\"web\""), ["missing_property"]);
    // An archive, or a passwd of the recipe's own, may have anybody.
    parse(&format!("{HEAD} run \"/x\"\n file \"/etc/passwd\" \"y\"\n link \"/y\" to=x owner=web\n}}\n"))
        .unwrap();
}

#[test]
fn files_that_a_recipe_names_are_looked_at_where_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trial.kdl");
    let hash = "0".repeat(64);
    let text = format!(
        "guest trial {{\n root tar=\"root.tar\" sha256=\"{hash}\"\n kernel path=\"vmlinux\" modules=\"modules\"\n \
         run \"/x\"\n file \"/x\" from=\"tool\"\n file \"/y\" from=\".\"\n}}\n"
    );
    std::fs::write(&path, text).unwrap();
    std::fs::write(dir.path().join("modules"), "").unwrap();
    Recipe::read(&path).unwrap();
    let Err(GuestError::Document(problems)) = Recipe::read_with_files(&path) else { panic!("it was taken") };
    assert!(problems.iter().all(|problem| problem.code() == "vmprof::guest::missing_file"));
    let told: Vec<&str> =
        problems.iter().map(|problem| problem.message().rsplit('/').next().unwrap()).collect();
    let absent = |name: &str| format!("{name} cannot be read: No such file or directory (os error 2)");
    let expected = [
        absent("root.tar"),
        absent("vmlinux"),
        "modules is not a directory".to_owned(),
        absent("tool"),
        " is not a file".trim_start().to_owned(),
    ];
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for (told, expected) in told.iter().zip(&expected) {
        assert!(told.ends_with(expected.as_str()), "{told}");
    }
}

#[test]
fn a_near_miss_is_answered_with_the_word_that_was_meant() {
    let Err(GuestError::Document(problems)) = parse(&format!("{HEAD} run \"/x\"\n hostnam \"x\"\n}}")) else {
        panic!("a misspelt node was taken");
    };
    let help = problems.iter().next().and_then(|p| p.help_text().map(str::to_owned));
    assert_eq!(help.as_deref(), Some("did you mean `hostname`?"));
}

#[test]
fn a_guest_without_a_root_image_needs_no_program() {
    let recipe = parse(&format!("{HEAD} modules kvm\n image none\n}}")).unwrap();
    assert_eq!(recipe.image, Image::None);
    assert!(recipe.conduct.run.is_empty());
}

#[test]
fn a_mode_that_is_not_written_in_octal_is_refused() {
    let modes =
        |mode: &str| format!("file \"/x\" \"y\" mode={mode}\n directory \"/z\" mode={mode}\n run \"/x\"");
    for mode in ["755", "0755", "493", "1777"] {
        assert_eq!(codes_in(&modes(mode)), ["bad_mode", "bad_mode"], "{mode}");
    }
    assert_eq!(codes_in(&modes("0o17777")), ["out_of_range", "out_of_range"]);
    for mode in ["0o755", "0", "0o4755", "0b111"] {
        parse(&format!("{HEAD}{}\n}}\n", modes(mode))).unwrap();
    }
}

/// Codes of the problems of a service with these nodes in it, besides another one named `other`.
fn codes_in_service(nodes: &str) -> Vec<String> {
    codes_in(&format!("service db {{ {nodes} }}\n service other {{ exec \"/x\" }}"))
}

#[test]
fn each_rule_of_a_service_has_its_own_code() {
    let exec = "exec \"/x\"";
    for (nodes, code) in [
        ("", "missing_node"),
        ("exec", "empty_run"),
        ("exec \"\"", "empty_run"),
        ("exec \"/x\" \"a\\u{0}b\"", "forbidden_character"),
    ] {
        assert_eq!(codes_in_service(nodes), [code], "{nodes}");
    }
    for (nodes, code) in [
        ("after ohter", "unknown_service"),
        ("after db", "service_cycle"),
        ("directory \"run/x\"", "bad_path"),
        ("directory \"/run/x\" mode=755", "bad_mode"),
        ("directory \"/run/x\" owner=\"a b\"", "bad_owner"),
        ("prepare", "empty_run"),
        ("prepare \"/y\" as=\"A B\"", "bad_name"),
        ("user", "missing_argument"),
        ("user \"A B\"", "bad_name"),
        ("user root group=\"A B\"", "bad_name"),
        ("working-directory \"srv\"", "bad_path"),
        ("env { \"A B\" c }", "bad_name"),
        ("kind oneshot", "unknown_word"),
        ("restart sometimes", "unknown_word"),
        ("restart always most=0", "out_of_range"),
        ("restart always delay=1", "wrong_type"),
        ("kind once; restart always", "contradiction"),
        ("kind once; ready notify", "contradiction"),
        ("ready", "missing_argument"),
        ("ready soon", "unknown_word"),
        ("ready command", "empty_run"),
        ("ready tcp=0", "out_of_range"),
        ("ready tcp=1 unix=\"/run/x\"", "contradiction"),
        ("ready notify timeout=\"0s\"", "out_of_range"),
        ("stop", "missing_property"),
        ("stop signal=SIGFOO", "unknown_word"),
        ("Type oneshot", "unknown_node"),
    ] {
        assert_eq!(codes_in_service(&format!("{exec}; {nodes}")), [code], "{nodes}");
    }
    let path = format!("{exec}; ready unix=\"/{}\"", "x".repeat(120));
    assert_eq!(codes_in_service(&path), ["bad_path"]);
    assert_eq!(codes_in("service a { exec \"/x\" }\n service a { exec \"/x\" }"), ["duplicate_name"]);
    let round = "service a { exec \"/x\"; after c }\n service b { exec \"/x\"; after a }\n service c { exec \"/x\"; after b }\n service d { exec \"/x\"; after a }";
    assert_eq!(codes_in(round), ["service_cycle"]);
}

#[test]
fn systemd_has_its_own_time_to_stop_unless_the_recipe_says_one() {
    let within = |body: &str| parse(&format!("{HEAD}{body}\n}}\n")).unwrap().conduct.stop_within_ms;
    assert_eq!(within("init systemd"), 100_000);
    assert_eq!(within("init systemd\n stop timeout=\"20s\""), 20_000);
    assert_eq!(within("run \"/x\""), 5_000);
}

#[test]
fn a_server_is_read_with_everything_in_it() {
    let recipe = parse(
        r#"guest db {
            distribution debian suite=bookworm
            packages postgresql-15
            kernel package=linux-image-x
            user postgres uid=101 gid=104 home="/var/lib/postgresql" shell="/bin/sh" groups="ssl-cert, adm"
            user plain uid=300
            group ssl-cert gid=110
            file "/etc/x" owner=postgres mode=0o640 "text"
            link "/etc/y" to="x" owner="nobody"
            directory "/srv" owner="7:8"
            env { LANG C }
            sysctl { vm.swappiness 1; kernel.shmmax "18446744073692774399" }
            mount "/var/lib/postgresql" disk=data format=ext4 options="noatime,nodev" owner=postgres mode=0o750
            mount "/scratch" tmpfs="512MiB"
            mount "/opt/more" disk=more optional=#true
            service network { kind once; exec ip link set lo up }
            service postgresql {
                after network
                directory "/run/postgresql" owner="postgres:adm" mode=0o2775
                prepare "/usr/lib/x/first" as=root
                prepare initdb-once
                exec "/usr/lib/postgresql/15/bin/postgres" -D "/x"
                user postgres
                working-directory "/var/lib/postgresql"
                env { PGDATA "/x"; LANG "C.UTF-8" }
                restart on-failure delay="250ms" within="2m"
                ready command pg_isready "-q" timeout="90s"
                stop signal=SIGINT timeout="30s"
            }
        }"#,
    )
    .unwrap();
    let user = &recipe.users[0];
    assert_eq!(
        (user.gid, user.shell.as_str(), &user.groups[..]),
        (104, "/bin/sh", &["adm".to_owned(), "ssl-cert".to_owned()][..])
    );
    let plain = &recipe.users[1];
    assert_eq!(
        (plain.gid, plain.home.as_str(), plain.shell.as_str()),
        (300, "/nonexistent", "/usr/sbin/nologin")
    );
    let owners: Vec<_> = recipe.placed.iter().map(|p| (p.path.as_str(), p.owner.as_str())).collect();
    assert_eq!(owners, [("/srv", "7:8"), ("/etc/y", "nobody:nogroup"), ("/etc/x", "postgres:104")]);
    let conduct = &recipe.conduct;
    let sysctl: Vec<_> = conduct.sysctl.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(sysctl, ["kernel.shmmax=18446744073692774399", "vm.swappiness=1"]);
    let mounts: Vec<_> = conduct.mounts.iter().map(|m| m.mount.path.as_str()).collect();
    assert_eq!(mounts, ["/opt/more", "/scratch", "/var/lib/postgresql"]);
    let data = &conduct.mounts[2];
    assert_eq!((data.mount.owner.as_deref(), data.mount.mode), (Some("postgres:104"), Some(0o750)));
    assert_eq!(data.mount.options, ["noatime", "nodev"]);
    assert!(conduct.mounts[0].optional && !data.optional);
    assert_eq!(conduct.mounts[1].mount.what, vmprof_job::Mounted::Tmpfs { bytes: 512 << 20 });
    // 30 s of the database and 10 s of the other one.
    assert_eq!((conduct.stop_within_ms, conduct.run.len()), (40_000, 0));
    let service = &conduct.services[1];
    let steps: Vec<_> = steps(service)
        .map(|step| (String::from_utf8_lossy(step.argv[0].as_bytes()).into_owned(), step.user.as_str()))
        .collect();
    let of = |step: &(String, &str), program: &str, user: &str| step.0 == program && step.1 == user;
    assert!(
        of(&steps[0], "/usr/lib/x/first", "root") && of(&steps[1], "initdb-once", "postgres"),
        "{steps:?}"
    );
    assert!(of(&steps[3], "pg_isready", "postgres"), "{steps:?}");
    let env: Vec<_> = service
        .exec
        .env
        .iter()
        .map(|(name, value)| {
            [name, value].map(|b| String::from_utf8_lossy(b.as_bytes()).into_owned()).join("=")
        })
        .collect();
    assert_eq!(
        env,
        [
            "HOME=/var/lib/postgresql",
            "LANG=C.UTF-8",
            "LOGNAME=postgres",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "PGDATA=/x",
            "SHELL=/bin/sh",
            "TERM=linux",
            "USER=postgres",
        ]
    );
    assert_eq!(
        (service.restart.delay_ms, service.restart.most, service.restart.window_ms),
        (250, 5, 120_000)
    );
    assert_eq!((service.stop.signal, service.stop.within_ms, service.ready_within_ms), (2, 30_000, 90_000));
}

#[test]
fn a_root_from_an_archive_with_its_own_kernel_needs_no_distribution() {
    let hash = "ab".repeat(32);
    let text = format!(
        "guest x {{\n root oci=\"images/app\" digest=\"sha256:{hash}\"\n kernel path=\"vmlinux\" modules=\"lib/6.1\"\n env {{ MODE recipe }}\n}}"
    );
    let recipe = parse(&text).unwrap();
    assert_eq!(recipe.distribution, None);
    assert_eq!(recipe.root, Root::Oci { path: "guests/images/app".into(), digest: hash.parse().unwrap() });
    let modules = Some(PathBuf::from("guests/lib/6.1"));
    assert_eq!(recipe.kernel, Kernel::File { path: "guests/vmlinux".into(), modules });
    let image = ImageConfig {
        env: vec![("MODE".to_owned(), "image".to_owned()), ("PATH".to_owned(), "/app".to_owned())],
        argv: vec!["serve".to_owned()],
        directory: Some("/app".to_owned()),
        user: Some("10:20".to_owned()),
        stop_signal: Some(3),
    };
    let conduct = recipe.conduct_with(&image);
    let service = &conduct.services[0];
    assert_eq!((service.exec.user.as_str(), service.exec.group.as_deref()), ("10", Some("20")));
    assert_eq!(
        (service.name.as_str(), service.exec.directory.as_str(), service.stop.signal),
        ("image", "/app", 3)
    );
    let value = |name: &str| conduct.env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
    assert_eq!((value("MODE"), value("PATH"), value("HOME")), (Some("recipe"), Some("/app"), Some("/root")));
    assert!(recipe.conduct.services.is_empty());
}

/// Reads `text` over files that lie at these paths from its directory.
fn layered(text: &str, files: &[(&str, &str)]) -> Result<Recipe> {
    Recipe::parse_with(Path::new("guests/trial.kdl"), text, &|path| {
        let found = files.iter().find(|(name, _)| *name == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    })
}

const BASE: &str = r#"guest base {
    description "not handed on"
    lock "base.lock.kdl"
    distribution debian suite=bookworm
    packages dash util-linux { without perl }
    kernel package=linux-image-x cmdline="quiet"
    modules dm_mod
    hostname base
    env { LANG C; EDITOR vi }
    file "/etc/a" from="a.txt"
    file "/etc/b" mode=0o600 "base"
    user web uid=200 home="/srv"
    service one { exec "/base"; ready notify; }
    service two { exec "/base" }
    run "/usr/bin/base" "--all"
    init vmprof
    image root { format squashfs compression=zstd; exclude "/usr/share/doc" }
}"#;

#[test]
fn a_recipe_lies_over_those_it_extends() {
    let text = r#"guest trial {
        extends "common/middle.kdl"
        packages fio dash
        modules dm_mod null_blk
        env { LANG "C.UTF-8" }
        file "/etc/b" "trial"
        service one { exec "/trial" }
        run "/usr/bin/trial"
        image root { exclude "/usr/share/man" }
    }"#;
    let middle = "guest middle { extends \"../base.kdl\"; hostname middle; file \"/etc/m\" from=\"m.txt\" }";
    let recipe = layered(text, &[("common/middle.kdl", middle), ("base.kdl", BASE)]).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.description.as_deref()), ("trial", None));
    assert_eq!(recipe.lock_path, Path::new("guests/trial.lock.kdl"));
    assert_eq!(recipe.extended, [Path::new("guests/common/middle.kdl"), Path::new("guests/base.kdl")]);
    assert_eq!(recipe.packages.names, ["dash", "fio", "util-linux"]);
    assert_eq!(recipe.packages.without, ["perl"]);
    assert_eq!(recipe.modules, ["dm_mod", "null_blk"]);
    assert_eq!(recipe.conduct.hostname, "middle");
    assert_eq!(recipe.conduct.run, ["/usr/bin/trial"]);
    let value = |name: &str| recipe.conduct.env.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    assert_eq!((value("LANG"), value("EDITOR")), (Some("C.UTF-8"), Some("vi")));
    let place = |path: &str| recipe.placed.iter().find(|p| p.path == path).map(|p| p.what.clone());
    assert_eq!(place("/etc/a"), Some(Place::From { mode: 0o644, source: "guests/a.txt".into() }));
    assert_eq!(place("/etc/m"), Some(Place::From { mode: 0o644, source: "guests/common/m.txt".into() }));
    assert_eq!(place("/etc/b"), Some(Place::Text { mode: 0o644, text: "trial\n".to_owned() }));
    let one = &recipe.conduct.services[0];
    assert_eq!((one.exec.argv[0].as_bytes(), &one.ready), (&b"/trial"[..], &vmprof_job::Ready::Started));
    assert_eq!(recipe.conduct.services.len(), 2);
    let exclude = vec!["/usr/share/doc".to_owned(), "/usr/share/man".to_owned()];
    assert_eq!(
        recipe.image,
        Image::Root { format: Format::Squashfs { compression: Compression::Zstd }, exclude }
    );
}

#[test]
fn a_problem_in_an_extended_file_is_shown_in_that_file() {
    let base = BASE.replace("mode=0o600", "mode=600");
    let Err(GuestError::Document(problems)) =
        layered("guest trial { extends \"base.kdl\" }", &[("base.kdl", &base)])
    else {
        panic!("a wrong mode was taken");
    };
    let problem = problems.iter().next().unwrap();
    assert_eq!(problem.code(), "vmprof::guest::bad_mode");
    let file = problem.first_span().and_then(|span| problems.sources().file_of(span)).unwrap();
    assert_eq!(&*file.name, "guests/base.kdl");
    let round = layered(
        "guest trial { extends \"base.kdl\" }",
        &[
            ("base.kdl", "guest b { extends \"trial.kdl\" }"),
            ("trial.kdl", "guest trial { extends \"base.kdl\" }"),
        ],
    );
    assert!(
        matches!(round, Err(GuestError::Document(problems)) if problems.iter().any(|p| p.code().ends_with("extends_cycle")))
    );
}

#[test]
fn words_of_other_tools_are_answered_with_what_to_write_here() {
    let slips = r#"guest slips {
    FROM debian
    distribution ubuntu suite=bookworm arch=x86_64
    kernel package=linux-image-x args="quiet"
    service web {
        ExecStart "/usr/bin/web"
        Type notify
        WantedBy multi-user.target
        depends_on db
        environment { A b }
        restart unless-stopped
        stop signal=TERM
        healthcheck curl
    }
    users { web }
    volumes "/srv"
    ports "8080:80"
    mount "/srv" disk=data fstype=ext4
    file "/etc/x" content="y"
    stop timeout="1min"
    overlay
}"#;
    let Err(GuestError::Document(problems)) = parse(slips) else { panic!("slips were taken") };
    let shown: Vec<_> = problems
        .iter()
        .map(|p| format!("{}: {}\n    {}", p.code(), p.message(), p.help_text().unwrap_or("-")))
        .collect();
    insta::assert_snapshot!(shown.join("\n"));
}

mod any_document {
    use proptest::prelude::*;

    use super::*;

    fn words() -> impl Strategy<Value = String> {
        let known = [
            "packages",
            "without",
            "root",
            "kernel",
            "user",
            "group",
            "file",
            "directory",
            "link",
            "env",
            "sysctl",
            "hostname",
            "mount",
            "service",
            "after",
            "prepare",
            "exec",
            "kind",
            "restart",
            "ready",
            "stop",
            "run",
            "init",
            "enable",
            "mask",
            "image",
            "format",
            "exclude",
            "modules",
            "distribution",
            "lock",
            "extends",
            "systemd",
            "none",
            "command",
            "once",
            "ExecStart",
            "a",
            "b",
            "working-directory",
        ];
        prop::sample::select(known.to_vec()).prop_map(str::to_owned)
    }

    fn entry() -> impl Strategy<Value = String> {
        let keys = [
            "uid",
            "gid",
            "owner",
            "mode",
            "disk",
            "tmpfs",
            "format",
            "options",
            "oci",
            "tar",
            "digest",
            "path",
            "modules",
            "package",
            "timeout",
            "signal",
            "tcp",
            "unix",
            "most",
            "delay",
            "as",
            "from",
            "to",
            "home",
            "groups",
            "optional",
            "size",
            "compression",
            "suite",
        ];
        let value = prop_oneof![
            words(),
            any::<i128>().prop_map(|n| n.to_string()),
            "\"[ -!#-\\[\\]-~]{0,12}\"",
            Just("\"/\"".to_owned()),
            Just("\"/a/b\"".to_owned()),
            Just("\"é\\u{0}\"".to_owned()),
            Just("\"90s\"".to_owned()),
            Just("0o17".to_owned()),
            Just("#null".to_owned()),
            Just("1.5".to_owned()),
        ];
        (prop::option::of(prop::sample::select(keys.to_vec())), value)
            .prop_map(|(key, value)| key.map_or(value.clone(), |key| format!("{key}={value}")))
    }

    fn node() -> impl Strategy<Value = String> {
        let leaf = (words(), prop::collection::vec(entry(), 0..5))
            .prop_map(|(name, entries)| format!("{name} {}", entries.join(" ")));
        leaf.prop_recursive(3, 24, 5, |inner| {
            (words(), prop::collection::vec(entry(), 0..3), prop::collection::vec(inner, 0..5)).prop_map(
                |(name, entries, nodes)| format!("{name} {} {{\n{}\n}}", entries.join(" "), nodes.join("\n")),
            )
        })
    }

    proptest! {
        #[test]
        fn is_read_or_refused_with_help(nodes in prop::collection::vec(node(), 0..12)) {
            let text = format!("{HEAD}{}\n}}", nodes.join("\n"));
            if let Err(GuestError::Document(problems)) = parse(&text) {
                for problem in problems.iter() {
                    prop_assert!(problem.help_text().is_some(), "{problem}");
                }
            }
        }

        #[test]
        fn of_any_characters_is_no_reason_to_end(text in ".{0,200}") {
            let _ = parse(&text);
            let _ = parse(&format!("{HEAD}{text}\n}}"));
        }
    }
}
