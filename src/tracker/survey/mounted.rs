//! Which objects are mounted somewhere, lie under a mount, or are a layer of an overlay.

use std::collections::HashMap;

use crate::tracker::evidence::holders::{Scan, Targets};
use crate::tracker::inventory::Object;
use crate::tracker::sys;
use crate::tracker::world::World;

/// So many mounts of one object are told of: any user can make a hundred thousand.
const MOST_USES: usize = 16;

/// A name in a place.
type Named = (usize, Vec<u8>);

/// What of the objects is mounted, or may be.
#[derive(Debug, Default)]
pub(super) struct Mounted {
    /// Objects that are mounted, or under a mount, with what is seen of it.
    uses: HashMap<Named, Vec<String>>,
    /// By device, where something of it is mounted that could not be looked at.
    lost: HashMap<u64, Vec<String>>,
}

impl Mounted {
    /// What `scan` showed of `objects`.
    pub(super) fn new(world: &World, objects: &[Object], targets: &Targets, scan: &Scan) -> Self {
        Self { uses: uses(world, objects, targets, scan), lost: lost(scan) }
    }

    /// Mounts that the object is part of.
    pub(super) fn of(&self, object: &Object) -> Vec<String> {
        self.uses.get(&(object.place, object.file.as_bytes().to_vec())).cloned().unwrap_or_default()
    }

    /// Mounts and layers that nobody can look at, and that the object may be part of.
    pub(super) fn perhaps(&self, object: &Object, scan: &Scan) -> Vec<String> {
        let lost = self.lost.get(&object.stat.dev).into_iter().flatten().cloned();
        let name = object.file.as_bytes();
        let layer = object.directory.is_some()
            && scan.namespaces.iter().any(|namespace| namespace.may_be_layer(name));
        let layer = layer.then(|| "perhaps a layer of an overlay that cannot be looked at".into());
        lost.take(MOST_USES).chain(layer).collect()
    }
}

/// Where something is mounted that could not be looked at, by device: there are far more objects than
/// such mounts.
fn lost(scan: &Scan) -> HashMap<u64, Vec<String>> {
    let mut lost: HashMap<u64, Vec<String>> = HashMap::new();
    for (dev, says) in scan.namespaces.iter().flat_map(|namespace| &namespace.lost) {
        let known = lost.entry(*dev).or_default();
        if known.len() < MOST_USES {
            known.push(says.clone());
        }
    }
    lost
}

/// The objects that are mounted somewhere, under a mount, or a layer of an overlay.
fn uses(
    world: &World,
    objects: &[Object],
    targets: &Targets,
    scan: &Scan,
) -> HashMap<Named, Vec<String>> {
    let mut uses: HashMap<Named, Vec<String>> = HashMap::new();
    let mut note = |place: usize, name: &[u8], says: String| {
        let known = uses.entry((place, name.to_vec())).or_default();
        if known.len() < MOST_USES && !known.contains(&says) {
            known.push(says);
        }
    };
    let places =
        (0..world.places.len()).filter_map(|place| Some((place, world.device_of(place).ok()?)));
    let places: Vec<(usize, u64)> = places.collect();
    for (place, dev) in &places {
        let base = world.shm(*place).map_or(&b"/"[..], |host| scan.base(host, *dev));
        let namespaces = scan.namespaces.iter().filter(|view| view.places.contains(dev));
        let namespaces = namespaces.map(|namespace| &namespace.mounts);
        for mounts in namespaces.chain([&scan.own_mounts]) {
            for (name, says) in mounts.uses_of(*dev, base) {
                note(*place, &name, says);
            }
        }
    }
    let named = |inode| targets.at(inode).iter().filter_map(|index| objects.get(*index));
    for (inode, says) in scan.namespaces.iter().flat_map(|namespace| &namespace.mounted) {
        for object in named(*inode) {
            note(object.place, object.file.as_bytes(), says.clone());
        }
    }
    // Unlike a file, a directory in a layer is not open for the kernel's answer to tell of.
    let directories = || objects.iter().filter(|object| object.directory.is_some());
    let whole = places.iter().filter_map(|(place, _)| {
        sys::stat(world.directory_of(*place), c"").ok().map(|stat| (*place, (stat.dev, stat.ino)))
    });
    let whole: Vec<(usize, (u64, u64))> = whole.collect();
    for namespace in scan.namespaces.iter().filter(|namespace| !namespace.layers.is_empty()) {
        for object in namespace.layers.iter().flat_map(|inode| named(*inode)) {
            note(object.place, object.file.as_bytes(), "a layer of an overlay".into());
        }
        for (place, _) in whole.iter().filter(|(_, inode)| namespace.layers.contains(inode)) {
            for object in directories().filter(|object| object.place == *place) {
                note(*place, object.file.as_bytes(), "in a layer of an overlay".into());
            }
        }
    }
    uses
}
