//! What a guest of systemd needs in its tree: the links that `systemctl enable` and `systemctl mask` would make, and an empty
//! machine id. Units are read as systemd.unit(5) has them: their `[Install]` section, drop-ins included.

use std::collections::BTreeSet;

use super::RootError;
use crate::error::{GuestError, Result};
use crate::tree::{Kind, Node, Origin, Tree};

const PROGRAM: &str = "/usr/lib/systemd/systemd";
/// Where links go, and the first place units are looked for.
const CONFIGURED: &str = "etc/systemd/system";
const PLACES: [&str; 3] = [CONFIGURED, "usr/local/lib/systemd/system", "usr/lib/systemd/system"];
const MACHINE_ID: &str = "etc/machine-id";

/// Enables and masks units. `/lib/systemd/systemd` is the same path in a merged tree.
pub(super) fn put(tree: &mut Tree, guest: &str, enable: &[String], mask: &[String]) -> Result<()> {
    if tree.look(PROGRAM).or_else(|| tree.look("/lib/systemd/systemd")).is_none() {
        return Err(RootError::NoSystemd { guest: guest.to_owned() }.into());
    }
    let by = &Origin::Recipe;
    if tree.look(MACHINE_ID).is_none() {
        // Empty, and there: systemd makes an id for this boot, and takes nothing for a first boot.
        tree.put(MACHINE_ID, Node::file(0o444, Vec::new()), by)?;
    }
    let mut done = BTreeSet::new();
    let mut left: Vec<String> = enable.iter().rev().cloned().collect();
    while let Some(asked) = left.pop() {
        if !done.insert(asked.clone()) {
            continue;
        }
        let unit = Unit::find(tree, &asked).ok_or_else(|| no_unit(tree, guest, &asked))?;
        let install = unit.install(tree);
        let refused = |problem: String| RootError::UnitRefused { unit: asked.clone(), problem }.into();
        if install.is_empty() {
            return Err(refused(
                "it has no [Install] section, so that other units start it or nothing does".into(),
            ));
        }
        let name = unit.instantiated(install.default_instance.as_deref()).map_err(refused)?;
        let expand = |word: &str| expanded(word, &name).map_err(refused);
        let target = format!("/{}", unit.path);
        for (kind, wanting) in [
            ("wants", &install.wanted_by),
            ("requires", &install.required_by),
            ("upholds", &install.upheld_by),
        ] {
            for other in wanting {
                let link = format!("{CONFIGURED}/{}.{kind}/{name}", expand(other)?);
                tree.put(&link, Node::link(target.as_str()), by)?;
            }
        }
        for alias in &install.alias {
            let alias = expand(alias)?;
            if alias != name {
                tree.put(&format!("{CONFIGURED}/{alias}"), Node::link(target.as_str()), by)?;
            }
        }
        for also in install.also.iter().rev() {
            left.push(expand(also)?);
        }
    }
    for name in mask {
        let at = format!("{CONFIGURED}/{name}");
        if tree.look(&at).is_some_and(|(path, _)| path == at) {
            let problem = format!("/{at} is a file of the image, which a mask would replace");
            return Err(RootError::UnitRefused { unit: name.clone(), problem }.into());
        }
        tree.put(&at, Node::link("/dev/null"), by)?;
    }
    Ok(())
}

fn no_unit(tree: &Tree, guest: &str, asked: &str) -> GuestError {
    let names = tree.iter().filter_map(|(path, _)| {
        let (directory, name) = path.rsplit_once('/')?;
        PLACES.contains(&directory).then_some(name)
    });
    let near = vmprof_document::closest(asked, names).map(str::to_owned);
    RootError::NoUnit { guest: guest.to_owned(), unit: asked.to_owned(), near }.into()
}

/// A unit's file.
#[derive(Debug)]
struct Unit {
    /// Links followed: the name of the file, with the instance that was asked for.
    name: String,
    /// Where the file lies.
    path: String,
    text: String,
}

/// What `[Install]` says.
#[derive(Debug, Default)]
struct Install {
    wanted_by: Vec<String>,
    required_by: Vec<String>,
    upheld_by: Vec<String>,
    alias: Vec<String>,
    also: Vec<String>,
    default_instance: Option<String>,
}

impl Install {
    fn is_empty(&self) -> bool {
        [&self.wanted_by, &self.required_by, &self.upheld_by, &self.alias, &self.also]
            .iter()
            .all(|l| l.is_empty())
    }

    fn read(&mut self, text: &str) {
        let joined = text.replace("\\\n", " ");
        let mut inside = false;
        for line in joined.lines().map(str::trim) {
            if line.starts_with(['#', ';']) {
                continue;
            }
            if line.starts_with('[') {
                inside = line == "[Install]";
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| inside) else { continue };
            let list = match key.trim() {
                "WantedBy" => &mut self.wanted_by,
                "RequiredBy" => &mut self.required_by,
                "UpheldBy" => &mut self.upheld_by,
                "Alias" => &mut self.alias,
                "Also" => &mut self.also,
                "DefaultInstance" => {
                    self.default_instance = Some(value.trim().to_owned()).filter(|name| !name.is_empty());
                    continue;
                }
                _ => continue,
            };
            // An empty value takes back what was said so far.
            if value.trim().is_empty() {
                list.clear();
            }
            list.extend(value.split_whitespace().map(str::to_owned));
        }
    }
}

impl Unit {
    fn find(tree: &Tree, name: &str) -> Option<Self> {
        let template = parts(name).filter(|(_, instance, _)| !instance.is_empty());
        let template = template.map(|(prefix, _, suffix)| format!("{prefix}@{suffix}"));
        for sought in [Some(name.to_owned()), template].into_iter().flatten() {
            for place in PLACES {
                let Some((path, Node { kind: Kind::File(content), .. })) =
                    tree.look(&format!("{place}/{sought}"))
                else {
                    continue;
                };
                let file = path.rsplit('/').next().unwrap_or_default();
                let name = match (parts(file), parts(name)) {
                    (Some((prefix, "", suffix)), Some((_, instance, _))) => {
                        format!("{prefix}@{instance}{suffix}")
                    }
                    _ => file.to_owned(),
                };
                return Some(Self { name, text: String::from_utf8_lossy(content).into_owned(), path });
            }
        }
        None
    }

    fn install(&self, tree: &Tree) -> Install {
        let mut install = Install::default();
        install.read(&self.text);
        let mut drop_ins: Vec<(&str, &str)> = Vec::new();
        for place in PLACES {
            let directory = format!("{place}/{}.d/", self.name);
            for (path, node) in tree.iter() {
                let Some(name) = path.strip_prefix(&directory).filter(|name| name.ends_with(".conf")) else {
                    continue;
                };
                // The first place that has a name hides it in the others.
                if let Kind::File(content) = &node.kind
                    && drop_ins.iter().all(|(known, _)| *known != name)
                {
                    drop_ins.push((name, std::str::from_utf8(content).unwrap_or_default()));
                }
            }
        }
        drop_ins.sort_unstable();
        drop_ins.iter().for_each(|(_, text)| install.read(text));
        install
    }

    /// The name that links carry: a template needs an instance.
    fn instantiated(&self, default: Option<&str>) -> Result<String, String> {
        match (parts(&self.name), default) {
            (Some((prefix, "", suffix)), Some(instance)) => Ok(format!("{prefix}@{instance}{suffix}")),
            (Some((prefix, "", suffix)), None) => {
                Err(format!("it is a template without a default instance: write \"{prefix}@NAME{suffix}\""))
            }
            _ => Ok(self.name.clone()),
        }
    }
}

/// `getty@tty1.service` → `getty`, `tty1`, `.service`; `None` for what has no `@`.
fn parts(name: &str) -> Option<(&str, &str, &str)> {
    let (stem, suffix) = name.split_at(name.rfind('.')?);
    let (prefix, instance) = stem.split_once('@')?;
    Some((prefix, instance, suffix))
}

/// A word of `[Install]` with its specifiers filled in, as far as an image can know them.
fn expanded(word: &str, name: &str) -> Result<String, String> {
    let stem = name.rfind('.').map_or(name, |dot| &name[..dot]);
    let (prefix, instance) = parts(name).map_or((stem, ""), |(prefix, instance, _)| (prefix, instance));
    let mut out = String::new();
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push_str(name),
            Some('N') => out.push_str(stem),
            Some('p') => out.push_str(prefix),
            Some('i') => out.push_str(instance),
            Some('j') => out.push_str(prefix.rsplit('-').next().unwrap_or_default()),
            Some('%') => out.push('%'),
            other => {
                let specifier = other.map_or("%".to_owned(), |c| format!("%{c}"));
                return Err(format!(
                    "its [Install] section says `{word}`, and an image does not know {specifier}"
                ));
            }
        }
    }
    if out.is_empty() || out.contains('/') || out == ".." {
        return Err(format!("its [Install] section says `{word}`, which is no unit's name"));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(units: &[(&str, &str)]) -> Tree {
        let mut tree = Tree::default();
        for (path, text) in [(&PROGRAM[1..], "")].iter().chain(units) {
            tree.put(path, Node::file(0o644, text.as_bytes()), &Origin::Builder).unwrap();
        }
        tree
    }

    /// The links below /etc/systemd/system, each as `path -> target`.
    fn links(tree: &Tree) -> Vec<String> {
        let link = |(path, node): (&str, &Node)| match &node.kind {
            Kind::Link(target) => Some(format!("{} -> {target}", path.strip_prefix(CONFIGURED)?)),
            _ => None,
        };
        tree.iter().filter_map(link).collect()
    }

    fn put_all(tree: &mut Tree, enable: &[&str], mask: &[&str]) -> Result<()> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        put(tree, "trial", &owned(enable), &owned(mask))
    }

    #[test]
    fn units_are_linked_as_their_install_sections_say() {
        let mut tree = tree(&[
            (
                "usr/lib/systemd/system/networkd.service",
                "[Unit]\nWantedBy=no\n[Install]\nWantedBy=multi-user.target \\\n  other.target\nAlias=dbus-org.n.service\nAlso=networkd.socket absent-is-not.socket\nAlso=\nAlso=networkd.socket\n",
            ),
            (
                "usr/lib/systemd/system/networkd.socket",
                "[Install]\n# WantedBy=x\nRequiredBy=sockets.target\n",
            ),
            (
                "usr/lib/systemd/system/getty@.service",
                "[Install]\nWantedBy=getty.target\nDefaultInstance=tty1\n",
            ),
            ("usr/lib/systemd/system/net@.service", "[Install]\nWantedBy=dev-%i.device\nAlias=%p.service\n"),
        ]);
        put_all(&mut tree, &["networkd.service", "getty@.service", "net@eth0.service"], &["apt.timer"])
            .unwrap();
        assert_eq!(
            links(&tree),
            [
                "/apt.timer -> /dev/null",
                "/dbus-org.n.service -> /usr/lib/systemd/system/networkd.service",
                "/dev-eth0.device.wants/net@eth0.service -> /usr/lib/systemd/system/net@.service",
                "/getty.target.wants/getty@tty1.service -> /usr/lib/systemd/system/getty@.service",
                "/multi-user.target.wants/networkd.service -> /usr/lib/systemd/system/networkd.service",
                "/net.service -> /usr/lib/systemd/system/net@.service",
                "/other.target.wants/networkd.service -> /usr/lib/systemd/system/networkd.service",
                "/sockets.target.requires/networkd.socket -> /usr/lib/systemd/system/networkd.socket",
            ]
        );
        let id = tree.look(MACHINE_ID).map(|(_, node)| node.clone()).unwrap();
        assert_eq!((id.mode, id.kind), (0o444, Kind::File((&b""[..]).into())));
    }

    #[test]
    fn a_drop_in_and_an_alias_count() {
        let mut tree = tree(&[
            ("usr/lib/systemd/system/a.service", "[Service]\n"),
            ("etc/systemd/system/a.service.d/10-install.conf", "[Install]\nWantedBy=x.target\n"),
        ]);
        tree.put("usr/lib/systemd/system/b.service", Node::link("a.service"), &Origin::Builder).unwrap();
        put_all(&mut tree, &["b.service"], &[]).unwrap();
        assert_eq!(links(&tree), ["/x.target.wants/a.service -> /usr/lib/systemd/system/a.service"]);
    }

    #[test]
    fn what_cannot_be_enabled_is_refused_by_name() {
        let units = [
            ("usr/lib/systemd/system/plain.service", "[Service]\n"),
            ("usr/lib/systemd/system/t@.service", "[Install]\nWantedBy=x.target\n"),
            ("usr/lib/systemd/system/s.service", "[Install]\nWantedBy=%H.target\n"),
            ("etc/systemd/system/own.service", "[Install]\nWantedBy=x.target\n"),
        ];
        let refused = |enable: &str| put_all(&mut tree(&units), &[enable], &[]).unwrap_err().to_string();
        assert!(refused("plain.service").contains("no [Install] section"));
        assert!(refused("t@.service").contains("t@NAME.service"));
        assert!(refused("s.service").contains("%H"));
        assert!(matches!(
            put_all(&mut tree(&units), &["plian.service"], &[]),
            Err(GuestError::Root(RootError::NoUnit { near: Some(near), .. })) if near == "plain.service"
        ));
        assert!(put_all(&mut tree(&units), &[], &["own.service"]).is_err());
        assert!(matches!(
            put_all(&mut Tree::default(), &[], &[]),
            Err(GuestError::Root(RootError::NoSystemd { .. }))
        ));
    }
}
