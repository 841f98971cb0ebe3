//! Who uses files and directories, wherever they lie: one look at all processes and mounts for many of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::holders::{self, Detail, Holder, How, KEEPS_UNSEEN, Scan, Search, Targets};
use super::mounts::Mounts;
use super::processes::Processes;
use super::sight::Sight;
use crate::tracker::host::Host;

/// What is asked about.
#[derive(Debug, Clone, Default)]
pub struct Thing {
    /// Device and inode of it and, if it is a directory, of everything in it.
    pub inodes: HashSet<(u64, u64)>,
    /// Whether it is a directory.
    pub directory: bool,
    /// The mount that it was reached by.
    pub mount: Option<u64>,
    /// The path of the directory that it lies in, without links.
    pub parent: Vec<u8>,
    /// Its name there.
    pub name: Vec<u8>,
    /// Device and inode of the directories that it lies in, at all levels above.
    pub above: Vec<(u64, u64)>,
}

/// Who uses one thing.
#[derive(Debug, Clone, Default)]
pub struct Use {
    /// The processes that were seen to, lowest pid first; never this one.
    pub holders: Vec<Holder>,
    /// How it is part of a mount.
    pub mounted: Option<String>,
    /// Why nobody can say that no other process does; nothing where everything was seen.
    pub unseen: Option<String>,
}

impl Use {
    /// A use that a write lease does not tell of: descriptors without access, directories, mounts.
    #[must_use]
    pub fn beside_the_lease(&self) -> Option<String> {
        let told = |detail: &Detail| match detail.how {
            How::Map => true,
            How::Fd => !matches!(detail.access.as_str(), "path" | "none"),
            How::Cwd | How::Root => false,
        };
        let holder = self.holders.iter().find(|holder| !holder.details.iter().all(told));
        holder.map(|_| in_use_by(&self.holders)).or_else(|| self.mounted.clone())
    }
}

/// Processes named in one sentence.
const NAMED: usize = 3;

/// `in use by comm[pid], …`, the first few and how many more.
#[must_use]
pub fn in_use_by(holders: &[Holder]) -> String {
    let name = |holder: &Holder| {
        format!("{}[{}]", crate::tracker::resource::escape(&holder.comm), holder.pid)
    };
    let named: Vec<String> = holders.iter().take(NAMED).map(name).collect();
    let more = match holders.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" +{more}"),
    };
    format!("in use by {}{more}", named.join(", "))
}

/// Looks who uses each of `things`. With `assume_complete` the operator asserts that nothing outside this
/// PID namespace does.
#[must_use]
pub fn look(host: &Host, things: &[Thing], assume_complete: bool) -> Vec<Use> {
    let own = Mounts::parse(&host.read_proc("self/mountinfo").unwrap_or_default());
    let mut targets = Targets::default();
    for (index, thing) in things.iter().enumerate() {
        let shown = device_shown(&own, thing);
        for (dev, ino) in &thing.inodes {
            targets.add((*dev, *ino), index);
            targets.places.insert(*dev);
            // Where a file system has several devices (btrfs, overlay), processes show the mount's.
            if let Some(shown) = shown.filter(|shown| shown != dev) {
                targets.add((shown, *ino), index);
                targets.places.insert(shown);
            }
        }
    }
    let targets = Arc::new(targets);
    let mut processes = Processes::read(&host.proc, &HashSet::new());
    let mut scan = holders::scan(host, &mut processes, &targets, &Search::deep());
    let (idmapped, unreadable) = (scan.maps_owners_of(&targets.places), scan.unreadable.len());
    let sight =
        Sight::new(&host.proc, &scan.own_mounts, idmapped, &processes, unreadable, assume_complete);
    let mut blind: Vec<&'static str> = sight.holders.iter().map(|blind| blind.says()).collect();
    blind.extend(scan.keeps_unseen.then_some(KEEPS_UNSEEN));
    let blind = (!blind.is_empty()).then(|| blind.join("; "));
    let this = std::fs::read_link(host.proc.join("self")).ok();
    let this: Option<i32> = this.and_then(|link| link.to_str()?.parse().ok());
    let mounted = Mounted::new(&scan, &own, things);
    let of = |(index, thing): (usize, &Thing)| {
        let mut holders = scan.holders.remove(&index).unwrap_or_default();
        holders.retain(|holder| Some(holder.pid) != this);
        let unseen = blind.clone().or_else(|| mounted.perhaps(&own, thing));
        Use { holders, mounted: mounted.of(thing), unseen }
    };
    things.iter().enumerate().map(of).collect()
}

/// The device that processes show for what lies on the mount of `thing`.
fn device_shown(own: &Mounts, thing: &Thing) -> Option<u64> {
    own.dev_of(thing.mount?)
}

/// Which things are mounted, under a mount, or part of an overlay.
struct Mounted {
    /// By device and inode.
    roots: HashMap<(u64, u64), String>,
    layers: HashSet<(u64, u64)>,
    /// By the directory that they lie in, and their names there.
    names: HashMap<Vec<u8>, HashMap<Vec<u8>, String>>,
    /// Devices of which something is mounted that nobody can look at.
    lost: HashMap<u64, String>,
    /// Layers that could not be found, by the parts of their paths.
    unknown: HashSet<Vec<u8>>,
}

impl Mounted {
    fn new(scan: &Scan, own: &Mounts, things: &[Thing]) -> Self {
        let namespaces = || scan.namespaces.iter();
        let mut names: HashMap<Vec<u8>, HashMap<Vec<u8>, String>> = HashMap::new();
        for thing in things {
            // Many things lie in few directories.
            if !thing.parent.is_empty() && !names.contains_key(&thing.parent) {
                let all = namespaces().map(|namespace| &namespace.mounts).chain([own]);
                let uses = base(own, &thing.parent)
                    .map(|(dev, base)| all.flat_map(|mounts| mounts.uses_of(dev, &base)).collect());
                names.insert(thing.parent.clone(), uses.unwrap_or_default());
            }
        }
        let paths = namespaces().flat_map(|namespace| &namespace.unknown_layers);
        let parts = paths.flat_map(|path| path.split(|byte| *byte == b'/'));
        Self {
            roots: namespaces().flat_map(|namespace| namespace.mounted.clone()).collect(),
            layers: namespaces().flat_map(|namespace| namespace.layers.clone()).collect(),
            names,
            lost: namespaces().flat_map(|namespace| namespace.lost.clone()).collect(),
            unknown: parts.map(<[u8]>::to_vec).collect(),
        }
    }

    fn of(&self, thing: &Thing) -> Option<String> {
        let by_name = self.names.get(&thing.parent).and_then(|names| names.get(&thing.name));
        let root = || thing.inodes.iter().find_map(|inode| self.roots.get(inode));
        // Who sees a directory through an overlay has none of its inodes.
        let mut layers = thing.inodes.iter().chain(&thing.above);
        let is_layer = thing.directory && layers.any(|inode| self.layers.contains(inode));
        let layer = is_layer.then(|| "in a layer of an overlay".to_owned());
        by_name.or_else(root).cloned().or(layer)
    }

    fn perhaps(&self, own: &Mounts, thing: &Thing) -> Option<String> {
        let (dev, _) = thing.inodes.iter().next()?;
        if device_shown(own, thing) != Some(*dev) {
            return Some("processes show its file system's files under another device".into());
        }
        if !own.is_local(*dev) {
            return Some("other machines may use its file system".into());
        }
        let parts = thing.parent.split(|byte| *byte == b'/').chain([&thing.name[..]]);
        let mut parts = parts.filter(|part| !part.is_empty());
        let layer = thing.directory && parts.any(|part| self.unknown.contains(part));
        let layer = layer.then(|| "it is perhaps in a layer of an overlay".to_owned());
        self.lost.get(dev).cloned().or(layer)
    }
}

/// The file system that `path` lies on, and what it is called there.
fn base(own: &Mounts, path: &[u8]) -> Option<(u64, Vec<u8>)> {
    let mount = own.above(path)?;
    let point = mount.point.strip_suffix(b"/").unwrap_or(&mount.point);
    let root = mount.root.strip_suffix(b"/").unwrap_or(&mount.root);
    let base = [root, path.get(point.len()..)?].concat();
    Some((mount.dev, if base.is_empty() { b"/".to_vec() } else { base }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn holder(pid: i32, how: How, access: &str) -> Holder {
        let (shared, bytes, fd) = (None, None, None);
        let details = vec![Detail { how, access: access.into(), shared, bytes, fd }];
        Holder { pid, comm: b"a\x1b".into(), uid: 0, how: BTreeSet::from([how]), details }
    }

    #[test]
    fn what_a_lease_does_not_tell() {
        for (how, access, told) in [
            (How::Map, "rw-", true),
            (How::Fd, "r", true),
            (How::Fd, "path", false),
            (How::Fd, "none", false),
            (How::Cwd, "", false),
        ] {
            let holders = vec![holder(1, How::Map, "r--"), holder(7, how, access)];
            let seen = Use { holders, ..Use::default() };
            assert_eq!(seen.beside_the_lease().is_none(), told, "{how:?} {access}");
        }
    }

    #[test]
    fn the_first_few_and_how_many_more() {
        let holders: Vec<Holder> = (1..6).map(|pid| holder(pid, How::Map, "r--")).collect();
        assert_eq!(in_use_by(&holders[..1]), "in use by a\\x1b[1]");
        assert_eq!(in_use_by(&holders), "in use by a\\x1b[1], a\\x1b[2], a\\x1b[3] +2");
    }

    #[test]
    fn a_path_as_its_file_system_has_it() {
        let mounts = Mounts::parse(
            b"1 0 8:1 / / rw - ext4 /dev/x rw\n2 1 0:5 /app /dev/shm rw - tmpfs tmpfs rw\n",
        );
        let at = |path: &[u8]| base(&mounts, path).map(|(_, base)| base);
        assert_eq!(at(b"/home/x"), Some(b"/home/x".to_vec()));
        assert_eq!(at(b"/"), Some(b"/".to_vec()));
        assert_eq!(at(b"/dev/shm"), Some(b"/app".to_vec()));
        assert_eq!(at(b"/dev/shm/d"), Some(b"/app/d".to_vec()));
    }
}
