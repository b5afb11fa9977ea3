use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::error::FailureClass;
use crate::fetch::{self, FetchError};
use crate::progress::Silent;
use crate::recipe::Compression;
use crate::squashfs;
use crate::store::StoreError;
use crate::testing::{self, Thing};

/// Keeps what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn stage(&self, name: &str, _total: Total) -> Box<dyn Stage> {
        self.0.lock().unwrap().push(name.to_owned());
        Box::new(Silent)
    }
    fn note(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

const BODY: &str = "packages tool\n run \"/usr/bin/tool\"\n file \"/etc/motd\" \"hello\"";

/// A checkout with a locked recipe, and a store that has its packages.
fn site(body: &str) -> (tempfile::TempDir, Store, Recipe) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store")).unwrap();
    let recipe = testing::recipe(dir.path(), body);
    std::fs::write(&recipe.path, "").unwrap();
    let tool = testing::deb(
        "tool",
        "",
        ".xz",
        &[
            ("usr/bin/tool", Thing::File(0o755, b"a program")),
            ("usr/share/doc/tool/copyright", Thing::File(0o644, b"words")),
        ],
    );
    let kernel = testing::adopted(&store, "linux-image-test", &testing::kernel_deb());
    let packages = vec![testing::adopted(&store, "tool", &tool)];
    std::fs::write(&recipe.lock_path, testing::lock(&recipe, kernel, packages).to_text()).unwrap();
    (dir, store, recipe)
}

fn build(store: &Store, recipe: &Recipe) -> GuestImage {
    Builder::new(store, &Silent).offline(true).frozen(true).build(recipe).unwrap()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn a_guest_built_in_two_stores_has_the_same_names_and_so_the_same_bytes() {
    let (_a, one_store, one) = site(BODY);
    let (_b, two_store, two) = site(BODY);
    let (one, two) = (build(&one_store, &one), build(&two_store, &two));
    let names = |image: &GuestImage| {
        [file_name(&image.kernel), file_name(&image.initramfs), file_name(&image.root.as_ref().unwrap().path)]
    };
    assert_eq!(names(&one), names(&two));
    assert_eq!(one.digest, two.digest);
    assert_eq!(one.kernel_release, "6.1.0-9-test");
    assert_eq!(one.modules[..3], ["virtio", "virtio_ring", "virtio_pci"]);
    for store in [&one_store, &two_store] {
        for entry in store.entries().unwrap() {
            store.verify(&entry).unwrap();
        }
    }
}

#[test]
fn a_warm_build_does_nothing_and_says_nothing() {
    let (_dir, store, recipe) = site(BODY);
    let cold = build(&store, &recipe);
    let heard = Heard::default();
    let warm = Builder::new(&store, &heard).build(&recipe).unwrap();
    assert_eq!(warm, cold);
    assert!(heard.0.lock().unwrap().is_empty());
}

#[test]
fn what_the_recipe_says_decides_the_digest_and_what_runs_outside_the_image_does_not() {
    let (dir, store, recipe) = site(BODY);
    let digest = build(&store, &recipe).digest;
    let other = |body: &str| build(&store, &testing::recipe(dir.path(), body)).digest;
    assert_ne!(other(&BODY.replace("hello", "hullo")), digest);
    assert_ne!(other(&format!("{BODY}\n image root {{ exclude \"/usr/share/doc\" }}")), digest);
    assert_ne!(other(&format!("{BODY}\n image root {{ format squashfs compression=zstd }}")), digest);
    assert_eq!(other(&format!("{BODY} \n env {{ A \"b\" }}")), digest);
}

#[test]
fn an_exclusion_that_meets_nothing_is_told() {
    let (_dir, store, recipe) = site(&format!("{BODY}\n image root {{ exclude \"/usr/share/absent\" }}"));
    let heard = Heard::default();
    Builder::new(&store, &heard).build(&recipe).unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert!(heard.iter().any(|text| text.contains("\"/usr/share/absent\"` met nothing")), "{heard:?}");
}

#[test]
fn a_guest_without_a_root_image_is_pinned_by_its_initramfs() {
    let (_dir, store, recipe) = site("image none\n modules ext4");
    let image = build(&store, &recipe);
    assert_eq!(image.root, None);
    assert!(file_name(&image.initramfs).starts_with(&image.digest));
    assert!(!image.modules.contains(&"squashfs".to_owned()));
}

#[test]
fn a_second_build_is_the_same_and_a_changed_image_is_found_by_its_file() {
    let (_dir, store, recipe) = site(BODY);
    let builder = Builder::new(&store, &Silent).offline(true);
    let image = builder.check(&recipe).unwrap();

    let root = image.root.unwrap().path;
    let mut tree = squashfs::unpack(&std::fs::read(&root).unwrap()).unwrap();
    tree.put("usr/bin/tool", crate::tree::Node::file(0o755, *b"b program"), &crate::tree::Origin::Recipe)
        .unwrap();
    std::fs::remove_file(&root).unwrap();
    std::fs::write(&root, squashfs::pack(&tree, Compression::Lz4).unwrap()).unwrap();
    let error = builder.check(&recipe).unwrap_err();
    assert_eq!(error.class(), FailureClass::NotDeterministic);
    assert!(error.to_string().ends_with("/usr/bin/tool: they differ first at byte 0"), "{error}");

    let altered = std::fs::read(&image.initramfs).unwrap();
    let altered: Vec<u8> = String::from_utf8_lossy(&altered).contains("070701").then_some(altered).unwrap();
    let at = altered.windows(13).position(|w| w == b"modules/order").unwrap();
    let text = altered[at..].iter().position(|b| *b == b'/').map(|n| at + n).unwrap();
    let mut other = altered.clone();
    other[text + 20] ^= 1;
    assert!(check::first_member(&altered, &other).unwrap().contains("modules/order differs"));
}

#[test]
fn a_changed_ext4_image_is_found_by_its_file_too() {
    let (_dir, store, recipe) = site(&format!("{BODY}\n image root {{ format ext4 size=\"64MiB\" }}"));
    let builder = Builder::new(&store, &Silent).offline(true);
    let root = builder.check(&recipe).unwrap().root.unwrap().path;
    let mut image = std::fs::read(&root).unwrap();
    let at = image.windows(9).position(|window| window == b"a program").unwrap();
    image[at + 2] = b'P';
    std::fs::remove_file(&root).unwrap();
    std::fs::write(&root, image).unwrap();
    let error = builder.check(&recipe).unwrap_err();
    assert!(error.to_string().ends_with("/usr/bin/tool: they differ first at byte 2"), "{error}");
}

#[test]
fn offline_names_what_is_missing_and_frozen_makes_no_lock() {
    let (_dir, store, recipe) = site(BODY);
    let empty = Store::open(store.root().join("elsewhere")).unwrap();
    let builder = Builder::new(&empty, &Silent).offline(true);
    let error = builder.build(&recipe).unwrap_err();
    let wanted = ["linux-image-test", "tool"];
    assert!(
        matches!(&error, GuestError::Fetch(FetchError::Offline { names }) if names == &wanted),
        "{error}"
    );

    std::fs::remove_file(&recipe.lock_path).unwrap();
    let error = Builder::new(&store, &Silent).frozen(true).build(&recipe).unwrap_err();
    assert!(matches!(error, GuestError::Lock(LockError::Missing { .. })), "{error}");
    let error = builder.build(&recipe).unwrap_err();
    assert!(matches!(error, GuestError::Lock(LockError::NeedsNetwork { .. })), "{error}");
    assert!(!recipe.lock_path.exists());
}

#[test]
fn a_package_with_other_bytes_than_the_locks_is_not_taken() {
    let (_dir, store, _recipe) = site(BODY);
    let package = testing::locked("other", b"what was locked");
    let dir = store.temp_dir().unwrap();
    let file = dir.path().join("other_1_amd64.deb");
    std::fs::write(&file, b"what came instead").unwrap();
    let before = store.entries().unwrap().len();
    let error = fetch::adopt(&store, &package, &file).unwrap_err();
    assert_eq!(error.class(), FailureClass::HashMismatch);
    assert_eq!(store.entries().unwrap().len(), before);
}

#[test]
fn two_builders_at_once_agree() {
    let (_dir, store, recipe) = site(BODY);
    let images: Vec<_> = std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4).map(|_| scope.spawn(|| build(&store, &recipe))).collect();
        builders.into_iter().map(|builder| builder.join().unwrap()).collect()
    });
    assert!(images.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(std::fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
}

#[test]
fn a_package_damaged_in_the_store_does_not_become_an_image() {
    for name in ["linux-image-test_1_amd64.deb", "tool_1_amd64.deb"] {
        let (_dir, store, recipe) = site(BODY);
        let entry = store.entries().unwrap().into_iter().find(|entry| entry.name.ends_with(name)).unwrap();
        let whole = std::fs::read(&entry.path).unwrap();
        let mut bytes = whole.clone();
        // In the middle of packed data, which by itself might still unpack.
        let at = bytes.len() / 2;
        bytes[at] ^= 1;
        std::fs::remove_file(&entry.path).unwrap();
        std::fs::write(&entry.path, bytes).unwrap();
        let error = Builder::new(&store, &Silent).offline(true).build(&recipe).unwrap_err();
        assert!(
            matches!(&error, GuestError::Store(StoreError::Damaged { path }) if *path == entry.path),
            "{error}"
        );
        assert_eq!(error.class(), FailureClass::HashMismatch);
        std::fs::write(&entry.path, whole).unwrap();
        build(&store, &recipe);
    }
}

#[test]
fn an_unpacked_package_damaged_in_the_store_does_not_become_an_image() {
    let (dir, store, recipe) = site(BODY);
    build(&store, &recipe);
    let entry = find(&store, "tool_1_amd64.tar.lz4");
    let mut bytes = std::fs::read(&entry.path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 1;
    std::fs::remove_file(&entry.path).unwrap();
    std::fs::write(&entry.path, bytes).unwrap();
    let changed = testing::recipe(dir.path(), &BODY.replace("hello", "hullo"));
    let error = Builder::new(&store, &Silent).offline(true).build(&changed).unwrap_err();
    assert!(
        matches!(&error, GuestError::Store(StoreError::Damaged { path }) if *path == entry.path),
        "{error}"
    );
}

fn find(store: &Store, ending: &str) -> Entry {
    store.entries().unwrap().into_iter().find(|entry| entry.name.ends_with(ending)).unwrap()
}

/// Removes an entry, so that whoever needs it fails.
fn forget(store: &Store, ending: &str) {
    std::fs::remove_file(find(store, ending).path).unwrap();
}

#[test]
fn a_changed_file_of_the_recipe_repacks_the_image_and_unpacks_nothing() {
    let (dir, store, recipe) = site(BODY);
    build(&store, &recipe);
    // Neither the packages nor the kernel's files are looked at again.
    for ending in ["tool_1_amd64.deb", "linux-image-test_1_amd64.deb", "linux-image-test_1_amd64.tar.lz4"] {
        forget(&store, ending);
    }
    let heard = Heard::default();
    let changed = testing::recipe(dir.path(), &BODY.replace("hello", "hullo"));
    Builder::new(&store, &heard).offline(true).build(&changed).unwrap();
    let heard = heard.0.into_inner().unwrap();
    assert_eq!(heard, ["reading the packages of trial", "packing the root image of trial"]);
}

#[test]
fn a_changed_module_list_does_not_unpack_the_kernel_again() {
    let (dir, store, recipe) = site(BODY);
    let before = build(&store, &recipe);
    for ending in ["tool_1_amd64.deb", "linux-image-test_1_amd64.deb", "tool_1_amd64.tar.lz4"] {
        forget(&store, ending);
    }
    let changed = testing::recipe(dir.path(), &format!("{BODY}\n modules ext4"));
    let heard = Heard::default();
    let after = Builder::new(&store, &heard).offline(true).build(&changed).unwrap();
    assert_eq!((after.kernel, after.root), (before.kernel, before.root));
    assert_eq!(*heard.0.lock().unwrap(), ["reading the kernel", "packing the initramfs of trial"]);
}

#[test]
fn two_guests_share_what_was_unpacked() {
    let (dir, store, recipe) = site(BODY);
    build(&store, &recipe);
    let count = |ending: &str| store.entries().unwrap().iter().filter(|e| e.name.ends_with(ending)).count();
    assert_eq!((count(".tar.lz4"), count("-vmlinux")), (2, 1));
    for ending in ["tool_1_amd64.deb", "linux-image-test_1_amd64.deb"] {
        forget(&store, ending);
    }
    let text = std::fs::read_to_string(&recipe.lock_path).unwrap();
    let other = testing::recipe(dir.path(), &BODY.replace("hello", "of the other"));
    let mut other = other;
    other.name = "other".to_owned();
    other.lock_path = dir.path().join("other.lock.kdl");
    std::fs::write(&other.lock_path, text.replace("\"trial\"", "\"other\"")).unwrap();
    build(&store, &other);
    assert_eq!((count(".tar.lz4"), count("-vmlinux"), count(".squashfs")), (2, 1, 2));
}

#[test]
fn a_build_is_checked_against_the_packages_themselves() {
    let (_dir, store, recipe) = site(BODY);
    let builder = Builder::new(&store, &Silent).offline(true);
    builder.check(&recipe).unwrap();
    forget(&store, "tool_1_amd64.deb");
    assert!(
        matches!(builder.check(&recipe), Err(GuestError::Fetch(FetchError::Offline { names })) if names == ["tool"])
    );
}

#[test]
fn a_guest_of_local_files_alone_needs_no_lock_and_knows_its_inputs_by_their_content() {
    let body = "run \"/usr/bin/tool\"\n file \"/etc/motd\" \"hello\"";
    let (one_dir, two_dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) =
        (testing::local_recipe(one_dir.path(), body), testing::local_recipe(two_dir.path(), body));
    let one_store = Store::open(one_dir.path().join("store")).unwrap();
    let two_store = Store::open(two_dir.path().join("store")).unwrap();
    let builder = Builder::new(&one_store, &Silent).offline(true).frozen(true);
    assert_eq!(builder.built(&one).unwrap(), None);
    let built = builder.build(&one).unwrap();
    assert_eq!(build(&two_store, &two).digest, built.digest);
    assert!(!one.lock_path.exists());
    assert_eq!(built.kernel_release, "6.9.1-own");
    assert!(
        built.modules.contains(&"virtio_blk".to_owned()) && !built.modules.contains(&"squashfs".to_owned())
    );
    assert_eq!(builder.built(&one).unwrap(), Some(built.clone()));
    assert_eq!(builder.check(&one).unwrap(), built);

    let tree = squashfs::unpack(&std::fs::read(&built.root.as_ref().unwrap().path).unwrap()).unwrap();
    let content = |path: &str| match &tree.look(path).unwrap().1.kind {
        crate::tree::Kind::File(content) => content.to_vec(),
        other => panic!("{path}: {other:?}"),
    };
    assert_eq!((content("etc/motd"), content("bin/tool")), (b"hello\n".to_vec(), b"a program".to_vec()));
    assert!(tree.look("proc").is_some());
    assert!(tree.look("etc/passwd").is_none(), "a root from elsewhere is taken as it is");

    // A module that is not taken changes nothing, one that is changes the initramfs.
    let modules = one_dir.path().join("lib/modules/6.9.1-own/kernel");
    std::fs::write(modules.join("sound.ko"), "not looked at").unwrap();
    assert_eq!(builder.built(&one).unwrap(), Some(built.clone()));
    let changed = crate::modules::made::module("virtio,virtio_ring");
    std::fs::write(modules.join("virtio_blk.ko"), changed).unwrap();
    assert_eq!(builder.built(&one).unwrap(), None);
    assert_ne!(builder.build(&one).unwrap().initramfs, built.initramfs);
    // So does another kernel.
    std::fs::write(one_dir.path().join("vmlinux"), testing::vmlinux("6.9.2-own")).unwrap();
    assert_eq!(builder.build(&one).unwrap().kernel_release, "6.9.2-own");
    // The tar is named by its hash: the store has what was made of it, and nothing else is taken in its place.
    std::fs::write(one_dir.path().join("root.tar"), "another").unwrap();
    assert_eq!(builder.build(&one).unwrap().digest, built.digest);
    let elsewhere = Store::open(one_dir.path().join("other")).unwrap();
    let error = Builder::new(&elsewhere, &Silent).build(&one).unwrap_err();
    assert_eq!(error.class(), FailureClass::HashMismatch);
}

#[test]
fn a_kernel_without_a_directory_of_modules_loads_none_and_names_none() {
    let dir = tempfile::tempdir().unwrap();
    let mut recipe = testing::local_recipe(dir.path(), "run \"/usr/bin/tool\"");
    let crate::recipe::Kernel::File { modules, .. } = &mut recipe.kernel else { panic!("a file") };
    *modules = None;
    let store = Store::open(dir.path().join("store")).unwrap();
    assert!(build(&store, &recipe).modules.is_empty());
    recipe.modules = vec!["ext4".to_owned()];
    let error = Builder::new(&store, &Silent).build(&recipe).unwrap_err();
    assert!(error.to_string().contains("no module `ext4`"), "{error}");
}

#[test]
fn a_disk_the_recipe_formats_brings_its_filesystem_and_the_image_says_what_it_can_do() {
    use vmprof_job::{Filesystem, Mount, Mounted};

    let (_dir, store, mut recipe) = site(BODY);
    // The kernel made up for tests has ext4 built in, and no xfs.
    let able = Abilities { mounts: vec![Filesystem::Ext4], makes: vec![], shell: false };
    let image = build(&store, &recipe);
    assert_eq!(image.abilities, able);
    assert_eq!(build(&store, &recipe).abilities, able, "a warm build knows them too");
    let mount = Mount {
        path: "/srv".to_owned(),
        what: Mounted::Disk { serial: "data".to_owned() },
        options: vec![],
        owner: None,
        mode: None,
    };
    let on_disk = |format| crate::recipe::GuestMount { mount: mount.clone(), format, optional: false };
    for format in [None, Some(Filesystem::Ext4)] {
        recipe.conduct.mounts = vec![on_disk(format)];
        assert_eq!(build(&store, &recipe).modules, image.modules, "nothing that is built in is loaded");
    }
    recipe.conduct.mounts = vec![on_disk(Some(Filesystem::Xfs))];
    let error = Builder::new(&store, &Silent).offline(true).frozen(true).build(&recipe).unwrap_err();
    assert!(error.to_string().contains("no module `xfs`"), "{error}");
}
