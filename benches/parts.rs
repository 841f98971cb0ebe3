//! The parts that time goes into beside system calls: reading the tracker's protocol, `maps`, the tables of
//! System V objects, and matching names against the catalogue of producers.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use rtrack::tracker::evidence::holders::mapped_files;
use rtrack::tracker::evidence::producers::Catalogue;
use rtrack::tracker::inventory::sysv;
use rtrack::tracker::resource::Kind;
use rtrack::tracker::service::protocol::{Dialect, Framer, parse};

fn protocol(criterion: &mut Criterion) {
    let mut stream = Vec::new();
    for number in 0..1000 {
        let name = format!("psm_{number:08x}");
        stream.extend(format!("REGISTER:/{name}:shared_memory\n").into_bytes());
        stream.extend(format!("UNREGISTER:/{name}:shared_memory\n").into_bytes());
    }
    let mut group = criterion.benchmark_group("protocol");
    group.throughput(Throughput::Elements(2000));
    group.bench_function("ascii", |bencher| {
        bencher.iter(|| {
            let mut good = 0;
            Framer::new().push(black_box(&stream), |line| {
                good += usize::from(line.is_ok_and(|line| parse(line, Dialect::Any).is_ok()));
            });
            assert_eq!(good, 2000);
        });
    });
    let json =
        br#"{"cmd":"REGISTER","rtype":"shared_memory","base64_name":"L3BzbV8wMDAwMDAwMQ=="}"#;
    group.throughput(Throughput::Elements(1));
    group.bench_function("json", |bencher| {
        bencher.iter(|| parse(black_box(json), Dialect::Any).unwrap());
    });
    group.finish();
}

fn maps(criterion: &mut Criterion) {
    let mut text = Vec::new();
    for number in 0..1000_u64 {
        let start = 0x7f00_0000_0000 + number * 0x2000;
        let end = start + 0x1000;
        let line = match number % 3 {
            0 => format!("{start:x}-{end:x} rw-p 00000000 00:00 0 \n"),
            1 => format!(
                "{start:x}-{end:x} r-xp 00001000 fe:00 {number}    /usr/lib/lib{number}.so\n"
            ),
            _ => format!(
                "{start:x}-{end:x} rw-s 00000000 00:1b {number}    /dev/shm/psm_{number:08x}\n"
            ),
        };
        text.extend(line.into_bytes());
    }
    let mut group = criterion.benchmark_group("maps");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("text", |bencher| {
        bencher.iter(|| assert_eq!(mapped_files(black_box(&text)).count(), 666));
    });
    group.finish();
}

fn sysvipc(criterion: &mut Criterion) {
    let mut text = String::from(
        "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap\n",
    );
    for number in 0..1000 {
        text.push_str(&format!(
            "{:>10} {number:>10} {:>5} {:>21} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>5} {:>10} {:>10} {:>10} {:>21} {:>21}\n",
            0, 600, 4096, 1000, 1001, 0, 1000, 1000, 1000, 1000, 0, 0, 1_700_000_000, 4096, 0
        ));
    }
    let mut group = criterion.benchmark_group("sysvipc");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("shm", |bencher| {
        bencher.iter(|| {
            let objects = sysv::parse(Kind::SysvShm, black_box(text.as_bytes())).unwrap();
            assert_eq!(objects.len(), 1000);
        });
    });
    group.finish();
}

fn catalogue(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("catalogue");
    let first = |name: &[u8]| Catalogue::built_in().find(Kind::Shm, name).is_some();
    group.bench_function("load and find", |bencher| {
        bencher.iter(|| first(black_box(b"psm_0a1b2c3d")))
    });
    let catalogue = Catalogue::built_in();
    for (what, name) in [
        ("known", &b"psm_0a1b2c3d"[..]),
        ("with a pid", b"sem.loky-4242-abcdefgh"),
        ("unknown", b"something-of-somebody"),
    ] {
        group.bench_function(what, |bencher| {
            bencher.iter(|| catalogue.find(Kind::Shm, black_box(name)));
        });
    }
    group.finish();
}

criterion_group!(parts, protocol, maps, sysvipc, catalogue);
criterion_main!(parts);
