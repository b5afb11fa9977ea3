//! The limit: fio with io_uring and O_DIRECT on the same file, in the thread that asks.

use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::Tools;
use crate::disk::Disk;
use crate::error::{Doing as _, Error};
use crate::measure::{Counted, Measurement, Stolen};
use crate::point::Point;
use crate::settings::Settings;
use crate::usage::{Usage, Whose};

pub const NAME: &str = "fio io_uring (limit)";

pub fn measure(
    tools: &Tools,
    settings: &Settings,
    disk: &Disk,
    point: Point,
    round: u32,
    seed: u64,
) -> Result<Option<Measurement>, Error> {
    let Some(fio) = &tools.fio else { return Ok(None) };
    let stolen = Stolen::from_now(&[settings.server_cpu]);
    let ms = |seconds: f64| format!("{}ms", (seconds * 1e3) as u64);
    // fio knows nothing of the stamps: what it writes goes to the half that nobody reads.
    let offset = if point.workload.is_write() { disk.area_bytes } else { 0 };
    let mut child = Command::new(fio)
        .args(["--name=limit", "--ioengine=io_uring", "--direct=1", "--time_based", "--thread"])
        .args(["--norandommap", "--output-format=json", "--allow_file_create=0"])
        .arg(format!("--filename={}", disk.path.display()))
        .arg(format!("--rw={}", point.workload.word()))
        .arg(format!("--bs={}", point.workload.bytes()))
        .arg(format!("--iodepth={}", point.depth))
        .arg(format!("--offset={offset}"))
        .arg(format!("--size={}", disk.area_bytes))
        .arg(format!("--ramp_time={}", ms(settings.warmup_seconds)))
        .arg(format!("--runtime={}", ms(settings.seconds)))
        .arg(format!("--randseed={}", seed >> 1))
        .arg(format!("--cpus_allowed={}", settings.server_cpu))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .doing(|| "fio could not be started".to_owned())?;
    // Its waiting is to be seen only while it lives.
    let mut waited_ns = 0;
    while matches!(child.try_wait(), Ok(None)) {
        waited_ns = Whose::Process(child.id()).usage().map_or(waited_ns, |usage| usage.waited_ns);
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().doing(|| "fio's output could not be read".to_owned())?;
    let failed = |why: String| Error::Tool { tool: "fio".to_owned(), why };
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim_end().to_owned()));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    // Notes may come before the JSON.
    let json = text.find('{').map_or("", |at| &text[at..]);
    let told: Value = serde_json::from_str(json).map_err(|error| failed(format!("its JSON: {error}")))?;
    let measured = read(&told, point, waited_ns).ok_or_else(|| failed("its JSON lacks fields".to_owned()))?;
    let (counted, latency) = measured;
    let mut made = Measurement::new(NAME, point, round, &counted, stolen.until_now());
    [made.p50_us, made.p99_us, made.p999_us] = latency;
    Ok(Some(made))
}

type Latency = [Option<f64>; 3];

fn read(told: &Value, point: Point, waited_ns: u64) -> Option<(Counted, Latency)> {
    let job = told.get("jobs")?.get(0)?;
    let side = job.get(if point.workload.is_write() { "write" } else { "read" })?;
    let requests = side.get("total_ios")?.as_u64()?;
    let wall_ms = side.get("runtime")?.as_f64()?;
    let job_ms = job.get("job_runtime")?.as_f64()?;
    let percent = job.get("usr_cpu")?.as_f64()? + job.get("sys_cpu")?.as_f64()?;
    let server = Usage {
        cpu_ns: (percent / 100.0 * job_ms * 1e6) as u64,
        voluntary: job.get("ctx")?.as_u64()?,
        ..Usage::default()
    };
    let wall = Duration::from_secs_f64(wall_ms / 1e3);
    let percentile = |name: &str| {
        let value = side.get("clat_ns")?.get("percentile")?.get(name)?.as_f64()?;
        Some(value / 1e3)
    };
    let latency = ["50.000000", "99.000000", "99.900000"].map(percentile);
    Some((Counted { requests, wall, server, waited_ns }, latency))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::point::Workload;

    #[test]
    fn figures_come_from_the_side_that_was_used() {
        let told = serde_json::json!({"jobs": [{
            "job_runtime": 2000, "usr_cpu": 10.0, "sys_cpu": 40.0, "ctx": 70,
            "read": {"total_ios": 100_000, "runtime": 2000, "clat_ns": {"percentile":
                {"50.000000": 20_000, "99.000000": 40_000, "99.900000": 90_000}}},
            "write": {"total_ios": 0, "runtime": 0}
        }]});
        let point = Point { workload: Workload::RandRead, queues: 1, depth: 1 };
        let (counted, latency) = read(&told, point, 5).unwrap();
        assert_eq!((counted.requests, counted.wall, counted.waited_ns), (100_000, Duration::from_secs(2), 5));
        assert_eq!((counted.server.cpu_ns, counted.server.voluntary), (1_000_000_000, 70));
        assert_eq!(latency, [Some(20.0), Some(40.0), Some(90.0)]);
        assert!(read(&serde_json::json!({"jobs": []}), point, 0).is_none());
    }
}
