//! What lines mean, and how streams are cut into them.

use proptest::prelude::*;

use super::*;

fn shown(line: &[u8]) -> String {
    shown_by(Dialect::Cpython, line)
}

fn shown_by(dialect: Dialect, line: &[u8]) -> String {
    match parse(line, dialect) {
        Ok(m) => format!("{} {} {}", m.command.as_str(), ReprStr(&m.name), m.rtype),
        Err(error) => format!("{}: {error}", error.class()),
    }
}

#[test]
fn lines_mean_what_python_takes_them_for() {
    for (line, meaning) in [
        (&b"REGISTER:/a:shared_memory\n"[..], "REGISTER '/a' shared_memory"),
        (b"UNREGISTER:/a:semaphore", "UNREGISTER '/a' semaphore"),
        (b" \t\x0b\x0cREGISTER:x:dummy\r\n", "REGISTER 'x' dummy"),
        (b"REGISTER: a :noop\n", "REGISTER ' a ' noop"),
        (b"REGISTER:a:b:c:dummy\n", "REGISTER 'a:b:c' dummy"),
        (b"REGISTER::dummy\n", "REGISTER '' dummy"),
        (b"PROBE:0:noop\n", "PROBE '0' noop"),
        (b"REGISTER:a\0b:dummy\n", "REGISTER 'a\\x00b' dummy"),
        (b"\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
        (b"REGISTER\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
        (b"REGISTER:x\n", "ValueError: not enough values to unpack (expected 2, got 1)"),
        (
            b"REGISTER:x:dummy\x1c\n",
            "ValueError: Cannot register x for automatic cleanup: unknown resource type dummy\\x1c",
        ),
        (
            b"PROBE:0:bogus\n",
            "ValueError: Cannot register 0 for automatic cleanup: unknown resource type bogus",
        ),
        (b"register:x:dummy\n", "RuntimeError: unrecognized command 'register'"),
        (
            b"register:x:bogus\n",
            "ValueError: Cannot register x for automatic cleanup: unknown resource type bogus",
        ),
        (
            b" REGISTER:\xc3:dummy\n",
            "UnicodeDecodeError: 'ascii' codec can't decode byte 0xc3 in position 9: ordinal not in range(128)",
        ),
        (br#"{"cmd":"PROBE","rtype":"noop"}"#, "PROBE '' noop"),
        (
            br#"{"cmd":"REGISTER","rtype":"dummy","base64_name":"YQ==","base64_name":"Yg=="}"#,
            "REGISTER 'b' dummy",
        ),
        (
            br#"{"\u0063md":"REGISTER","rtype":"dummy","base64_name":"w\u0036k="}"#,
            "REGISTER 'é' dummy",
        ),
        (
            br#"{"cmd":"REGISTER","rtype":"dummy","base64_name":"_-8="}"#,
            "REGISTER '\\udcff\\udcef' dummy",
        ),
        (br#"{"rtype":"bogus"}"#, "KeyError: 'cmd'"),
        (br#"{"cmd":"x"}"#, "KeyError: 'rtype'"),
        (
            br#"{"cmd":1,"rtype":"noop"}"#,
            "ValueError: malformed resource_tracker fields: {'cmd': 1, 'rtype': 'noop'}",
        ),
        (b"{x}\n", "ValueError: malformed resource_tracker message: b'{x}\\n'"),
        (
            "{\"cmd\":\"é\"}".as_bytes(),
            "ValueError: malformed resource_tracker message: b'{\"cmd\":\"\\xc3\\xa9\"}'",
        ),
        (
            br#"{"cmd":"PROBE","rtype":"noop","base64_name":"QUJ"}"#,
            "ValueError: malformed resource_tracker base64_name: 'QUJ'",
        ),
        (
            br#"{"cmd":"PROBE","rtype":"noop","base64_name":"\u00e9"}"#,
            "ValueError: malformed resource_tracker base64_name: 'é'",
        ),
    ] {
        assert_eq!(shown(line), meaning);
    }
}

#[test]
fn each_dialect_has_its_types_and_commands() {
    use Dialect::{Any, Cpython, Loky, Rtrack};
    const LOKYS: &str = "ValueError: Cannot register x for automatic cleanup: unknown resource type \
                         (semaphore). Resource type should be one of the following: ['noop', \
                         'dummy', 'folder', 'file', 'semlock']";
    const RTRACKS: &str = "ValueError: Cannot register x for automatic cleanup: unknown resource \
                           type (folder). Resource type should be one of the following: ['noop', \
                           'dummy', 'semaphore', 'shared_memory', 'message_queue', 'sysv_shm', \
                           'sysv_sem', 'sysv_msg', 'file']";
    for (dialect, line, meaning) in [
        (Loky, "REGISTER:/a:b:folder", "REGISTER '/a:b' folder"),
        (Loky, "MAYBE_UNLINK:x:file", "MAYBE_UNLINK 'x' file"),
        (Loky, "MAYBE_UNLINK:x:semlock", "MAYBE_UNLINK 'x' semlock"),
        (Loky, "MAYBE_UNLINK:x:noop", "MAYBE_UNLINK 'x' noop"),
        (Loky, "maybe_unlink:x:file", "RuntimeError: unrecognized command 'maybe_unlink'"),
        (Loky, "REGISTER:x:semaphore", LOKYS),
        (Loky, "PROBE::", "PROBE '' noop"),
        (Loky, "REGISTER:x:file", "REGISTER 'x' file"),
        (Cpython, "REGISTER:x:dummy", "REGISTER 'x' dummy"),
        (Cpython, "MAYBE_UNLINK:x:dummy", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        (Any, "REGISTER:x:semlock", "REGISTER 'x' semlock"),
        (Any, "REGISTER:x:semaphore", "REGISTER 'x' semaphore"),
        (Any, "MAYBE_UNLINK:x:dummy", "MAYBE_UNLINK 'x' dummy"),
        (Any, "PROBE::", "PROBE '' noop"),
        // Neither tracker takes these.
        (Any, "MAYBE_UNLINK:x:semaphore", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        (Any, "PROBE", "ValueError: not enough values to unpack (expected 2, got 1)"),
        (Rtrack, "REGISTER:/q:message_queue", "REGISTER '/q' message_queue"),
        (Rtrack, "REGISTER:5:sysv_shm", "REGISTER '5' sysv_shm"),
        (Rtrack, "REGISTER:5:sysv_sem", "REGISTER '5' sysv_sem"),
        (Rtrack, "UNREGISTER:5:sysv_msg", "UNREGISTER '5' sysv_msg"),
        (Rtrack, "REGISTER:a:b:file", "REGISTER 'a:b' file"),
        (Rtrack, "REGISTER:/m:shared_memory", "REGISTER '/m' shared_memory"),
        (Rtrack, "REGISTER:/s:semaphore", "REGISTER '/s' semaphore"),
        (Rtrack, "PROBE:0:noop", "PROBE '0' noop"),
        (
            Rtrack,
            r#"{"cmd":"REGISTER","rtype":"file","base64_name":"YQpi_w=="}"#,
            "REGISTER 'a\\nb\\udcff' file",
        ),
        // What a name means is not the protocol's concern.
        (Rtrack, "REGISTER:0x5:sysv_shm", "REGISTER '0x5' sysv_shm"),
        (Rtrack, "MAYBE_UNLINK:x:file", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        (Rtrack, "MAYBE_UNLINK:x:dummy", "RuntimeError: unrecognized command 'MAYBE_UNLINK'"),
        (Rtrack, "REGISTER:x:folder", RTRACKS),
    ] {
        assert_eq!(shown_by(dialect, line.as_bytes()), meaning, "{dialect}");
    }
    for (dialect, line) in [
        (Cpython, "REGISTER:x:file"),
        (Cpython, "PROBE::"),
        (Loky, "PROBE:0:bogus"),
        (Loky, "REGISTER::"),
        (Any, "REGISTER:x:bogus"),
        (Rtrack, "REGISTER:x:semlock"),
        (Rtrack, "REGISTER:x:sysv"),
        (Rtrack, "REGISTER:x:SYSV_SHM"),
        (Rtrack, "PROBE::"),
        (Cpython, "REGISTER:/q:message_queue"),
        (Loky, "REGISTER:5:sysv_shm"),
        (Any, "REGISTER:5:sysv_shm"),
        (Any, "REGISTER:/q:message_queue"),
    ] {
        let shown = shown_by(dialect, line.as_bytes());
        assert!(shown.starts_with("ValueError: Cannot register "), "{dialect}: {shown}");
    }
}

#[test]
fn base64_as_python_reads_it() {
    for (text, name) in [
        ("", Some(&b""[..])),
        ("QUJD", Some(b"ABC")),
        ("QUI=", Some(b"AB")),
        ("QQ==", Some(b"A")),
        ("Q Q = =", Some(b"A")),
        ("QQ==QUJD", Some(b"A")),
        ("Q=Q==", Some(b"A")),
        ("=QQ==", Some(b"A")),
        ("QU=JD", Some(b"ABC")),
        ("====", Some(b"")),
        ("+/-_", Some(b"\xfb\xff\xbf")),
        ("QQ=", None),
        ("QQ", None),
        ("Q", None),
        ("QUJDQ===", None),
    ] {
        assert_eq!(decode_base64(text).as_deref(), name, "{text}");
    }
}

fn lines(pieces: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let mut framer = Framer::new();
    let mut found = Vec::new();
    for piece in pieces {
        framer.push(piece, |line| found.push(line.ok().map(<[u8]>::to_vec)));
    }
    framer.finish(|line| found.push(line.ok().map(<[u8]>::to_vec)));
    found
}

#[test]
fn the_bound_of_a_line() {
    for (length, kept) in [(LINE_MAX, true), (LINE_MAX + 1, false)] {
        let mut stream = vec![b'x'; length];
        assert_eq!(lines(&[&stream]).iter().map(Option::is_some).collect::<Vec<_>>(), [kept]);
        stream.extend_from_slice(b"\nnext\n");
        for size in [1000, 4096, LINE_MAX, LINE_MAX + 1, stream.len()] {
            let found = lines(&stream.chunks(size).collect::<Vec<_>>());
            assert_eq!(found.len(), 2, "{size}");
            assert_eq!(found[0].is_some(), kept, "{size}");
            assert_eq!(found[1].as_deref(), Some(&b"next\n"[..]));
        }
    }
}

proptest! {
    #[test]
    fn framing_does_not_depend_on_the_pieces(
        stream in proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..400),
        size in 1..50_usize,
    ) {
        let pieces: Vec<&[u8]> = stream.chunks(size).collect();
        prop_assert_eq!(lines(&pieces), lines(&[&stream]));
        prop_assert_eq!(lines(&pieces).into_iter().flatten().flatten().collect::<Vec<_>>(), stream);
    }

    #[test]
    fn no_bytes_make_it_panic(line in proptest::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
        let mut line = line;
        if json { line.insert(0, b'{'); }
        shown(&line);
    }

    #[test]
    fn what_is_encoded_is_read_back(
        name in proptest::collection::vec(any::<u8>(), 0..255),
        command in proptest::sample::select(&Command::ALL),
        dialect in proptest::sample::select(&Dialect::ALL),
        number in any::<proptest::sample::Index>(),
    ) {
        let rtype = *number.get(dialect.rtypes());
        prop_assume!(command != Command::MaybeUnlink || dialect.releases(rtype));
        let message = encode(command, &name, rtype.as_str(), form_for(&name)).unwrap();
        prop_assert!(message.len() <= MESSAGE_MAX);
        prop_assert_eq!(message.iter().filter(|&&byte| byte == b'\n').count(), 1);
        prop_assert_eq!(parse(&message, dialect), Ok(Message { command, name: name.into(), rtype }));
    }
}

#[test]
fn what_is_too_long_is_refused() {
    let fits = MESSAGE_MAX - "REGISTER::dummy\n".len();
    assert!(encode(Command::Register, &vec![b'a'; fits], "dummy", Form::Ascii).is_ok());
    assert!(encode(Command::Register, &vec![b'a'; fits + 1], "dummy", Form::Ascii).is_err());
    assert!(encode(Command::Unregister, &[0xff; 255], "shared_memory", Form::Json).is_ok());
    assert!(encode(Command::Register, &[0xff; 256], "dummy", Form::Json).is_err());
}
