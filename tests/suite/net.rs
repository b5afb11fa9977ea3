//! Networks: a guest that configures itself, ports of this host that reach it, and what becomes of it when passt does not start,
//! ends, or carries on over a reboot; and two of them in one guest. Only this host's loopback is used.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use vmprof_tests::{Home, checkout, eventually, in_the_lab};

const GUEST: &str = r#"
guest networked {
    distribution debian suite=bookworm arch=amd64
    lock "CHECKOUT/guests/hello.lock.kdl"
    packages busybox-static
    kernel package=linux-image-cloud-amd64
    link "/usr/bin/sh" to="busybox"
    link "/usr/bin/cat" to="busybox"
    link "/usr/bin/nc" to="busybox"
    link "/usr/bin/reboot" to="busybox"
    image root { format squashfs compression=lz4; exclude "/usr/share"; }
    service echo {
        exec "/usr/bin/nc" "-ll" "-p" "80" "-e" "/usr/bin/cat"
        ready tcp=80
    }
}
"#;

/// Ports that nobody has now.
fn free_ports() -> (u16, u16) {
    let tcp = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (tcp.local_addr().unwrap().port(), udp.local_addr().unwrap().port())
}

fn profile(home: &Home, name: &str, nets: &str) -> String {
    let guest = home.path().join("networked.kdl");
    fs::write(&guest, GUEST.replace("CHECKOUT", checkout().to_str().unwrap())).unwrap();
    let path = home.path().join(format!("{name}.kdl"));
    let text = format!(
        "profile {name} {{\n    guest \"networked.kdl\"\n    vcpu 1\n    memory \"256MiB\"\n    iothreads 1\n{nets}\n}}\n"
    );
    fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

/// What comes back of what is sent to the port, once somebody answers there.
fn echoed(port: u16, sent: &[u8]) -> Vec<u8> {
    eventually("the guest to answer", || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut writer = stream.try_clone().unwrap();
        let mut back = Vec::new();
        let whole = std::thread::scope(|scope| {
            // Nobody in the guest: the connection ends in either half.
            scope.spawn(move || writer.write_all(sent).and_then(|()| writer.shutdown(Shutdown::Write)));
            stream.read_to_end(&mut back)
        });
        (whole.is_ok() && back.len() == sent.len()).then_some(back)
    })
}

fn exec(home: &Home, words: &[&str]) -> String {
    home.run(["exec", "net", "--"].iter().chain(words)).expect(0).stdout
}

/// passt of the run with that process.
fn passts_of(pid: u64) -> Vec<Pid> {
    let is_child = |stat: &str| {
        // Behind the name, in brackets: state and parent (proc(5)).
        let parent = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse::<u64>().ok()?;
        (parent == pid && stat.contains("(passt")).then_some(())
    };
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.parse().ok()?;
            // Its loader gives it no name of its own.
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let named = stat.replacen("(ld-linux", "(passt", 1);
            line.windows(9).any(|word| word == b"10.0.2.15").then_some(())?;
            is_child(&named)?;
            Pid::from_raw(number)
        })
        .collect()
}

#[test]
fn a_guest_has_the_network_of_its_profile_over_a_reboot_and_goes_on_without_it() {
    in_the_lab(|| {
        let home = Home::new();
        let (tcp, udp) = free_ports();
        let nets = format!(
            "    net passt {{ forward tcp host={tcp} guest=80; forward udp host={udp} guest=53; mac \"52:54:00:12:34:56\"; }}"
        );
        let up = ["up", "--on", "lab", "--detach", "--wait"];
        let path = profile(&home, "net", &nets);
        home.run(up.iter().chain(&[&*path])).expect(0);
        let listed: Value =
            serde_json::from_str(&home.run(["ps", "--format", "json"]).expect(0).stdout).unwrap();
        let passts = passts_of(listed[0]["pid"].as_u64().unwrap());
        assert_eq!(passts.len(), 1, "{listed}");

        configured(&home);
        let sent: Vec<u8> =
            (0..1_000_003u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        assert!(echoed(tcp, &sent) == sent, "a megabyte comes back as it was");
        datagrams(&home, udp);
        clashes(&home, tcp);

        // Its guest is a new one, and nothing of what is outside.
        home.run(["exec", "net", "--", "reboot", "-f"]);
        eventually("the guest to serve again", || {
            let said = home.run(["logs", "net"]).expect(0).stdout;
            let (_, after) = said.split_once("vmprof: net reboots\n")?;
            after.contains("net is ready after").then_some(())
        });
        assert_eq!(echoed(tcp, b"after the reboot"), b"after the reboot");
        configured(&home);

        let verified = home.run(["verify", "net"]).expect(0).stdout;
        assert!(verified.contains("\nnet0: link ") && verified.contains("0,1,2 on iothread0"), "{verified}");

        kill_process(passts[0], Signal::KILL).unwrap();
        eventually("the end of passt to be told", || {
            let said = home.run(["logs", "net"]).expect(0).stdout;
            said.contains("passt, which carries the frames of net0, has ended (by signal 9)").then_some(())
        });
        eventually("the link to go down", || {
            (exec(&home, &["cat", "/sys/class/net/eth0/operstate"]) == "down\n").then_some(())
        });
        let strayed = home.run(["verify", "net"]).expect(1);
        assert!(strayed.stderr.contains("not as its plan has it: net0: link"), "{}", strayed.stderr);
        home.run(["stop", "net"]).expect(0);
        assert!(passts_of(listed[0]["pid"].as_u64().unwrap()).is_empty());
        let said = home.run(["logs", "net"]).expect(0).stdout;
        assert_eq!(said.matches("has ended (").count(), 1, "{said}");
    });
}

#[test]
fn two_networks_of_a_guest_have_addresses_routes_and_ports_of_their_own() {
    in_the_lab(|| {
        let home = Home::new();
        let ((first, _), (second, _)) = (free_ports(), free_ports());
        let nets = [first, second]
            .map(|port| format!("    net passt {{ forward tcp host={port} guest=80; }}\n"))
            .concat();
        let path = profile(&home, "net", &nets);
        home.run(["up", "--on", "lab", "--detach", "--wait", &*path]).expect(0);

        // Both leases came before it was ready, unless the lab was very busy.
        let names = eventually("both leases", || {
            let text = exec(&home, &["cat", "/etc/resolv.conf"]);
            (text.matches("nameserver").count() == 2).then_some(text)
        });
        assert!(names.ends_with("\nnameserver 10.0.2.3\nnameserver 10.0.3.3\n"), "{names}");
        for (device, address) in [("eth0", "10.0.2.15"), ("eth1", "10.0.3.15")] {
            let shown = exec(&home, &["busybox", "ip", "-4", "addr", "show", "dev", device]);
            assert!(shown.contains(&format!("inet {address}/24 ")), "{shown}");
        }
        let routes = exec(&home, &["busybox", "ip", "route"]);
        assert!(routes.contains("default via 10.0.2.2 dev eth0  metric 100 "), "{routes}");
        assert!(routes.contains("default via 10.0.3.2 dev eth1  metric 101 "), "{routes}");

        let sent = vec![7; 300_000];
        let received = |net: usize| -> u64 {
            let text = home.run(["stats", "net", "--format", "json"]).expect(0).stdout;
            let stats: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(stats["nets"][net]["virtqueues"][0]["kind"], "receive", "{stats}");
            stats["nets"][net]["virtqueues"][0]["bytes"].as_u64().unwrap()
        };
        for (net, port) in [first, second].into_iter().enumerate() {
            let (own, other) = (received(net), received(1 - net));
            assert!(echoed(port, &sent) == sent, "by net{net}");
            assert!(received(net) >= own + 300_000, "by its own device");
            assert!(received(1 - net) < other + 300_000, "and by that alone");
        }
        home.run(["stop", "net"]).expect(0);
    });
}

/// What DHCP gave is what the guest has.
fn configured(home: &Home) {
    let address = exec(home, &["busybox", "ip", "-4", "addr", "show", "dev", "eth0"]);
    assert!(
        address.contains("inet 10.0.2.15/24 brd 10.0.2.255 ") && address.contains("mtu 65520"),
        "{address}"
    );
    assert_eq!(exec(home, &["cat", "/sys/class/net/eth0/address"]), "52:54:00:12:34:56\n");
    // Addresses stand there as the machine has them: 10.0.2.2 is the gateway of what is on no link.
    let routes = exec(home, &["cat", "/proc/net/route"]);
    assert!(routes.contains("eth0\t00000000\t0202000A\t0003\t"), "{routes}");
    assert!(exec(home, &["cat", "/etc/resolv.conf"]).ends_with("\nnameserver 10.0.2.3\n"));
}

/// Nobody in the guest listens there, which its kernel counts.
fn datagrams(home: &Home, port: u16) {
    let unheard = || -> u64 {
        let counts = exec(home, &["cat", "/proc/net/snmp"]);
        let mut lines = counts.lines().filter(|line| line.starts_with("Udp:"));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut pairs = names.split(' ').zip(values.split(' '));
        pairs.find(|(name, _)| *name == "NoPorts").unwrap().1.parse().unwrap()
    };
    let before = unheard();
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    eventually("a datagram to reach the guest", || {
        // An answer that nobody is there fails the next one.
        let _ = socket.send_to(b"?", SocketAddrV4::new(Ipv4Addr::LOCALHOST, port));
        (unheard() > before).then_some(())
    });
}

/// Before anything boots.
fn clashes(home: &Home, tcp: u16) {
    let up = ["up", "--on", "lab"];
    let same = profile(home, "second", &format!("    net passt {{ forward tcp host={tcp} guest=81; }}"));
    let refused = home.run(up.iter().chain(&[&*same])).expect(1);
    let holder = format!("tcp port {tcp} of this host is in use by the running VM `net`");
    assert!(refused.stderr.contains(&holder), "{}", refused.stderr);

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = taken.local_addr().unwrap().port();
    let other = profile(home, "second", &format!("    net passt {{ forward tcp host={port} guest=81; }}"));
    let refused = home.run(up.iter().chain(&[&*other])).expect(1);
    assert!(refused.stderr.contains("vmprof::net::port_in_use"), "{}", refused.stderr);
    let told = format!("tcp port {port} of this host, which net0 forwards, is in use");
    assert!(refused.stderr.replace("\n  │ ", " ").contains(&told), "{}", refused.stderr);

    let tap = profile(home, "second", "    net tap name=tap0");
    let refused = home.run(up.iter().chain(&[&*tap])).expect(4);
    assert!(refused.stderr.contains("vmprof::up::not_in_this_version"), "{}", refused.stderr);
    let listed: Value = serde_json::from_str(&home.run(["ps", "--format", "json"]).expect(0).stdout).unwrap();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
}
