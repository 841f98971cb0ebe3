//! Single fields, frames and headers.

use crate::tracker::journal::format::{
    Batch, Fields, FormatError, Frame, HEADER, Header, LENGTH, LONGEST, MAGIC, Record, TooLong,
    decode_header, encode_header, frame, guarded, put,
};

#[test]
fn no_flipped_bit_of_a_length_is_taken_for_another_length() {
    for seed in [0, 1, 0x00ff_ffff, 0xdead_beef] {
        for length in (1..1000).chain((0..24).map(|bit| 1 << bit)).chain([LENGTH]) {
            let word = guarded(length, seed);
            for bit in 0..32 {
                let flipped = word ^ (1 << bit);
                assert_ne!(guarded(flipped & LENGTH, seed), flipped, "{length} {bit}");
            }
        }
    }
}

#[test]
fn numbers_of_any_length() {
    for number in [0, 1, 127, 128, 16383, 16384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX] {
        let mut bytes = Vec::new();
        put(&mut bytes, number);
        let mut fields = Fields(&bytes);
        assert_eq!((fields.number(), fields.0.len()), (Some(number), 0));
    }
    for beyond in [&[0xff; 10][..], &[0xff; 9], &[0x80; 11], &[]] {
        assert_eq!(Fields(beyond).number(), None, "{beyond:?}");
    }
}

#[test]
fn headers() {
    let boot_id = "01234567-89ab-cdef-0123-456789abcdef".to_owned();
    for (boot_id, kept) in
        [(boot_id.clone(), &*boot_id), (String::new(), ""), (boot_id.repeat(2), "")]
    {
        let header = Header { boot_id, made: -5, pid: i32::MAX };
        let bytes = encode_header(&header, 7);
        assert_eq!(bytes.len(), HEADER);
        let expected = Header { boot_id: kept.into(), ..header };
        assert_eq!(decode_header(&bytes), Ok((expected, 7)));
    }
}

#[test]
fn what_is_no_header() {
    let header = Header { boot_id: "b".into(), made: 1, pid: 2 };
    let bytes = encode_header(&header, 7);
    for length in 0..HEADER {
        assert_eq!(decode_header(&bytes[..length]), Err(FormatError::Unfinished));
    }
    for bit in 0..HEADER * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let error = decode_header(&flipped).unwrap_err();
        match bit / 8 {
            0..8 => assert_eq!(error, FormatError::Foreign),
            8..12 if bit != 64 => assert!(matches!(error, FormatError::Newer { .. })),
            _ => assert_eq!(error, FormatError::Damaged),
        }
    }
    for foreign in [&b"x"[..], b"rtrackK", b"#!/bin/sh\nexit 0\n", &[0; 100]] {
        assert_eq!(decode_header(foreign), Err(FormatError::Foreign));
    }
    let newer = [&MAGIC[..], &2_u32.to_le_bytes()].concat();
    let error = decode_header(&newer).unwrap_err();
    assert_eq!(error, FormatError::Newer { found: 2 });
    assert_eq!(
        error.to_string(),
        "it is a journal of version 2, and this program knows version 1 only"
    );
}

#[test]
fn names_that_are_too_long_leave_the_batch_as_it_was() {
    let mut batch = Batch::new(1);
    let record = |name| Record::Unregister { owner: 0, rtype: b"file", name };
    let long = vec![b'x'; LONGEST];
    batch.push(&record(b"a")).unwrap();
    let before = batch.len();
    assert_eq!(batch.push(&record(&long)), Err(TooLong));
    assert_eq!(batch.len(), before);
    batch.push(&record(&long[..LONGEST / 2])).unwrap();
    assert!(matches!(frame(&batch.as_bytes()[before..], 1), Frame::Whole(_)));
}
