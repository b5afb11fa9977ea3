use std::path::Path;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::stats::{stats_of_a_net, stats_of_a_vm};

fn run(name: &str) -> Run {
    Run::new(name, Path::new("p.kdl"), "kvm", String::new(), vec![])
}

fn heard(names: &[&str], asked: Option<(&str, Result<Stats, String>)>) -> Heard {
    let asked = asked.map(|(name, answer)| (name.to_owned(), answer.map(Box::new)));
    Heard { runs: names.iter().map(|name| run(name)).collect(), asked }
}

/// Of a VM, a second after the last where it is not the first.
fn stats(second: u64) -> Stats {
    let mut stats = stats_of_a_vm();
    stats.taken_ns = (1 + second) * 1_000_000_000;
    stats.threads[1].cpu_ns += second * 250_000_000;
    stats.machine.disks[0].virtqueues[0].reads += second * 100;
    stats.machine.disks[0].virtqueues[1].reads += second * 700;
    stats
}

/// The lines of a terminal of this size.
fn drawn(screen: &mut Screen, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| screen.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>().trim_end().to_owned();
    (0..height).map(line).collect()
}

/// A screen that has heard two answers of `a`, beside which `b` runs.
fn watching() -> Screen {
    let mut screen = Screen::new(None);
    screen.hear(heard(&["a", "b"], None));
    assert_eq!(screen.name(), Some("a"));
    screen.hear(heard(&["a", "b"], Some(("a", Ok(stats(0))))));
    screen.hear(heard(&["a", "b"], Some(("a", Ok(stats(1))))));
    screen
}

#[test]
fn a_vm_is_shown_with_its_rates_below_the_line_of_all() {
    let lines = drawn(&mut watching(), 130, 16);
    assert_eq!(lines[0], " a (starting)  b (starting)");
    let words = |name: &str| -> Vec<&str> {
        lines.iter().find(|line| line.starts_with(name)).unwrap().split_whitespace().collect()
    };
    assert_eq!(words("iothread0")[..4], ["iothread0", "3", "25.0", "0.0"]);
    assert_eq!(words("data   0")[..4], ["data", "0", "0", "100"]);
    assert_eq!(words("data   1")[..4], ["data", "1", "0", "700"]);
    assert!(lines[15].starts_with("q leave"), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("time in")), "nothing was timed");
}

#[test]
fn rows_are_sorted_by_load_and_back() {
    let mut screen = watching();
    let order = |screen: &mut Screen| -> Vec<String> {
        let lines = drawn(screen, 130, 16);
        lines.iter().filter(|line| line.starts_with("data")).map(|line| line[..8].to_owned()).collect()
    };
    assert_eq!(order(&mut screen), ["data   0", "data   1"]);
    screen.key(KeyCode::Char('s'));
    assert_eq!(order(&mut screen), ["data   1", "data   0"]);
    screen.key(KeyCode::Char('s'));
    assert_eq!(order(&mut screen), ["data   0", "data   1"]);
}

#[test]
fn a_network_has_its_lines_where_there_is_one() {
    let networked = |second: u64| {
        let mut stats = stats(second);
        let mut net = stats_of_a_net(true, None);
        net.virtqueues[0].packets += second * 300;
        net.virtqueues[1].packets += second * 900;
        stats.machine.nets = vec![net];
        stats
    };
    let mut screen = Screen::new(None);
    screen.hear(heard(&["a"], None));
    screen.hear(heard(&["a"], Some(("a", Ok(networked(0))))));
    screen.hear(heard(&["a"], Some(("a", Ok(networked(1))))));
    let lines = |screen: &mut Screen| -> Vec<String> {
        drawn(screen, 130, 20).into_iter().filter(|line| line.to_lowercase().starts_with("net")).collect()
    };
    let cut: Vec<String> = lines(&mut screen).iter().map(|line| line[..39].to_owned()).collect();
    assert_eq!(
        cut,
        [
            "NET   vq      kind  iothread  packets/s",
            "net0   0   receive         1        300",
            "net0   1  transmit         1        900",
            "net0   2   control         -          0",
        ]
    );
    screen.key(KeyCode::Char('s'));
    let first = lines(&mut screen)[1].clone();
    assert!(first.starts_with("net0   1  transmit"), "the one with most to do: {first}");
    assert_eq!(lines(&mut watching()), [""; 0]);
}

#[test]
fn keys_go_round_the_vms_and_late_answers_of_another_are_nothing() {
    let mut screen = watching();
    screen.key(KeyCode::Tab);
    assert_eq!(screen.name(), Some("b"));
    assert!(drawn(&mut screen, 80, 8)[2].starts_with("b: one moment"));
    screen.hear(heard(&["a", "b"], Some(("a", Ok(stats(2))))));
    assert!(drawn(&mut screen, 80, 8)[2].starts_with("b: one moment"));
    screen.hear(heard(&["a", "b"], Some(("b", Err("it cannot be reached".into())))));
    assert_eq!(drawn(&mut screen, 80, 8)[2], "it cannot be reached");
    screen.key(KeyCode::Right);
    assert_eq!(screen.name(), Some("a"));
    screen.key(KeyCode::BackTab);
    assert_eq!(screen.name(), Some("b"));
    screen.hear(heard(&["a"], None));
    assert_eq!(drawn(&mut screen, 80, 8)[2], "b has ended.");
    screen.key(KeyCode::Tab);
    assert_eq!(screen.name(), Some("a"));
}

#[test]
fn another_process_of_the_name_begins_anew() {
    let mut screen = watching();
    let mut other = stats(2);
    other.process.pid = 99;
    screen.hear(heard(&["a"], Some(("a", Ok(other)))));
    assert!(drawn(&mut screen, 80, 8)[2].starts_with("a: one moment"));
}

#[test]
fn what_does_not_fit_is_scrolled_to_and_no_size_is_too_small() {
    let mut screen = watching();
    let first = |screen: &mut Screen| drawn(screen, 100, 6)[2].clone();
    assert!(first(&mut screen).starts_with("VCPU"));
    screen.key(KeyCode::Up);
    assert!(first(&mut screen).starts_with("VCPU"));
    (0..100).for_each(|_| screen.key(KeyCode::Down));
    assert!(drawn(&mut screen, 100, 6)[4].starts_with("data   1"), "not past the end");
    for (width, height) in [(1, 1), (2, 3), (500, 2)] {
        drawn(&mut screen, width, height);
    }
    assert_eq!(drawn(&mut Screen::new(None), 10, 3), ["", "", "q leave"]);
    let mut alone = Screen::new(None);
    alone.hear(heard(&[], None));
    alone.key(KeyCode::Tab);
    assert!(drawn(&mut alone, 80, 5)[2].starts_with("No VM is running"));
}
