//! What leases become in the guest: an address, a route, an MTU, and where names are asked for.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use rustix::io::Errno;

use super::lease::Lease;
use crate::netlink;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The first line of one that is ours, and may be written again.
const MARK: &str = "# Written by vmprof's first process, of the leases that DHCP gave.";

/// Makes of an interface that has `before` what `lease` says. The error is of what a guest cannot do without.
pub(super) fn apply(
    lease: &Lease,
    before: Option<&Lease>,
    interface: u32,
    metric: u32,
) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what} was not taken: {error}");
    if let Some(before) = before
        && is_to_go(before, lease)
    {
        remove(before, interface)?;
    }
    if let Some(mtu) = lease.mtu
        && let Err(error) = netlink::set_mtu(interface, u32::from(mtu))
    {
        // The device's own is smaller: what is larger is cut up.
        crate::kmsg::note(failed(&format!("the MTU of {mtu} bytes"), error));
    }
    netlink::set_address(interface, lease.address, lease.prefix, lease.seconds)
        .map_err(|error| failed(&format!("the address {}/{}", lease.address, lease.prefix), error))?;
    if let Some(router) = lease.router {
        netlink::set_default_route(interface, router, metric)
            .map_err(|error| failed(&format!("the route by {router}"), error))?;
    }
    Ok(())
}

/// Another address, which the old one would stand beside, or no route any more, which goes with the address alone.
pub(super) fn is_to_go(before: &Lease, now: &Lease) -> bool {
    let is_other = (before.address, before.prefix) != (now.address, now.prefix);
    is_other || (before.router.is_some() && now.router.is_none())
}

/// Takes the address away, and with an interface's last one the kernel takes its routes. The link stays up.
pub(super) fn remove(lease: &Lease, interface: u32) -> Result<(), String> {
    match netlink::remove_address(interface, lease.address, lease.prefix) {
        // Its time had passed.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::ADDRNOTAVAIL) => Ok(()),
        outcome => {
            outcome.map_err(|error| format!("the address {}/{} stays: {error}", lease.address, lease.prefix))
        }
    }
}

/// What a lease says of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Names {
    pub(super) nameservers: Vec<Ipv4Addr>,
    pub(super) domain: Option<String>,
}

/// How a lease's process tells of it; `None` where it has none any more.
pub(super) fn line(names: &Option<Names>) -> Vec<u8> {
    vmprof_job::line(&names.as_ref().map(|names| (&names.nameservers, &names.domain)))
}

/// The same, read.
pub(super) fn told(line: &[u8]) -> Option<Option<Names>> {
    let told: Option<(Vec<Ipv4Addr>, Option<String>)> = serde_json::from_slice(line).ok()?;
    Some(told.map(|(nameservers, domain)| Names { nameservers, domain }))
}

/// Asks names where the devices' leases say, in the devices' order.
pub(super) fn resolve(devices: &[Option<Names>]) -> Result<(), String> {
    resolve_with(Path::new(RESOLV_CONF), devices).map_err(|error| format!("{RESOLV_CONF}: {error}"))
}

/// An image's own stays as it is, an empty one apart, which is what tools make for a container.
fn resolve_with(path: &Path, devices: &[Option<Names>]) -> io::Result<()> {
    // The last one is as good as none when none is left.
    let Some(text) = text(devices) else { return Ok(()) };
    match fs::read_to_string(path) {
        Ok(found) if found == text => return Ok(()),
        Ok(found) if !found.trim().is_empty() && !found.starts_with(MARK) => return Ok(()),
        // The name of a file that is elsewhere, such as systemd-resolved's: who has it writes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => return Ok(()),
        _ => {}
    }
    let beside = path.with_extension("conf.vmprof");
    fs::write(&beside, text)?;
    // Nobody reads half of it.
    fs::rename(&beside, path)
}

/// resolv.conf(5); `None` without a nameserver. The C library asks the first three, one after the other.
fn text(devices: &[Option<Names>]) -> Option<String> {
    let (mut domains, mut servers) = (Vec::new(), Vec::new());
    for names in devices.iter().flatten() {
        if let Some(domain) = names.domain.as_ref().filter(|domain| !domains.contains(domain)) {
            domains.push(domain);
        }
        for server in &names.nameservers {
            if !servers.contains(server) {
                servers.push(*server);
            }
        }
    }
    if servers.is_empty() {
        return None;
    }
    let mut text = format!("{MARK}\n");
    if !domains.is_empty() {
        text.push_str("search");
        domains.iter().for_each(|domain| text.push_str(&format!(" {domain}")));
        text.push('\n');
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    Some(text)
}

/// Option 15 of DHCP, where it is a name: whoever gives leases writes no other lines into the file.
pub(super) fn domain(bytes: &[u8]) -> Option<String> {
    // Some servers count the string's end.
    let name = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(plain)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests;
