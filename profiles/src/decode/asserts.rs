//! `assert "text" { … }`: a closed list of things that can be claimed.

use vmprof_document::{Node, Value, one_of};

use super::Reading;
use super::driver::{AIO, CACHE, DISCARD, RERROR, WERROR};
use crate::asserts::{About, Assert, Bounds, Claim, DiskClaim, PagesClaim, ThreadsClaim};
use crate::profile::PageSize;

impl<'a> Reading<'a> {
    /// Reads the asserts; `disks` are the names that a claim can be about.
    pub(super) fn asserts(&self, nodes: Vec<Node<'a>>, disks: &[&str]) -> Vec<Assert> {
        nodes.into_iter().map(|node| self.assert(node, disks)).collect()
    }

    fn assert(&self, node: Node<'a>, disks: &[&str]) -> Assert {
        let help = "say in quotes what it is for: `assert \"no page cache under a database\" { … }`";
        let text = node.required_arg("what it is for", help).and_then(|v| v.text()).unwrap_or_default();
        let mut claims = Vec::new();
        let block = node.children();
        if block.is_empty() {
            self.findings.push(
                node.problem("empty_assert", "this `assert` claims nothing")
                    .help("write in braces what must be so, such as `disk \"*\" cache=none`"),
            );
        }
        for node in block.all("disk") {
            self.disk_claims(node, disks, &mut claims);
        }
        for node in block.all("vcpu") {
            self.thread_claims(node, &mut claims, About::Vcpus);
        }
        for node in block.all("iothreads") {
            self.thread_claims(node, &mut claims, About::IoThreads);
        }
        for node in block.all("memory") {
            self.memory_claims(node, &mut claims);
        }
        for node in block.all("net") {
            let value = node.required_arg("what", "write `net none`").and_then(|v| v.word(&[("none", ())]));
            claims.extend(value.map(|()| Claim { span: node.name_span(), about: About::NoNet }));
            node.finish();
        }
        for node in block.all("same-node") {
            let name = node.required_prop("disk", "name a disk: `same-node disk=data`");
            let name = name.and_then(|v| Some((v, self.disk_named(v, disks)?)));
            claims.extend(name.map(|(v, name)| Claim { span: v.span(), about: About::SameNode(name) }));
            node.finish();
        }
        for node in block.all("without") {
            let help = "name the code of a remark: `without \"dense_host\"`";
            let value = node.required_arg("which remark", help).and_then(|v| Some((v, self.code(v)?)));
            claims.extend(value.map(|(v, code)| Claim { span: v.span(), about: About::Without(code) }));
            node.finish();
        }
        block.finish();
        let line = node.line();
        node.finish();
        Assert { text: text.to_owned(), line, claims }
    }

    fn disk_claims(&self, node: Node<'a>, disks: &[&str], claims: &mut Vec<Claim>) {
        let help = "name a disk, or write `disk \"*\"` for all of them";
        let name = match node.required_arg("which disk", help) {
            Some(v) if v.raw().as_string() == Some("*") => Some(None),
            Some(v) => self.disk_named(v, disks).map(Some),
            None => None,
        };
        let mut found: Vec<(Value<'a>, DiskClaim)> = Vec::new();
        let mut add = |value: Option<Value<'a>>, claim: &dyn Fn(&Value<'a>) -> Option<DiskClaim>| {
            found.extend(value.and_then(|v| Some((v, claim(&v)?))));
        };
        add(node.prop("cache"), &|v| Some(DiskClaim::Cache(v.word(&CACHE)?)));
        add(node.prop("aio"), &|v| Some(DiskClaim::Aio(v.word(&AIO)?)));
        add(node.prop("discard"), &|v| Some(DiskClaim::Discard(v.word(&DISCARD)?)));
        add(node.prop("rerror"), &|v| Some(DiskClaim::Rerror(v.word(&RERROR)?)));
        add(node.prop("werror"), &|v| Some(DiskClaim::Werror(v.word(&WERROR)?)));
        add(node.prop("readonly"), &|v| Some(DiskClaim::Readonly(v.bool()?)));
        add(node.prop("direct"), &|v| Some(DiskClaim::Direct(v.bool()?)));
        let count = |v: &Value<'a>| v.u64(1..=1024);
        let queues = |min, max| DiskClaim::Queues(Bounds { min, max });
        add(node.prop("queues"), &|v| count(v).map(|n| queues(n, n)));
        add(node.prop("queues-min"), &|v| count(v).map(|n| queues(n, u64::MAX)));
        add(node.prop("queues-max"), &|v| count(v).map(|n| queues(0, n)));
        self.claims_something(&node, "cache=none");
        if let Some(name) = name {
            let claim = |(v, claim): (Value<'a>, DiskClaim)| Claim {
                span: v.span(),
                about: About::Disk(name.clone(), claim),
            };
            claims.extend(found.into_iter().map(claim));
        }
        node.finish();
    }

    fn thread_claims(&self, node: Node<'a>, claims: &mut Vec<Claim>, about: fn(ThreadsClaim) -> About) {
        for (key, low) in [("min", true), ("max", false)] {
            let Some(value) = node.prop(key) else { continue };
            let Some(n) = value.u64(0..=1024) else { continue };
            let bounds = if low { Bounds { min: n, max: u64::MAX } } else { Bounds { min: 0, max: n } };
            claims.push(Claim { span: value.span(), about: about(ThreadsClaim::Count(bounds)) });
        }
        if let Some(value) = node.prop("pinned")
            && let Some(pinned) = value.bool()
        {
            claims.push(Claim { span: value.span(), about: about(ThreadsClaim::Pinned(pinned)) });
        }
        self.claims_something(&node, "pinned=#true");
        node.finish();
    }

    fn memory_claims(&self, node: Node<'a>, claims: &mut Vec<Claim>) {
        let words = [
            ("none", PagesClaim::None),
            ("any", PagesClaim::Any),
            ("2MiB", PagesClaim::Size(PageSize::Mib2)),
            ("1GiB", PagesClaim::Size(PageSize::Gib1)),
        ];
        if let Some(value) = node.prop("hugepages")
            && let Some(pages) = value.word(&words)
        {
            claims.push(Claim { span: value.span(), about: About::Hugepages(pages) });
        }
        for (key, low) in [("min", true), ("max", false)] {
            let Some(value) = node.prop(key) else { continue };
            let Some(bytes) = value.bytes() else { continue };
            let bounds =
                if low { Bounds { min: bytes, max: u64::MAX } } else { Bounds { min: 0, max: bytes } };
            claims.push(Claim { span: value.span(), about: About::MemoryBytes(bounds) });
        }
        self.claims_something(&node, "hugepages=any");
        node.finish();
    }

    fn claims_something(&self, node: &Node<'a>, example: &str) {
        if !node.has_props() {
            let message = format!("`{}` claims nothing", node.name());
            self.findings.push(
                node.problem("empty_assert", message)
                    .help(format!("say what must be so, such as `{example}`")),
            );
        }
    }

    fn disk_named(&self, value: Value<'a>, disks: &[&str]) -> Option<String> {
        let name = value.text()?;
        if disks.contains(&name) {
            return Some(name.to_owned());
        }
        let help = match vmprof_document::closest(name, disks.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if disks.is_empty() => "the profile has no disks".to_owned(),
            None => format!("the disks are {}", one_of(disks)),
        };
        self.findings.push(value.problem("no_such_disk", format!("there is no disk `{name}`")).help(help));
        None
    }

    fn code(&self, value: Value<'a>) -> Option<String> {
        let code = value.text()?;
        let last = code.rsplit("::").next().unwrap_or_default();
        let plain = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        };
        if plain(last) && (code == last || code.starts_with("vmprof::")) && code.split("::").all(plain) {
            return Some(code.to_owned());
        }
        self.findings.push(
            value
                .problem("bad_code", format!("\"{code}\" is not the code of a remark"))
                .help("write it whole or its last word, as the plan prints it: \"dense_host\""),
        );
        None
    }
}
