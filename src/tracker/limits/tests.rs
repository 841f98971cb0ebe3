//! Percentages and what stands in a row.

use super::*;

fn row(used: Amount, limit: Amount, unit: Unit) -> Limit {
    Limit {
        name: "kernel.shmmni".into(),
        what: "segments",
        unit,
        used,
        at_least: false,
        limit,
        scope: Scope::Namespace(None),
        note: None,
    }
}

fn of(used: u64, limit: u64) -> Limit {
    row(Amount::Known(used), Amount::Known(limit), Unit::Things("segments"))
}

#[test]
fn shares() {
    for (used, limit, permille, above_80, above_100) in [
        (0, 4096, Some(0), false, false),
        (3900, 4096, Some(952), true, false),
        // Exactly the threshold is not above it, and what is rounded away counts.
        (80, 100, Some(800), false, false),
        (80_001, 100_000, Some(800), true, false),
        (100, 100, Some(1000), true, false),
        // The limit was lowered.
        (3, 1, Some(3000), true, true),
        (3, 0, None, true, true),
        (0, 0, None, false, false),
        (u64::MAX, u64::MAX, Some(1000), true, false),
        (u64::MAX, 1, Some(u64::MAX), true, true),
        (1, u64::MAX, Some(0), false, false),
    ] {
        let row = of(used, limit);
        assert_eq!(row.permille(), permille, "{used} of {limit}");
        assert_eq!(row.is_above(80), above_80, "{used} of {limit}");
        assert_eq!(row.is_above(100), above_100, "{used} of {limit}");
    }
    assert!(of(1, 100).is_above(0) && !of(0, 100).is_above(0));
}

#[test]
fn no_limit_has_no_share() {
    // What Linux has unless somebody sets it; the next lower number is a limit.
    let unset = Amount::Known(18_446_744_073_692_774_399);
    let pages = |limit| row(Amount::Known(u64::MAX), limit, Unit::Pages(4096));
    let none = pages(unset.clone());
    assert!(none.is_unlimited() && none.permille().is_none() && !none.is_above(0));
    let some = pages(Amount::Known(18_446_744_073_692_774_398));
    assert!(!some.is_unlimited() && some.is_above(100));
    // A count of so many things would be one.
    assert!(!row(Amount::Known(1), unset, Unit::Things("segments")).is_unlimited());
    let absent = row(Amount::Absent, Amount::Absent, Unit::Bytes);
    assert!(absent.is_unlimited() && absent.unknown().is_none());
}

#[test]
fn what_is_unknown_is_not_zero() {
    let why = || Amount::Unknown("no permission".into());
    for (used, limit) in [
        (why(), Amount::Known(1)),
        (Amount::Known(1), why()),
        (Amount::Absent, why()),
        (why(), why()),
    ] {
        let row = row(used, limit, Unit::Bytes);
        assert_eq!(row.unknown().as_deref(), Some("no permission"));
        assert!(row.permille().is_none() && !row.is_above(0) && !row.is_unlimited());
    }
    let both = row(Amount::Unknown("a".into()), Amount::Unknown("b".into()), Unit::Bytes);
    assert_eq!(both.unknown().as_deref(), Some("b; a"));
}

#[test]
fn mounts() {
    let path = Path::new("/dev/shm");
    let usage = |size, used, inodes, inodes_free| Usage { size, used, inodes, inodes_free };
    let [bytes, inodes] = &of_mount(path, Some(1), Ok(usage(100, 91, 10, 4)))[..] else {
        panic!("two rows")
    };
    assert_eq!((bytes.both(), inodes.both()), (Some((91, 100)), Some((6, 10))));
    assert_eq!((&*bytes.name, &*inodes.name), ("/dev/shm bytes", "/dev/shm inodes"));
    // mount -o size=0,nr_inodes=0: the kernel tells neither limit nor use.
    for row in of_mount(path, None, Ok(usage(0, 0, 0, 0))) {
        assert_eq!((&row.used, &row.limit), (&Amount::Absent, &Amount::Absent));
        assert!(row.is_unlimited() && row.unknown().is_none());
    }
    for row in of_mount(Path::new("/a\n"), None, Err("not a tmpfs".into())) {
        assert!(row.name.starts_with("/a\\n ") && !row.is_unlimited());
        assert_eq!(row.unknown().as_deref(), Some("not a tmpfs"));
    }
}

/// Without a `/proc` everything of the namespace is unknown, and nothing is left out.
#[test]
fn nothing_to_read() {
    let nowhere = Path::new("/nonexistent");
    let whole = of_namespace(Path::new("/proc"), None);
    let limits = of_tables(nowhere, Err("not mounted".into()));
    let names = |limits: &[Limit]| limits.iter().map(|row| row.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&limits), names(&whole));
    for row in &limits {
        let why = row.unknown().unwrap_or_default();
        assert!(why.contains("/nonexistent/sys/"), "{row:?}");
        assert!(why.contains("No such file"), "{row:?}");
        assert_eq!(row.scope, Scope::Namespace(None));
    }
    let error = HostError::Open {
        path: "/dev/shm".into(),
        source: io::Error::from_raw_os_error(libc::ENOENT),
    };
    let all = read(nowhere, Err(&error));
    let bytes = all.iter().find(|row| row.name == "/dev/shm bytes").unwrap();
    let why = bytes.unknown().unwrap_or_default();
    assert!(why.starts_with("open /dev/shm: No such file"), "{why}");
}
