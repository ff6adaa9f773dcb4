//! The steps of a message one by one, without sockets: `cargo bench -p benches`.
#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ws_cluster::{
    Target,
    internals::{Appended, Connections, arguments, decode, encode, relay},
};

/// A client's message of 100 bytes, and its details.
const MESSAGE: &str =
    r#"{"action":"chat/say","details":["room 7",{"text":"good morning, and a long day to all","number":12345}]}"#;
const DETAILS: &[u8] = br#"["room 7",{"text":"good morning, and a long day to all","number":12345}]"#;

/// Returns the message as a client's frame.
fn frame() -> Vec<u8> {
    let mask = [7, 0, 200, 31];
    let masked = MESSAGE.bytes().zip(mask.into_iter().cycle()).map(|(byte, mask)| byte ^ mask);
    [0x81, 0x80 | MESSAGE.len() as u8].into_iter().chain(mask).chain(masked).collect()
}

fn incoming(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("incoming");
    group.throughput(Throughput::Bytes(MESSAGE.len() as u64));
    group.bench_function("decode", |bencher| {
        let frame = frame();
        bencher.iter_batched_ref(|| frame.clone(), |frame| decode(black_box(frame)), BatchSize::SmallInput);
    });
    group.bench_function("parse", |bencher| bencher.iter(|| arguments(black_box(MESSAGE))));
    group.finish();
}

fn outgoing(criterion: &mut Criterion) {
    let details = Bytes::from_static(DETAILS);
    let mut group = criterion.benchmark_group("outgoing");
    group.bench_function("encode", |bencher| bencher.iter(|| encode(black_box("chat/say"), black_box(DETAILS))));
    let target = Target::group("g7");
    group.bench_function("relay", |bencher| bencher.iter(|| relay(black_box(&target), "chat/say", &details)));
    group.finish();
}

fn matching(criterion: &mut Criterion) {
    const CONNECTIONS: usize = 10_000;
    let connections = Connections::new(CONNECTIONS);
    let mut group = criterion.benchmark_group("match");
    group.throughput(Throughput::Elements(CONNECTIONS as u64));
    for (name, target) in [
        ("registered", Target::registered()),
        ("user", Target::user("u77")),
        ("group", Target::group("g7")),
        ("all but a user", Target::all().except_user("u77")),
    ] {
        group.bench_function(name, |bencher| bencher.iter(|| connections.meant(black_box(&target))));
    }
    group.finish();
}

fn log(criterion: &mut Criterion) {
    criterion.bench_function("log/append", |bencher| {
        let mut log = Appended::default();
        let content = Bytes::from_static(DETAILS);
        bencher.iter(|| log.append(black_box(content.clone())));
    });
}

criterion_group!(steps, incoming, outgoing, matching, log);
criterion_main!(steps);
