//! `mountinfo`, read as bytes: which mount a descriptor belongs to, and which objects are
//! themselves mounted somewhere or lie below an overlay.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::namespaces::KEPT;
use crate::tracker::resource::escape;

/// How the kernel marks the root of a mount whose file has lost the name it was mounted by.
const DELETED: &[u8] = b"//deleted";

/// One line of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The mount's id, unique on the machine while it exists.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
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
    /// Whether it shows other owners than the file system has (mount_setattr(2)).
    pub idmapped: bool,
}

impl Mount {
    /// Whether what is mounted has lost the name that it was mounted by.
    #[must_use]
    pub fn lost_its_name(&self) -> bool {
        self.root.ends_with(DELETED)
    }
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

    /// The mount that `point`, an absolute path without links, leads to for who sees these mounts, if something is
    /// mounted exactly there and not hidden by what is mounted above it.
    #[must_use]
    pub fn reached_at(&self, point: &[u8]) -> Option<&Mount> {
        let ids: HashSet<u64> = self.0.iter().map(|mount| mount.id).collect();
        // The mount of the root directory has no parent here, nor has anything if that directory is no mount.
        let parent = |mount: &Mount| {
            Some(mount.parent).filter(|parent| *parent != mount.id && ids.contains(parent))
        };
        let mut on: HashMap<(Option<u64>, &[u8]), &Mount> =
            self.0.iter().map(|mount| ((parent(mount), &mount.point[..]), mount)).collect();
        // What is mounted over the root directory itself is not entered by paths from there.
        let mut reached = on.remove(&(None, b"/"));
        let mut below = reached.map(|mount| mount.id);
        let ends = point.iter().enumerate().skip(1).filter(|(_, byte)| **byte == b'/');
        for end in ends.map(|(end, _)| end).chain([point.len()]).filter(|end| *end > 1) {
            reached = None;
            while let Some(mount) = on.remove(&(below, point.get(..end)?)) {
                below = Some(mount.id);
                reached = Some(mount);
            }
        }
        reached
    }

    /// The topmost mount that `path` lies on.
    #[must_use]
    pub fn above(&self, path: &[u8]) -> Option<&Mount> {
        let above = self.0.iter().filter(|mount| is_within(path, &mount.point));
        above.max_by_key(|mount| mount.point.len())
    }

    /// Whether `path` lies on a network file system: looking at what it leads to may take for ever.
    #[must_use]
    pub fn may_hang(&self, path: &[u8]) -> bool {
        const NETWORK: [&[u8]; 8] =
            [b"nfs", b"nfs4", b"cifs", b"smb3", b"9p", b"ceph", b"lustre", b"afs"];
        self.above(path).is_some_and(|mount| NETWORK.contains(&mount.fstype.as_slice()))
    }

    /// Whether `dev` is a file system of the kernel's own, of terminals, on memory or a disk, which answers in time.
    #[must_use]
    pub fn is_local(&self, dev: u64) -> bool {
        const LOCAL: [&[u8]; 14] = [
            b"tmpfs",
            b"ramfs",
            b"rootfs",
            b"devtmpfs",
            b"devpts",
            b"ext2",
            b"ext3",
            b"ext4",
            b"xfs",
            b"btrfs",
            b"f2fs",
            b"squashfs",
            b"erofs",
            b"bcachefs",
        ];
        let mut mounts = self.0.iter().filter(|mount| mount.dev == dev);
        mounts.any(|mount| LOCAL.contains(&mount.fstype.as_slice()))
    }

    /// Whether this is what somebody sees whose root directory is that of the mount `root`, and not
    /// what a jail shows.
    #[must_use]
    pub fn seen_from(&self, root: u64) -> bool {
        self.0.iter().any(|mount| mount.id == root && mount.point == b"/")
    }

    /// The mount namespaces that are themselves mounted somewhere, so that they outlive their processes.
    pub(super) fn namespaces(&self) -> impl Iterator<Item = Vec<u8>> {
        let nsfs = self.0.iter().filter(|mount| mount.fstype == b"nsfs");
        nsfs.filter(|mount| mount.root.starts_with(KEPT)).map(|mount| mount.root.clone())
    }

    /// The device of the mount with this id.
    #[must_use]
    pub fn dev_of(&self, id: u64) -> Option<u64> {
        self.0.iter().find(|mount| mount.id == id).map(|mount| mount.dev)
    }

    /// Whether a mount of one of `devices` shows other owners than the file system has.
    #[must_use]
    pub fn maps_owners_of(&self, devices: &HashSet<u64>) -> bool {
        self.0.iter().any(|mount| mount.idmapped && devices.contains(&mount.dev))
    }

    /// The entries of the directory `base` of the file system `dev` that are in use as mounts, each
    /// with what is seen of it: bind mounts of a part of it, mounts on top of something in it.
    #[must_use]
    pub fn uses_of(&self, dev: u64, base: &[u8]) -> Vec<(Vec<u8>, String)> {
        let mut uses = Vec::new();
        for mount in &self.0 {
            if mount.dev == dev
                && is_within(&mount.root, base)
                && let Some(name) = mount.root.get(base.len()..).and_then(first_component)
            {
                let at = escape(&mount.point);
                uses.push((name.to_vec(), format!("mounted at {at}")));
            }
        }
        // Where `base` can be reached: by mounts of it, and of what is above it.
        let mounted =
            self.0.iter().filter(|mount| mount.dev == dev && is_within(base, &mount.root));
        let points: HashSet<Vec<u8>> = mounted
            .map(|mount| {
                let below = base.get(mount.root.len()..).filter(|_| mount.root != b"/");
                let below = below.unwrap_or(base).strip_prefix(b"/").unwrap_or_default();
                let point = mount.point.strip_suffix(b"/").unwrap_or(&mount.point);
                if below.is_empty() { mount.point.clone() } else { [point, b"/", below].concat() }
            })
            .collect();
        for other in &self.0 {
            // What is mounted on top of something inside keeps that name busy.
            for name in names_below(&points, &other.point) {
                let fstype = escape(&other.fstype);
                uses.push((name.to_vec(), format!("a mount point of {fstype}")));
            }
        }
        uses
    }

    /// What the overlays are made of, as they were told: the paths of their layers.
    pub(super) fn layers(&self) -> BTreeSet<Vec<u8>> {
        let overlays = self.0.iter().filter(|mount| mount.fstype == b"overlay");
        overlays.flat_map(|mount| layers(&mount.options)).collect()
    }
}

/// The paths in the options of an overlay: `lowerdir=A:B,upperdir=C,workdir=D`, where a backslash
/// keeps the character after it from separating. Newer kernels say `lowerdir+=A` and `datadir+=B`.
fn layers(options: &[u8]) -> Vec<Vec<u8>> {
    const KEYS: [&[u8]; 5] = [b"lowerdir", b"lowerdir+", b"datadir+", b"upperdir", b"workdir"];
    let mut paths = Vec::new();
    for option in split_unescaped(options, b',') {
        let Some(equals) = option.iter().position(|b| *b == b'=') else { continue };
        let (Some(key), Some(value)) = (option.get(..equals), option.get(equals + 1..)) else {
            continue;
        };
        if KEYS.contains(&key) {
            let parts = split_unescaped(value, b':');
            paths.extend(parts.into_iter().map(without_escapes).filter(|path| !path.is_empty()));
            // A path that was given by itself may hold colons that separate nothing.
            paths.push(without_escapes(value));
        }
    }
    paths
}

/// Splits where `separator` stands without a backslash before it.
fn split_unescaped(text: &[u8], separator: u8) -> Vec<&[u8]> {
    let mut escaped = false;
    text.split(|byte| {
        let splits = *byte == separator && !escaped;
        escaped = *byte == b'\\' && !escaped;
        splits
    })
    .collect()
}

fn without_escapes(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        plain.push(if byte == b'\\' { bytes.next().copied().unwrap_or(byte) } else { byte });
    }
    plain
}

fn is_within(path: &[u8], point: &[u8]) -> bool {
    point == b"/"
        || path
            .strip_prefix(point)
            .is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

/// The first name that `path` has below each of `points`. Every prefix is looked up: comparing
/// every path with every point would take minutes with the mounts that any user can make.
fn names_below<'a>(points: &HashSet<Vec<u8>>, path: &'a [u8]) -> Vec<&'a [u8]> {
    let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    ends.filter_map(|end| {
        let point = path.get(..end.max(1))?;
        points.contains(point).then(|| first_component(path.get(end..)?)).flatten()
    })
    .collect()
}

fn first_component(path: &[u8]) -> Option<&[u8]> {
    let path = path.strip_suffix(DELETED).unwrap_or(path);
    path.split(|b| *b == b'/').find(|part| !part.is_empty())
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|b| *b == b' ');
    let id = number(fields.next()?)?;
    let parent = number(fields.next()?)?;
    let mut dev = fields.next()?.split(|b| *b == b':');
    let (major, minor) = (number(dev.next()?)?, number(dev.next()?)?);
    let root = unescape(fields.next()?);
    let point = unescape(fields.next()?);
    let idmapped = fields.next()?.split(|b| *b == b',').any(|option| option == b"idmapped");
    // Optional fields end at a lone hyphen.
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    let fstype = rest.next()?.to_vec();
    let _source = rest.next();
    let options = rest.next().map(unescape).unwrap_or_default();
    let (major, minor) = (u32::try_from(major).ok()?, u32::try_from(minor).ok()?);
    let dev = libc::makedev(major, minor);
    Some(Mount { id, parent, dev, root, point, fstype, options, idmapped })
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
36 27 0:47 / /net rw - nfs4 server:/ rw
";

    #[test]
    fn parses_and_finds() {
        let mounts = Mounts::parse(TEXT);
        assert_eq!(mounts.0.len(), 9);
        assert_eq!(mounts.at(b"/dev").map(|m| m.fstype.as_slice()), Some(&b"devtmpfs"[..]));
        let dev = libc::makedev(0, 27);
        assert_eq!(mounts.dev_of(30), Some(dev));
        for (path, may) in [
            (&b"/net/home/x"[..], true),
            (b"/net", true),
            (b"/network", false),
            (b"/dev/shm/x", false),
        ] {
            assert_eq!(mounts.may_hang(path), may);
        }
        let uses = mounts.uses_of(dev, b"/");
        let names: Vec<_> = uses.iter().map(|(n, _)| String::from_utf8_lossy(n)).collect();
        assert_eq!(names, ["psm_1", "gone", "inner"]);
        assert_eq!(uses[0].1, "mounted at /mnt/a b");
        assert!(!mounts.maps_owners_of(&HashSet::from([dev])));
        // /dev/shm itself is a part of a tmpfs.
        let inner = Mounts::parse(
            b"40 24 0:27 /app /dev/shm rw - tmpfs tmpfs rw\n\
              41 24 0:27 /app/job.dat /mnt/d rw - tmpfs tmpfs rw\n\
              42 24 0:27 /apple /mnt/e rw,idmapped - tmpfs tmpfs rw\n\
              43 24 0:46 / /dev/shm/inner rw - tmpfs tmpfs rw\n",
        );
        let uses = inner.uses_of(dev, b"/app");
        let names: Vec<_> = uses.iter().map(|(n, _)| String::from_utf8_lossy(n)).collect();
        assert_eq!(names, ["job.dat", "inner"]);
        let above = Mounts::parse(
            b"40 24 0:27 / /mnt/t rw - tmpfs tmpfs rw\n\
              41 24 0:27 /app /dev/shm rw - tmpfs tmpfs rw\n\
              42 24 0:46 / /mnt/t/app/obj2 rw - tmpfs tmpfs rw\n",
        );
        assert_eq!(
            above.uses_of(dev, b"/app"),
            [(b"obj2".to_vec(), "a mount point of tmpfs".into())]
        );
        assert!(inner.maps_owners_of(&HashSet::from([dev])));
        let layers = mounts.layers();
        for path in ["/dev/shm/l1", "/dev/shm/l2", "/var/u", "/var/w"] {
            assert!(layers.contains(path.as_bytes()), "{path}");
        }
    }

    #[test]
    fn where_a_path_leads() {
        let reached = |text: &str, point: &str| {
            let mounts = Mounts::parse(text.as_bytes());
            mounts.reached_at(point.as_bytes()).map(|mount| mount.id)
        };
        let line =
            |id, parent, point| format!("{id} {parent} 0:{id} / {point} rw - tmpfs tmpfs rw\n");
        let usual = [line(1, 0, "/"), line(2, 1, "/dev"), line(3, 2, "/dev/shm")].concat();
        for (point, id) in [("/dev/shm", Some(3)), ("/dev", Some(2)), ("/", Some(1)), ("/d", None)]
        {
            assert_eq!(reached(&usual, point), id, "{point}");
        }
        for (more, id) in [
            (line(4, 3, "/dev/shm"), Some(4)),
            (line(4, 3, "/dev/shm") + &line(5, 4, "/dev/shm"), Some(5)),
            (line(4, 3, "/dev/shm/x"), Some(3)),
            // Nothing is mounted in the new /dev.
            (line(4, 2, "/dev"), None),
            (line(4, 2, "/dev") + &line(5, 4, "/dev/shm"), Some(5)),
            // Who has the old root directory goes on from there.
            (line(4, 1, "/"), Some(3)),
        ] {
            assert_eq!(reached(&(usual.clone() + &more), "/dev/shm"), id, "{more}");
            assert_eq!(reached(&(more.clone() + &usual), "/dev/shm"), id, "{more}");
        }
        // The root directory is no mount, or its own parent.
        assert_eq!(reached(&line(3, 2, "/dev/shm"), "/dev/shm"), Some(3));
        let own_parent = line(1, 1, "/") + &line(3, 1, "/dev/shm");
        assert_eq!(reached(&own_parent, "/dev/shm"), Some(3));
        assert_eq!(reached("", "/dev/shm"), None);
        // The kernel writes no circles; they would have an end.
        reached(&(line(2, 3, "/dev") + &line(3, 2, "/dev")), "/dev");
    }

    #[test]
    fn layers_of_overlays() {
        for (options, expected) in [
            (&b"rw,lowerdir=/a:/b::/c,upperdir=/u"[..], &["/a", "/b", "/c", "/u"][..]),
            (b"rw,lowerdir=/a\\:b:/c\\,d", &["/a:b", "/c,d"]),
            (b"rw,lowerdir+=/a:b,datadir+=/d", &["/a:b", "/d"]),
            (b"rw,lowerdir=l/ABC:l/DEF", &["l/ABC", "l/DEF"]),
            (b"rw,xino=off", &[]),
        ] {
            let found = layers(options);
            for path in expected {
                assert!(found.iter().any(|f| f == path.as_bytes()), "{path}: {found:?}");
            }
            assert_eq!(found.is_empty(), expected.is_empty());
        }
    }
}
