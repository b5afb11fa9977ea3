use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;
use crate::error::FailureClass;
use crate::testing::{Thing, pack, tar};
use crate::tree::{Kind, Node};

/// An image as its files, by their paths in a layout or in an archive of `docker save`.
#[derive(Clone)]
struct Made {
    files: BTreeMap<String, Vec<u8>>,
    config: Sha256,
    manifest: Sha256,
    layers: Vec<Sha256>,
}

fn blob(files: &mut BTreeMap<String, Vec<u8>>, bytes: Vec<u8>) -> Sha256 {
    let digest = Sha256::of(&bytes);
    files.insert(format!("blobs/sha256/{digest}"), bytes);
    digest
}

fn described(kind: &str, digest: Sha256, bytes: usize) -> Value {
    json!({ "mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": bytes })
}

fn config(tars: &[Vec<u8>], architecture: &str) -> Vec<u8> {
    let ids: Vec<String> = tars.iter().map(|tar| format!("sha256:{}", Sha256::of(tar))).collect();
    let said = json!({ "Env": ["PATH=/usr/bin", "EMPTY"], "Entrypoint": ["/bin/tool"], "Cmd": ["a", "b"],
        "WorkingDir": "/srv", "User": "1:2" });
    json!({ "os": "linux", "architecture": architecture, "config": said, "rootfs": { "type": "layers", "diff_ids": ids } })
        .to_string()
        .into_bytes()
}

/// A layout of these layers, each packed in its way.
fn layout(layers: &[(&str, Vec<u8>)], architecture: &str) -> Made {
    let mut files = BTreeMap::new();
    let tars: Vec<Vec<u8>> = layers.iter().map(|(_, tar)| tar.clone()).collect();
    let bytes = config(&tars, architecture);
    let about_config = described("config.v1+json", Sha256::of(&bytes), bytes.len());
    let config = blob(&mut files, bytes);
    let mut digests = Vec::new();
    let mut described_layers = Vec::new();
    for (form, tar) in layers {
        let packed = pack(form, tar);
        let kind = match *form {
            ".gz" => "layer.v1.tar+gzip",
            ".zst" => "layer.v1.tar+zstd",
            _ => "layer.v1.tar",
        };
        described_layers.push(described(kind, Sha256::of(&packed), packed.len()));
        digests.push(blob(&mut files, packed));
    }
    let manifest = json!({ "schemaVersion": 2, "config": about_config, "layers": described_layers });
    let bytes = manifest.to_string().into_bytes();
    let mut about = described("manifest.v1+json", Sha256::of(&bytes), bytes.len());
    about["annotations"] = json!({ "org.opencontainers.image.ref.name": "trial" });
    let manifest = blob(&mut files, bytes);
    let index = json!({ "schemaVersion": 2, "manifests": [about] });
    files.insert("index.json".to_owned(), index.to_string().into_bytes());
    files.insert("oci-layout".to_owned(), b"{\"imageLayoutVersion\":\"1.0.0\"}".to_vec());
    Made { files, config, manifest, layers: digests }
}

/// What `docker save` wrote before version 25.
fn saved(layers: &[Vec<u8>]) -> Made {
    let mut files = BTreeMap::new();
    let bytes = config(layers, "amd64");
    let digest = Sha256::of(&bytes);
    files.insert(format!("{digest}.json"), bytes);
    let mut names = Vec::new();
    for (at, layer) in layers.iter().enumerate() {
        files.insert(format!("{at}/layer.tar"), layer.clone());
        names.push(format!("{at}/layer.tar"));
    }
    let manifest =
        json!([{ "Config": format!("{digest}.json"), "RepoTags": ["trial:latest"], "Layers": names }]);
    files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    Made { files, config: digest, manifest: digest, layers: Vec::new() }
}

impl Made {
    fn directory(&self, at: &Path) {
        for (path, bytes) in &self.files {
            let path = at.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
    }

    fn archive(&self) -> Vec<u8> {
        let things: Vec<(&str, Thing<'_>)> = self
            .files
            .iter()
            .map(|(path, bytes)| (path.as_str(), Thing::File(0o644, bytes.as_slice())))
            .collect();
        tar(&things)
    }

    /// Read from a directory.
    fn read(&self, digest: Sha256) -> Result<Image> {
        let dir = tempfile::tempdir().unwrap();
        self.directory(dir.path());
        read(dir.path(), digest)
    }
}

fn nodes(tree: &Tree) -> Vec<(String, Node)> {
    tree.iter().map(|(path, node)| (path.to_owned(), node.clone())).collect()
}

fn paths(tree: &Tree) -> Vec<&str> {
    tree.iter().map(|(path, _)| path).filter(|path| !path.is_empty()).collect()
}

fn two_layers() -> [Vec<u8>; 2] {
    [
        tar(&[
            ("bin", Thing::Link("usr/bin")),
            ("usr/bin/tool", Thing::File(0o755, b"one")),
            ("usr/bin/same", Thing::HardLink("usr/bin/tool")),
            ("etc/gone", Thing::File(0o644, b"")),
            ("opt/kept", Thing::File(0o644, b"")),
        ]),
        tar(&[
            ("etc/.wh.gone", Thing::File(0o644, b"")),
            ("etc/new", Thing::File(0o600, b"two")),
            ("bin/added", Thing::File(0o755, b"")),
        ]),
    ]
}

#[test]
fn every_form_of_an_image_and_every_digest_of_it_give_the_same_files() {
    let [one, two] = two_layers();
    let made = layout(&[(".gz", one.clone()), (".zst", two.clone())], "amd64");
    let first = made.read(made.manifest).unwrap();
    assert_eq!(
        paths(&first.tree),
        [
            "bin",
            "etc",
            "etc/new",
            "opt",
            "opt/kept",
            "usr",
            "usr/bin",
            "usr/bin/added",
            "usr/bin/same",
            "usr/bin/tool"
        ]
    );
    let config = ImageConfig {
        env: vec![("PATH".to_owned(), "/usr/bin".to_owned()), ("EMPTY".to_owned(), String::new())],
        argv: vec!["/bin/tool".to_owned(), "a".to_owned(), "b".to_owned()],
        directory: Some("/srv".to_owned()),
        user: Some("1:2".to_owned()),
        stop_signal: None,
    };
    assert_eq!(first.config, config);

    let same = |what: &str, image: Result<Image>| {
        let image = image.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(nodes(&image.tree), nodes(&first.tree), "{what}");
        assert_eq!(image.config, config, "{what}");
    };
    same("by its config", made.read(made.config));
    same("by its index", made.read(Sha256::of(&made.files["index.json"])));
    let dir = tempfile::tempdir().unwrap();
    let archived = |what: &str, made: &Made, form: &str, digest: Sha256| {
        let path = dir.path().join("image.tar");
        std::fs::write(&path, pack(form, &made.archive())).unwrap();
        same(what, read(&path, digest));
    };
    archived("in a tar", &made, "", made.manifest);
    archived("in a packed tar", &made, ".gz", made.config);
    let old = saved(&[one.clone(), two.clone()]);
    archived("docker save, old", &old, "", old.config);
    let mut new = layout(&[("", one), ("", two)], "amd64");
    let names: Vec<String> = new.layers.iter().map(|layer| format!("blobs/sha256/{layer}")).collect();
    let manifest =
        json!([{ "Config": format!("blobs/sha256/{}", new.config), "RepoTags": null, "Layers": names }]);
    new.files.insert("manifest.json".to_owned(), manifest.to_string().into_bytes());
    archived("docker save, new, by its id", &new, "", new.config);
    archived("docker save, new, by its manifest", &new, "", new.manifest);
    new.files.remove("index.json");
    archived("docker save, new, without an index", &new, "", new.config);
}

#[test]
fn a_layer_that_is_a_link_to_another_is_that_other_and_may_not_lead_out() {
    let [one, _] = two_layers();
    let made = saved(std::slice::from_ref(&one));
    for (target, whole) in
        [("../real/layer.tar", true), ("../../layer.tar", false), ("layer.tar", false), ("/x", false)]
    {
        let mut things: Vec<(&str, Thing<'_>)> = vec![("real/layer.tar", Thing::File(0o644, &one))];
        for (path, bytes) in &made.files {
            match path.as_str() {
                "0/layer.tar" => things.push(("0/layer.tar", Thing::Link(target))),
                path => things.push((path, Thing::File(0o644, bytes))),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        std::fs::write(&path, tar(&things)).unwrap();
        assert_eq!(read(&path, made.config).is_ok(), whole, "{target}");
    }
}

#[test]
fn a_changed_byte_of_any_blob_is_a_mismatch() {
    let [one, two] = two_layers();
    let made = layout(&[(".gz", one.clone()), ("", two)], "amd64");
    for digest in [made.manifest, made.config, made.layers[0], made.layers[1]] {
        let mut other = made.clone();
        let bytes = other.files.get_mut(&format!("blobs/sha256/{digest}")).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        let error = other.read(made.manifest).unwrap_err();
        assert_eq!(error.class(), FailureClass::HashMismatch, "{error}");
        assert!(error.to_string().contains(&digest.to_string()), "{error}");
    }
    // What `docker save` of old names no digest of: the config does, of the layer unpacked.
    let mut old = saved(&[one]);
    old.files.get_mut("0/layer.tar").unwrap()[600] ^= 1;
    assert_eq!(old.read(old.config).unwrap_err().class(), FailureClass::HashMismatch);
    let name = format!("{}.json", old.config);
    old.files.get_mut(&name).unwrap().push(b' ');
    assert_eq!(old.read(old.config).unwrap_err().class(), FailureClass::HashMismatch);
    // A layer that unpacks to something else than the config says.
    let [one, two] = two_layers();
    let mut lying = layout(&[("", one.clone())], "amd64");
    let other = layout(&[("", two)], "amd64");
    let text = String::from_utf8(lying.files[&format!("blobs/sha256/{}", lying.manifest)].clone()).unwrap();
    lying.files.extend(other.files.clone());
    let wrong = text.replace(&lying.config.to_string(), &other.config.to_string());
    let digest = blob(&mut lying.files, wrong.into_bytes());
    let error = lying.read(digest).unwrap_err();
    assert!(error.class() == FailureClass::HashMismatch && error.to_string().contains("unpacked"), "{error}");
}

#[test]
fn a_digest_that_is_not_there_lists_what_is() {
    let [one, two] = two_layers();
    let absent = Sha256::of(b"absent");
    let made = layout(&[("", one.clone())], "amd64");
    let help = |error: &GuestError| miette::Diagnostic::help(error).unwrap().to_string();
    let error = made.read(absent).unwrap_err();
    assert_eq!(error.class(), FailureClass::Invalid);
    let said = help(&error);
    for part in [made.manifest.to_string(), made.config.to_string(), "trial".to_owned()] {
        assert!(said.contains(&part), "{said}");
    }
    let old = saved(&[two]);
    let said = help(&old.read(absent).unwrap_err());
    assert!(said.contains(&old.config.to_string()) && said.contains("trial:latest"), "{said}");
    // A blob that is no image is no image.
    let error = made.read(made.layers[0]).unwrap_err();
    assert!(error.to_string().contains("not an image"), "{error}");
}

#[test]
fn of_an_index_the_image_for_this_platform_is_taken_and_another_alone_is_refused() {
    let [one, two] = two_layers();
    let (ours, arm) = (layout(&[("", one)], "amd64"), layout(&[("", two)], "arm64"));
    let mut files = ours.files.clone();
    files.extend(arm.files.clone());
    let entry = |made: &Made, architecture: &str| json!({ "digest": format!("sha256:{}", made.manifest), "platform": { "os": "linux", "architecture": architecture } });
    let both = json!({ "manifests": [entry(&arm, "arm64"), entry(&ours, "amd64")] }).to_string().into_bytes();
    let index = blob(&mut files, both);
    let only = blob(&mut files, json!({ "manifests": [entry(&arm, "arm64")] }).to_string().into_bytes());
    let made = Made { files, ..ours };
    assert!(paths(&made.read(index).unwrap().tree).contains(&"opt/kept"));
    for digest in [only, arm.manifest] {
        let error = made.read(digest).unwrap_err();
        assert!(
            matches!(&error, GuestError::Oci(OciError::Platform { platform, .. }) if platform == "linux/arm64"),
            "{error}"
        );
    }
}

#[test]
fn layers_that_are_elsewhere_or_of_an_unknown_kind_are_refused() {
    let [one, _] = two_layers();
    for kind in [
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        "application/vnd.wasm.content.layer.v1+wasm",
    ] {
        let mut made = layout(&[("", one.clone())], "amd64");
        let text = String::from_utf8(made.files[&format!("blobs/sha256/{}", made.manifest)].clone()).unwrap();
        let text = text.replace("application/vnd.oci.image.layer.v1.tar", kind);
        let digest = blob(&mut made.files, text.into_bytes());
        let error = made.read(digest).unwrap_err();
        assert!(matches!(error, GuestError::Oci(OciError::Layer { .. })), "{error}");
    }
}

/// The tree after these layers, or why not.
fn stacked(layers: &[&[(&str, Thing<'_>)]]) -> Result<Tree, String> {
    let mut tree = Tree::default();
    for (at, things) in layers.iter().enumerate() {
        layers::apply(&mut tree, &at.to_string(), &tar(things))?;
    }
    Ok(tree)
}

const FILE: Thing<'static> = Thing::File(0o644, b"");

#[test]
fn whiteouts_hide_what_is_below_and_nothing_of_their_own_layer() {
    let lower: &[(&str, Thing<'_>)] =
        &[("a/one", FILE), ("a/two", FILE), ("b/one", FILE), ("b/deep/two", FILE), ("c", Thing::Link("a"))];
    for (upper, left) in [
        (&[("a/.wh.one", FILE)][..], &["a", "a/two", "b", "b/deep", "b/deep/two", "b/one", "c"][..]),
        (&[(".wh.a", FILE)], &["b", "b/deep", "b/deep/two", "b/one", "c"]),
        // Whether it stands before or behind what the layer adds.
        (
            &[("a/new", FILE), ("a/.wh..wh..opq", FILE)],
            &["a", "a/new", "b", "b/deep", "b/deep/two", "b/one", "c"],
        ),
        (
            &[("a/one", FILE), ("a/.wh.one", FILE)],
            &["a", "a/one", "a/two", "b", "b/deep", "b/deep/two", "b/one", "c"],
        ),
        (&[(".wh..wh..opq", FILE), ("new", FILE)], &["new"]),
        (&[("a/.wh.absent", FILE), (".wh.b", FILE)], &["a", "a/one", "a/two", "c"]),
        // A directory in place of a link: what the link led to stays.
        (
            &[("c", Thing::Dir), ("c/.wh..wh..opq", FILE), ("c/new", FILE)],
            &["a", "a/one", "a/two", "b", "b/deep", "b/deep/two", "b/one", "c", "c/new"],
        ),
        // A file in place of a directory takes all that was below.
        (&[("b", FILE), ("c/added", FILE)], &["a", "a/added", "a/one", "a/two", "b", "c"]),
    ] {
        assert_eq!(paths(&stacked(&[lower, upper]).unwrap()), left, "{upper:?}");
    }
    for upper in [".wh.", "a/.wh..wh.plnk", ".wh.x/y", ".wh..", ".wh..."] {
        let result = stacked(&[lower, &[(upper, FILE)]]);
        assert!(result.is_err(), "{upper}");
    }
}

#[test]
fn a_hard_link_may_lead_to_a_layer_below_and_a_changed_name_leaves_its_group() {
    let lower: &[(&str, Thing<'_>)] = &[("a", Thing::File(0o755, b"1")), ("b", Thing::HardLink("a"))];
    let tree = stacked(&[lower, &[("c", Thing::HardLink("b")), ("a", Thing::File(0o755, b"2"))]]).unwrap();
    let inode = |path: &str| tree.at(path).unwrap().inode.clone();
    assert!(inode("b").is_some() && inode("b") == inode("c"));
    assert_eq!(inode("a"), None);
    assert_eq!(tree.at("b").unwrap().kind, Kind::File((*b"1").into()));
    assert!(
        stacked(&[lower, &[("c", Thing::HardLink("absent"))]])
            .unwrap_err()
            .contains("not in the image so far")
    );
}

#[test]
fn a_directory_said_again_takes_the_new_owner_and_keeps_what_is_in_it() {
    let tree = stacked(&[&[("d/x", FILE)], &[("d", Thing::Dir)]]).unwrap();
    assert_eq!(paths(&tree), ["d", "d/x"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), tar(&[("x", FILE)])).unwrap();
    let error = read(file.path(), Sha256::of(b"")).unwrap_err();
    assert!(error.to_string().contains("neither an index.json nor a manifest.json"), "{error}");
}
