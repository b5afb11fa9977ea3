use super::*;
use vmprof_profiles::NetBackend;

fn forwards() -> Vec<Forward> {
    vec![
        Forward { protocol: Protocol::Tcp, host: 8080, guest: 80 },
        Forward { protocol: Protocol::Udp, host: 5353, guest: 53 },
    ]
}

#[test]
fn what_passt_is_told_is_the_same_on_every_host_and_for_one_device_alone() {
    let told = |position| arguments(position, &forwards(), 7).join(" ".as_ref()).into_string().unwrap();
    assert_eq!(
        told(0),
        "--foreground --quiet --fd 7 --address 10.0.2.15 --netmask 24 --gateway 10.0.2.2 --mac-addr 52:55:0a:00:02:02 \
         --dns 10.0.2.3 --dns-forward 10.0.2.3 --tcp-ports 127.0.0.1/8080:80 --udp-ports 127.0.0.1/5353:53 \
         --ipv4-only --no-dhcp-search --no-map-gw"
    );
    assert!(told(1).contains("--address 10.0.3.15 --netmask 24 --gateway 10.0.3.2 "));
    assert!(!arguments(0, &[], 7).iter().any(|word| word == "--tcp-ports" || word == "--udp-ports"));
}

#[test]
fn the_question_is_arps_and_only_its_answer_counts() {
    let network = Network::of(0);
    let mac = MacAddress::new([0x52, 0x54, 0, 1, 2, 3]);
    let question = who_has(network.gateway, network.guest, mac);
    assert_eq!((question.len(), &question[..6], &question[6..12]), (42, &[0xff; 6][..], &mac.octets()[..]));
    assert!(!is_answer(&question, network.gateway));
    let mut answer = who_has(network.guest, network.gateway, Network::MAC);
    answer[21] = 2;
    assert!(is_answer(&answer, network.gateway));
    assert!(!is_answer(&answer, network.guest) && !is_answer(&answer[..31], network.gateway));
    assert_eq!(framed(&[1, 2, 3]), [0, 0, 0, 3, 1, 2, 3]);
}

/// A script in passt's place.
fn start_script(script: &str) -> Result<Running, Failure> {
    let backend = NetBackend::Passt { forwards: forwards() };
    let device = Device { name: "net0".into(), position: 0, mac: MacAddress::new([2; 6]), backend: &backend };
    start(&Passt { argv: ["sh", "-c", script].map(Into::into).to_vec() }, &device, &forwards())
}

#[test]
fn one_that_does_not_start_says_why() {
    let cases = [
        (
            "echo 'Started as root, will change to nobody.' >&2\n\
             echo 'Listen failed for HOST TCP port 127.0.0.1/8080: Address already in use' >&2; exit 1",
            "vmprof::net::port_in_use",
            "tcp port 8080 of this host, which net0 forwards, is in use: Listen failed",
        ),
        (
            "echo 'Failed to bind port 80 (Permission denied)' >&2; exit 1",
            "vmprof::net::passt_failed",
            "does not start: Failed to bind port 80 (Permission denied)",
        ),
        ("exit 3", "vmprof::net::passt_failed", "does not start: with status 3"),
    ];
    for (script, code, told) in cases {
        let failure = start_script(script).unwrap_err();
        assert_eq!(failure.problem.code().unwrap().to_string(), code);
        assert!(failure.problem.to_string().contains(told), "{}", failure.problem);
    }
}

#[test]
fn an_end_that_nobody_asked_for_is_told_with_its_last_words_and_another_is_not() {
    for (ends_by_itself, is_passed) in [(true, false), (true, true), (false, false), (false, true)] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "trap '' TERM; read word; echo \"No route $word\" >&2; exit 1"]);
        let mut child =
            command.stdin(Stdio::from(OwnedFd::from(theirs))).stderr(Stdio::piped()).spawn().unwrap();
        drop(command);
        let running = Running {
            device: "net0".into(),
            pid: Some(Pid::from_child(&child)),
            socket: ours.into(),
            said: child.stderr.take().unwrap().into(),
        };
        let running = match is_passed {
            true => {
                let passed = running.pass().unwrap();
                // An exec runs no destructors.
                std::mem::forget(running);
                let text = serde_json::to_string(&passed).unwrap();
                serde_json::from_str::<Passed>(&text).unwrap().take().unwrap()
            }
            false => running,
        };
        let (events, heard) = std::sync::mpsc::channel();
        let (socket, carrying) = running.carry(events).unwrap();
        if ends_by_itself {
            File::from(socket).write_all(b"left\n").unwrap();
            let Ok(Event::Notice(text)) = heard.recv() else { panic!("no notice") };
            assert!(text.contains("net0") && text.contains("No route left"), "{text}");
        }
        drop(carrying);
        assert!(heard.try_recv().is_err());
        assert!(child.try_wait().is_err(), "it has been waited for");
    }
}
