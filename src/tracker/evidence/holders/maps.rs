//! The lines of `/proc/PID/maps`, as bytes.

use super::{Detail, How};
use crate::tracker::evidence::mounts::number;

/// One line of `maps`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Map<'a> {
    pub(super) range: &'a [u8],
    pub(super) bytes: u64,
    pub(super) permissions: &'a [u8],
    pub(super) dev: u64,
    pub(super) ino: u64,
    pub(super) path: &'a [u8],
}

impl Map<'_> {
    pub(super) fn is_shared(&self) -> bool {
        self.permissions.get(3) == Some(&b's')
    }

    pub(super) fn detail(&self) -> Detail {
        Detail {
            how: How::Map,
            access: String::from_utf8_lossy(self.permissions.get(..3).unwrap_or_default()).into(),
            shared: Some(self.is_shared()),
            bytes: Some(self.bytes),
            fd: None,
        }
    }
}

/// `start-end perms offset major:minor inode path`, numbers in hexadecimal but for the inode.
pub(super) fn parse_map(line: &[u8]) -> Option<Map<'_>> {
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|b| *b != b' ')?;
        let text = rest.get(start..)?;
        let end = text.iter().position(|b| *b == b' ').unwrap_or(text.len());
        let (field, tail) = text.split_at(end);
        rest = tail;
        Some(field)
    };
    let (range, permissions, _offset) = (field()?, field()?, field()?);
    let (dev, ino) = (field()?, number(field()?)?);
    let mut dev = dev.split(|b| *b == b':').map(|part| {
        std::str::from_utf8(part).ok().and_then(|part| u32::from_str_radix(part, 16).ok())
    });
    let (major, minor) = (dev.next()??, dev.next()??);
    let path = rest.iter().position(|b| *b != b' ').and_then(|at| rest.get(at..));
    let path = path.unwrap_or_default();
    // System V memory has the id 0 as well; else there is no file.
    if ino == 0 && !path.starts_with(b"/SYSV") {
        return None;
    }
    let mut ends = range.split(|b| *b == b'-').map(|part| {
        std::str::from_utf8(part).ok().and_then(|part| u64::from_str_radix(part, 16).ok())
    });
    let (start, end) = (ends.next()??, ends.next()??);
    Some(Map {
        range,
        bytes: end.saturating_sub(start),
        permissions,
        dev: libc::makedev(major, minor),
        ino,
        path,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_lines_as_bytes() {
        let line =
            b"7f00-7f01 rw-s 00001000 00:1b 4242                       /dev/shm/a b\xff (deleted)";
        assert_eq!(
            parse_map(line),
            Some(Map {
                range: b"7f00-7f01",
                bytes: 1,
                permissions: b"rw-s",
                dev: libc::makedev(0, 0x1b),
                ino: 4242,
                path: b"/dev/shm/a b\xff (deleted)"
            })
        );
        assert_eq!(parse_map(b"7f00-7f01 rw-p 00000000 00:00 0 [heap]"), None);
        assert_eq!(parse_map(b"7f00-7f01 rw-p 00000000 103:02 7").map(|m| m.ino), Some(7));
        let first = b"7f00-7f01 rw-s 00000000 00:01 0                 /SYSV00000000 (deleted)";
        assert_eq!(parse_map(first).map(|m| (m.dev, m.ino)), Some((libc::makedev(0, 1), 0)));
        for rubbish in
            [&b""[..], b"x", b"a b c d e", b"a b c 1:2:3 9 /x", b"1-2 b", b"a b c zz:1 9"]
        {
            let _ignored: Option<Map<'_>> = parse_map(rubbish);
        }
    }
}
