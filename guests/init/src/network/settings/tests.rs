use std::os::unix::fs::symlink;
use std::process::Command;
use std::time::{Duration, Instant};

use super::*;

fn names(nameservers: &[[u8; 4]], domain: Option<&str>) -> Option<Names> {
    let nameservers = nameservers.iter().map(|octets| Ipv4Addr::from(*octets)).collect();
    Some(Names { nameservers, domain: domain.map(str::to_owned) })
}

#[test]
fn names_are_asked_for_where_the_leases_say_unless_the_image_says_where() {
    let etc = tempfile::tempdir().unwrap();
    let path = etc.path().join("resolv.conf");
    let read = || fs::read_to_string(&path).unwrap();
    let one = |domain| [names(&[[10, 0, 2, 3], [1, 1, 1, 1]], domain)];
    resolve_with(&path, &one(Some("lab.example"))).unwrap();
    assert_eq!(read(), format!("{MARK}\nsearch lab.example\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n"));
    resolve_with(&path, &one(None)).unwrap();
    assert_eq!(read(), format!("{MARK}\nnameserver 10.0.2.3\nnameserver 1.1.1.1\n"));
    fs::write(&path, "nameserver 192.0.2.1\n").unwrap();
    resolve_with(&path, &one(None)).unwrap();
    assert_eq!(read(), "nameserver 192.0.2.1\n");
    fs::write(&path, "\n").unwrap();
    resolve_with(&path, &one(None)).unwrap();
    assert!(read().starts_with(MARK));
    fs::remove_file(&path).unwrap();
    resolve_with(&path, &[None, names(&[], Some("lab.example"))]).unwrap();
    assert!(!path.exists(), "a lease without a nameserver says nothing of names");
    symlink("../run/systemd/resolve/stub-resolv.conf", &path).unwrap();
    resolve_with(&path, &one(None)).unwrap();
    assert!(path.is_symlink());
    assert_eq!(fs::read_dir(etc.path()).unwrap().count(), 1);
}

#[test]
fn the_first_devices_names_go_first_whoever_was_leased_first() {
    let devices = [
        names(&[[10, 0, 2, 3]], Some("a.example")),
        None,
        names(&[[10, 0, 4, 3], [10, 0, 2, 3]], Some("b.example")),
        names(&[[10, 0, 5, 3]], Some("a.example")),
    ];
    let text = text(&devices).unwrap();
    let lines: Vec<&str> = text.lines().skip(1).collect();
    let servers = ["nameserver 10.0.2.3", "nameserver 10.0.4.3", "nameserver 10.0.5.3"];
    assert_eq!(lines[0], "search a.example b.example");
    assert_eq!(lines[1..], servers);
}

#[test]
fn what_is_told_is_what_is_heard() {
    for said in [None, names(&[], None), names(&[[10, 0, 2, 3], [1, 1, 1, 1]], Some("lab.example"))] {
        let line = line(&said);
        assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
        assert_eq!(told(&line), Some(said));
    }
    assert_eq!(told(b"3600\n"), None);
}

#[test]
fn a_domain_that_is_more_than_a_name_is_none() {
    assert_eq!(domain(b"lab.example\0").as_deref(), Some("lab.example"));
    for bad in [&b""[..], b"\0", b"a\nnameserver 6.6.6.6", b"a b", b"\xff", &[b'a'; 254]] {
        assert_eq!(domain(bad), None, "{bad:?}");
    }
}

/// Set for the process that has a network namespace.
const NAMESPACE_VARIABLE: &str = "VMPROF_TEST_NAMESPACE";
const TEST: &str = "network::settings::tests::the_kernel_keeps_what_leases_say";

#[test]
fn the_kernel_keeps_what_leases_say() {
    if std::env::var_os(NAMESPACE_VARIABLE).is_some() {
        return in_a_namespace();
    }
    let namespace = |program: &std::ffi::OsStr, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.arg("-rn").arg(program).args(arguments).env(NAMESPACE_VARIABLE, "1");
        command.output()
    };
    let tried = namespace("ip".as_ref(), &["link", "add", "eth0", "type", "veth", "peer", "name", "eth1"]);
    if !tried.as_ref().is_ok_and(|output| output.status.success()) {
        return eprintln!("skipped: the kernel keeps what leases say: no namespace can be had: {tried:?}");
    }
    let program = std::env::current_exe().unwrap();
    let output = namespace(program.as_os_str(), &["--exact", TEST, "--nocapture"]).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Addresses, and the routes that are there by name: the default one, and those of links.
fn kept() -> (Vec<String>, Vec<String>) {
    let words = |text: &str, at: usize| -> Vec<String> {
        text.lines().filter_map(|line| line.split_whitespace().nth(at)).map(str::to_owned).collect()
    };
    (words(&ip("-4 -o addr show dev eth0"), 3), words(&ip("-4 route show dev eth0"), 0))
}

fn in_a_namespace() {
    ip("link add eth0 type veth peer name eth1");
    ip("link set eth1 up");
    // Not from /sys, which shows the namespace that mounted it.
    let index = ip("-o link show dev eth0").split(':').next().unwrap().parse().unwrap();
    netlink::set_up(index).unwrap();
    let lease = |last, router: bool, seconds| Lease {
        address: Ipv4Addr::new(10, 0, 2, last),
        prefix: 24,
        router: router.then_some(Ipv4Addr::new(10, 0, 2, 2)),
        nameservers: Vec::new(),
        domain: None,
        mtu: Some(1400),
        seconds,
    };
    let network = |address: &str, routes: &[&str]| {
        let routes: Vec<String> = routes.iter().map(|route| (*route).to_owned()).collect();
        (vec![address.to_owned()], routes)
    };
    let none = (Vec::new(), Vec::new());
    let (first, longer, other, alone) =
        (lease(15, true, 3_600), lease(15, true, 90_000), lease(77, true, 3_600), lease(77, false, 3_600));
    let whole = |last: &str| network(&format!("10.0.2.{last}/24"), &["default", "10.0.2.0/24"]);
    apply(&first, None, index, 100).unwrap();
    assert_eq!(kept(), whole("15"));
    assert!(ip("route show default").contains("via 10.0.2.2 dev eth0 proto dhcp metric 100"));
    assert!(ip("link show dev eth0").contains("mtu 1400"));
    let left = |text: String| -> u32 {
        text.split_once("valid_lft ").unwrap().1.split_once("sec").unwrap().0.parse().unwrap()
    };
    assert!(left(ip("-4 addr show dev eth0")) <= 3_600);
    apply(&longer, Some(&first), index, 100).unwrap();
    assert_eq!(kept(), whole("15"));
    assert!(left(ip("-4 addr show dev eth0")) > 3_600, "a renewal is for longer");
    apply(&other, Some(&longer), index, 100).unwrap();
    assert_eq!(kept(), whole("77"));
    apply(&alone, Some(&other), index, 100).unwrap();
    assert_eq!(kept(), network("10.0.2.77/24", &["10.0.2.0/24"]));
    remove(&alone, index).unwrap();
    assert_eq!(kept(), none);
    remove(&alone, index).unwrap();
    assert!(ip("link show dev eth0").contains("state UP"), "the link stays");
    // Of one that is not renewed the kernel takes the address itself.
    apply(&lease(15, true, 1), None, index, 100).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while kept() != none {
        assert!(Instant::now() < end, "{:?}", kept());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(ip("link show dev eth0").contains("state UP"), "the link stays");
}
