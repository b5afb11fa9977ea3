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
        ("run \"/x\"\n service postgresql", "not_supported_yet"),
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
        ("run \"/x\"\n run \"/y\"", "duplicate_node"),
        ("run \"/x\"\n packages fio arch=i386", "unknown_property"),
    ] {
        assert_eq!(codes_in(body), [code], "{body}");
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
