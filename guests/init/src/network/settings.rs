//! What a lease becomes in the guest: an address, a route, an MTU, and where names are asked for.

use std::fs;
use std::io;
use std::path::Path;

use super::lease::Lease;
use crate::netlink;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The first line of one that is ours, and may be written again.
const MARK: &str = "# Written by vmprof's first process, of the lease that DHCP gave.";

/// All of it; the error is of what a guest cannot do without.
pub(super) fn apply(lease: &Lease, interface: u32, metric: u32) -> Result<(), String> {
    let failed = |what: &str, error: io::Error| format!("{what} was not taken: {error}");
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
    if !lease.nameservers.is_empty() {
        resolve_with(Path::new(RESOLV_CONF), lease).map_err(|error| failed(RESOLV_CONF, error))?;
    }
    Ok(())
}

/// An image's own stays as it is, an empty one apart, which is what tools make for a container.
fn resolve_with(path: &Path, lease: &Lease) -> io::Result<()> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() && !text.starts_with(MARK) => return Ok(()),
        // The name of a file that is elsewhere, such as systemd-resolved's: who has it writes it.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_symlink() => return Ok(()),
        _ => {}
    }
    let beside = path.with_extension("conf.vmprof");
    fs::write(&beside, text(lease))?;
    // Nobody reads half of it.
    fs::rename(&beside, path)
}

/// resolv.conf(5).
fn text(lease: &Lease) -> String {
    let mut text = format!("{MARK}\n");
    if let Some(domain) = &lease.domain {
        text.push_str(&format!("search {domain}\n"));
    }
    for server in &lease.nameservers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    text
}

/// Option 15 of DHCP, where it is a name: whoever gives leases writes no other lines into the file.
pub(super) fn domain(bytes: &[u8]) -> Option<String> {
    // Some servers count the string's end.
    let name = std::str::from_utf8(bytes).ok()?.trim_end_matches('\0');
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    (!name.is_empty() && name.len() <= 253 && name.bytes().all(plain)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::os::unix::fs::symlink;

    use super::*;

    fn lease(domain: Option<&str>) -> Lease {
        Lease {
            address: Ipv4Addr::new(10, 0, 2, 15),
            prefix: 24,
            router: None,
            nameservers: vec![Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(1, 1, 1, 1)],
            domain: domain.map(str::to_owned),
            mtu: None,
            seconds: 60,
        }
    }

    #[test]
    fn names_are_asked_for_where_the_lease_says_unless_the_image_says_where() {
        let etc = tempfile::tempdir().unwrap();
        let path = etc.path().join("resolv.conf");
        let read = || fs::read_to_string(&path).unwrap();
        resolve_with(&path, &lease(Some("lab.example"))).unwrap();
        assert_eq!(read(), format!("{MARK}\nsearch lab.example\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n"));
        resolve_with(&path, &lease(None)).unwrap();
        assert_eq!(read(), format!("{MARK}\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n"));
        fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
        resolve_with(&path, &lease(None)).unwrap();
        assert_eq!(read(), "nameserver 192.0.2.1\n");
        fs::write(&path, "\n").unwrap();
        resolve_with(&path, &lease(None)).unwrap();
        assert!(read().starts_with(MARK));
        fs::remove_file(&path).unwrap();
        symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
        resolve_with(&path, &lease(None)).unwrap();
        assert!(path.is_symlink());
        assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_domain_that_is_more_than_a_name_is_none() {
        assert_eq!(domain(b"lab.example\0").as_deref(), Some("lab.example"));
        for bad in [&b""[..], b"\0", b"a\nnameserver 6.6.6.6", b"a b", b"\xff", &[b'a'; 254]] {
            assert_eq!(domain(bad), None, "{bad:?}");
        }
    }
}
