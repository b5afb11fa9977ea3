//! A database in a guest, on the profile's disk: what it answered for is there after the machine was killed, and a guest that
//! serves until it is told to stop.

use rustix::process::Signal;
use vmprof_tests::{Home, Running, in_labs_of_its_own, spawn};

const UP: [&str; 4] = ["up", "--on", "lab", "profiles/db.kdl"];

/// Commits one row after the other and says so, beside a pgbench that keeps the disk busy.
const COMMITTING: &str = "set -e
    pgbench --initialize --scale=1 --quiet >&2
    psql -qc 'create table acknowledged (id bigint primary key)'
    pgbench --no-vacuum --client=2 --time=100000 >&2 &
    until [ \"$(psql -Atqc 'select count(*) from pgbench_history')\" -gt 0 ]; do sleep 0.2; done
    id=0
    while :; do
        id=$((id + 1))
        echo \"insert into acknowledged values ($id) returning id;\"
    done | psql -Atq";

/// pgbench adds the same amounts to accounts, tellers, branches and its history, all in one transaction.
const COUNTING: &str = "set -e
    psql -Atqc 'select count(*), max(id) from acknowledged'
    psql -Atqc 'select count(*) from pgbench_history'
    psql -Atqc 'select sum(abalance) from pgbench_accounts'
    psql -Atqc 'select sum(tbalance) from pgbench_tellers'
    psql -Atqc 'select sum(bbalance) from pgbench_branches'
    psql -Atqc 'select coalesce(sum(delta), 0) from pgbench_history'";

#[test]
fn every_committed_transaction_survives_a_killed_machine_and_the_server_then_serves_until_ctrl_c() {
    in_labs_of_its_own(|| {
        let home = Home::new();
        let mut running = spawn(&mut home.vmprof(UP.iter().chain(&["--", "sh", "-c", COMMITTING])));
        // What is printed on the way must not fill the pipe.
        let errors = running.error_lines();
        let told = std::thread::spawn(move || errors.collect::<Vec<_>>().join("\n"));
        let mut acknowledged = running.output_lines();
        let first: Vec<String> = acknowledged.by_ref().take(20).collect();
        // The VMM, and with it the machine: no process of the guest, no kernel of it writes anything any more.
        running.signal(Signal::KILL);
        let last = acknowledged.last().or_else(|| first.last().cloned());
        assert_eq!(running.finish().status, None, "killed by a signal");
        let told = told.join().expect("the reader does not panic");
        assert_eq!(first.len(), 20, "the run ended early\n{told}");
        let last: u64 = last.and_then(|id| id.parse().ok()).expect("numbers are acknowledged");

        let serving = Serving::start(&home);
        assert!(serving.told.contains("was not properly shut down"), "nothing was killed\n{}", serving.told);
        let counted = home.run(["exec", "db", "--", "sh", "-c", COUNTING]).expect(0);
        let mut lines = counted.stdout.lines();
        let (count, most) = lines.next().and_then(|line| line.split_once('|')).expect("two numbers");
        assert_eq!(count, most, "a row in between is lost");
        assert!(
            most.parse::<u64>().is_ok_and(|most| most >= last),
            "{last} was acknowledged, {most} is there"
        );
        assert_ne!(lines.next(), Some("0"), "pgbench was at work");
        let sums: Vec<&str> = lines.collect();
        assert!(sums.len() == 4 && sums.iter().all(|sum| *sum == sums[0]), "half a transaction: {sums:?}");
        serving.stops_cleanly_at_ctrl_c();
    });
}

/// A run without a command, with the cluster that is there by now: making another one takes the lab a minute.
struct Serving {
    running: Running,
    errors: Box<dyn Iterator<Item = String>>,
    /// Until it served.
    told: String,
}

impl Serving {
    fn start(home: &Home) -> Serving {
        let mut running = spawn(&mut home.vmprof(UP));
        let mut errors = Box::new(running.error_lines());
        let mut told = Vec::new();
        for line in errors.by_ref() {
            told.push(line);
            if told.last().is_some_and(|line| line.contains("serves until it is stopped")) {
                break;
            }
        }
        Serving { running, errors, told: told.join("\n") }
    }

    fn stops_cleanly_at_ctrl_c(self) {
        let Serving { running, errors, told } = self;
        running.signal(Signal::INT);
        let since = errors.collect::<Vec<_>>().join("\n");
        let finished = running.finish();
        assert_eq!(finished.status, Some(130), "{told}\n{since}");
        assert!(since.contains("database system is shut down"), "{told}\n{since}");
        assert_eq!(finished.stdout, "", "nothing but a command writes there");
    }
}
