//! What is no domain of QEMU's is called what it is.

use miette::SourceSpan;
use roxmltree::Node;
use vmprof_document::Problem;

use super::AREA;

/// What the file is, where it is not XML as a whole.
pub(super) fn not_xml(xml: &str, error: &roxmltree::Error) -> Problem {
    let start = xml.trim_start();
    let said = |code: &str, message: &str, help: &str| {
        Problem::error(format!("{AREA}::{code}"), message)
            .at((xml.len() - start.len(), 0).into(), "here")
            .help(help)
    };
    if start.is_empty() {
        return said("not_xml", "the file is empty", "write the output of `virsh dumpxml NAME` into it");
    }
    if !start.starts_with('<') {
        let first = start.split_whitespace().next().unwrap_or_default();
        return match first.rsplit('/').next() {
            Some(program) if program.starts_with("qemu") || program == "kvm" => said(
                "not_xml",
                "this is a command line of QEMU, and no domain XML",
                "where libvirt started it, `virsh dumpxml NAME` has the domain",
            ),
            _ => said("not_xml", "this is no XML", "give it the output of `virsh dumpxml NAME`"),
        };
    }
    let position = error.pos();
    let line =
        xml.split_inclusive('\n').take(position.row.saturating_sub(1) as usize).map(str::len).sum::<usize>();
    let column =
        xml.get(line..).unwrap_or_default().char_indices().nth(position.col.saturating_sub(1) as usize);
    let offset = line + column.map_or(0, |(at, _)| at);
    Problem::error(format!("{AREA}::not_xml"), format!("the XML is broken: {error}"))
        .at((offset.min(xml.len()), 0).into(), format!("line {}, column {}", position.row, position.col))
        .help("`xmllint --noout FILE` checks it; `virsh dumpxml NAME` writes it whole")
}

/// What the file is, where it is no domain of QEMU's.
pub(super) fn not_a_domain(root: Node<'_, '_>) -> Option<Problem> {
    let at = SourceSpan::from((root.range().start, root.tag_name().name().len() + 1));
    let element = root.tag_name().name();
    if element != "domain" {
        let (what, help) = match element {
            "capabilities" => (
                "the capabilities of a host",
                "`virsh dumpxml NAME` writes a domain; `virsh list --all` has the names",
            ),
            "domainCapabilities" => {
                ("what domains of a host could be", "`virsh dumpxml NAME` writes a domain")
            }
            "domainsnapshot" | "domaincheckpoint" | "domainbackup" => {
                ("a snapshot or backup of a domain", "`virsh dumpxml NAME` writes the domain itself")
            }
            "domstatus" => {
                ("libvirt's own record of a running domain", "`virsh dumpxml NAME` writes the domain itself")
            }
            "network" | "pool" | "volume" | "interface" | "device" | "secret" | "nwfilter" => {
                ("another thing of libvirt's", "`virsh dumpxml NAME` writes a domain")
            }
            "topology" => ("the topology of a host", "`vmprof plan --host FILE` takes it"),
            _ => ("no document of libvirt's", "`virsh dumpxml NAME` writes a domain"),
        };
        return Some(
            Problem::error(
                format!("{AREA}::not_a_domain"),
                format!("`<{element}>` is {what}, and no domain"),
            )
            .at(at, "a domain begins with `<domain>`")
            .help(help),
        );
    }
    match root.attribute("type") {
        None | Some("kvm" | "qemu" | "kqemu") => None,
        Some(other) => Some(
            Problem::error(
                format!("{AREA}::other_hypervisor"),
                format!("this domain is for `{other}`, and not for QEMU"),
            )
            .at(at, "its type is here")
            .help("vmprof reads domains of the types kvm and qemu"),
        ),
    }
}
