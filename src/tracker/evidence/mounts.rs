//! `mountinfo`, read as bytes: which mount a descriptor belongs to, and which objects are
//! themselves mounted somewhere or lie below an overlay.

use std::collections::HashSet;

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, unique on the machine while it exists.
    pub id: u64,
    /// The device number, as `st_dev`.
    pub dev: u64,
    /// What part of the file system is mounted, unescaped.
    pub root: Vec<u8>,
    /// Where, unescaped.
    pub point: Vec<u8>,
    /// The file system type.
    pub fstype: Vec<u8>,
    /// Options of the super block, unescaped.
    pub options: Vec<u8>,
}

/// The mounts of one mount namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounts(pub Vec<Mount>);

impl Mounts {
    /// Parses a whole `mountinfo`. Lines that are not of its form are passed over.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(parse_line).collect())
    }

    /// The topmost mount at exactly `point`.
    #[must_use]
    pub fn at(&self, point: &[u8]) -> Option<&Mount> {
        self.0.iter().rev().find(|mount| mount.point == point)
    }

    /// The mount that `path` lies on: the last one with the longest mount point above it.
    #[must_use]
    pub fn containing(&self, path: &[u8]) -> Option<&Mount> {
        self.0
            .iter()
            .filter(|mount| is_within(path, &mount.point))
            .max_by_key(|mount| mount.point.len())
    }

    /// The device of the mount with this id.
    #[must_use]
    pub fn dev_of(&self, id: u64) -> Option<u64> {
        self.0.iter().find(|mount| mount.id == id).map(|mount| mount.dev)
    }

    /// The entries of the file system `dev` that are in use as mounts, by their first name below
    /// its root, each with what is seen of it: bind mounts of a part of it, mounts on top of
    /// something in it, overlays with a layer in it.
    #[must_use]
    pub fn uses_of(&self, dev: u64) -> Vec<(Vec<u8>, String)> {
        let mut uses = Vec::new();
        for mount in &self.0 {
            if mount.dev == dev
                && let Some(name) = first_component(&mount.root)
            {
                let at = super::super::resource::escape(&mount.point);
                uses.push((name.to_vec(), format!("mounted at {at}")));
            }
        }
        let points: HashSet<&[u8]> = self
            .0
            .iter()
            .filter(|mount| mount.dev == dev && mount.root == b"/")
            .map(|mount| mount.point.as_slice())
            .collect();
        for other in &self.0 {
            // What is mounted on top of something inside keeps that name busy.
            for name in names_below(&points, &other.point) {
                let fstype = super::super::resource::escape(&other.fstype);
                uses.push((name.to_vec(), format!("a mount point of {fstype}")));
            }
            if other.fstype == b"overlay" {
                for option in other.options.split(|b| matches!(b, b',' | b':' | b'=')) {
                    for name in names_below(&points, option) {
                        uses.push((name.to_vec(), "a layer of an overlay".into()));
                    }
                }
            }
        }
        uses
    }
}

fn is_within(path: &[u8], point: &[u8]) -> bool {
    point == b"/"
        || path
            .strip_prefix(point)
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// The first name that `path` has below each of `points`. Every prefix is looked up: comparing
/// every path with every point would take minutes with the mounts that any user can make.
fn names_below<'a>(points: &HashSet<&[u8]>, path: &'a [u8]) -> Vec<&'a [u8]> {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    ends.filter_map(|end| {
        let point = path.get(..end.max(1))?;
        points.contains(point).then(|| first_component(path.get(end..)?)).flatten()
    })
    .collect()
}

fn first_component(path: &[u8]) -> Option<&[u8]> {
    // The kernel marks the root of a mount whose file has lost its name.
    let path = path.strip_suffix(b"//deleted").unwrap_or(path);
    path.split(|b| *b == b'/').find(|part| !part.is_empty())
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let _parent = fields.next()?;
    let mut dev = fields.next()?.split(|b| *b == b':');
    let (major, minor) = (number(dev.next()?)?, number(dev.next()?)?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let _mount_options = fields.next()?;
    // Optional fields end at a lone hyphen.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = rest.next()?.to_vec();
    let _source = rest.next();
    let options = rest.next().map(unescape).unwrap_or_default();
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    Some(Mount { id, dev: libc::makedev(major, minor), root, point, fstype, options })
}

/// A decimal number that is the whole of `text`.
pub(crate) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Undoes the octal escapes (`\040`) of blanks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte == b'\\'
            && let Some(digits) = tail.get(..3)
            && let Some(code) = std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            plain.push(code);
            rest = tail.get(3..).unwrap_or_default();
        } else {
            plain.push(byte);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"\
22 27 0:21 / /proc rw,relatime - proc proc rw,hidepid=invisible
24 27 0:6 / /dev rw,relatime shared:2 - devtmpfs devtmpfs rw,size=1k
30 24 0:27 / /dev/shm rw,nosuid shared:4 master:1 - tmpfs tmpfs rw
31 24 0:27 /psm_1 /mnt/a\\040b rw - tmpfs tmpfs rw
32 24 0:27 /gone//deleted /mnt/c rw - tmpfs tmpfs rw
33 24 0:44 / /dev/shm/inner rw - fuse x rw
34 24 0:45 / /merged rw - overlay overlay rw,lowerdir=/dev/shm/l1:/dev/shm/l2,upperdir=/var/u,workdir=/var/w
not a line
35 24 0:46 / /dev/shmoo rw - tmpfs tmpfs rw
";

    #[test]
    fn parses_and_finds() {
        let mounts = Mounts::parse(TEXT);
        assert_eq!(mounts.0.len(), 8);
        assert_eq!(mounts.at(b"/dev").map(|m| m.fstype.as_slice()), Some(&b"devtmpfs"[..]));
        let dev = libc::makedev(0, 27);
        assert_eq!(mounts.dev_of(30), Some(dev));
        assert_eq!(mounts.containing(b"/dev/shm/x").map(|m| m.id), Some(30));
        assert_eq!(mounts.containing(b"/dev/shm/inner/x").map(|m| m.id), Some(33));
        assert_eq!(mounts.containing(b"/dev/shmoo/x").map(|m| m.id), Some(35));
        let uses = mounts.uses_of(dev);
        let names: Vec<_> = uses.iter().map(|(n, _)| String::from_utf8_lossy(n)).collect();
        assert_eq!(names, ["psm_1", "gone", "inner", "l1", "l2"]);
        assert_eq!(uses[0].1, "mounted at /mnt/a b");
    }

    #[test]
    fn many_mounts_are_not_compared_with_each_other() {
        // Quadratic, these took 20 seconds.
        let mounts = (0..60_000).map(|i| Mount {
            id: i,
            dev: 1,
            root: b"/".to_vec(),
            point: format!("/tmp/m/{i}").into_bytes(),
            fstype: b"tmpfs".to_vec(),
            options: Vec::new(),
        });
        let started = std::time::Instant::now();
        assert!(Mounts(mounts.collect()).uses_of(1).is_empty());
        assert!(started.elapsed() < std::time::Duration::from_secs(3));
    }
}
