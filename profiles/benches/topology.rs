//! What reading a host costs: a capture of 1,024 CPUs and 64 drives with 64 queues each, and this machine's /sys.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vmprof_profiles::{Ledger, Source, Topology};

#[path = "../tests/suite/fixtures.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod fixtures;
#[path = "../tests/suite/host.rs"]
#[expect(dead_code, reason = "the tests use the rest")]
mod host;

fn captured(c: &mut Criterion) {
    let text = fixtures::large().capture().to_json();
    let mut group = c.benchmark_group("capture of 1024 CPUs");
    group.throughput(Throughput::Bytes(text.len() as u64));
    group.bench_function("text to source", |b| b.iter(|| Source::from_file_text(black_box(&text)).unwrap()));
    let source = Source::from_file_text(&text).unwrap();
    group.bench_function("source to topology", |b| b.iter(|| Topology::read(black_box(&source))));
    group.bench_function("text to topology", |b| {
        b.iter(|| Topology::read(&Source::from_file_text(black_box(&text)).unwrap()))
    });
    group.finish();
}

fn live(c: &mut Criterion) {
    let cpus = Topology::read(&Source::Live).online.len() as u64;
    let mut group = c.benchmark_group("this machine");
    group.throughput(Throughput::Elements(cpus));
    let id = |what| BenchmarkId::new(what, format!("{cpus} CPUs"));
    group.bench_function(id("topology"), |b| b.iter(|| Topology::read(black_box(&Source::Live))));
    group.bench_function(id("other VMs"), |b| b.iter(|| Ledger::read(black_box(&Source::Live))));
    group.finish();
}

criterion_group!(benches, captured, live);
criterion_main!(benches);
