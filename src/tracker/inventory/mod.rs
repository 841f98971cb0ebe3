//! What exists. The objects are read before any process is looked at: what is created later cannot
//! be judged by a list of processes that is older than it.

pub mod mqueue;
mod object;
pub mod posix;
pub mod sysv;

pub use object::{Key, Object, SEMAPHORE_SIZE, Semaphore, Tree};

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::evidence::lease::Patience;
use super::resource::Name;
use super::world::{Root, World};

/// What exists in all the places that were looked at.
#[derive(Debug, Default)]
pub struct Inventory {
    /// What could be looked at.
    pub objects: Vec<Object>,
    /// What could not, by its name, each with the reason.
    pub troubles: Vec<(String, io::Error)>,
    /// Device and inode of everything that has a name in /dev/shm, or in a directory there, in their order.
    pub named: Arc<[(u64, u64)]>,
}

/// Why there is no inventory.
#[derive(Debug, thiserror::Error)]
#[error("read {path}")]
pub struct InventoryError {
    /// The directory that could not be read.
    pub path: PathBuf,
    /// The errno.
    pub source: io::Error,
}

/// Reads what exists in every place of `world`.
///
/// # Errors
/// Our own /dev/shm could not be read. Another place that cannot be is one of the troubles.
pub fn read(world: &World) -> Result<Inventory, InventoryError> {
    let mut inventory = Inventory::default();
    let mut patience = Patience::new(mqueue::COURTESY);
    for (index, place) in world.places.iter().enumerate().filter(|(_, place)| place.wanted) {
        let read = match &place.root {
            Root::Own => posix::read(&world.host, index, &mut inventory),
            Root::Shm(host) => posix::read(host, index, &mut inventory),
            Root::Queues(queues) => {
                mqueue::read(&world.host, queues, index, &mut patience, &mut inventory)
            }
            Root::Ipc(ipc) => sysv::read(&world.host, ipc, index, &mut inventory),
        };
        match read {
            Ok(()) => {}
            Err(source) if index == 0 => {
                return Err(InventoryError { path: place.path(world), source });
            }
            Err(error) => inventory.troubles.push((place.path(world).display().to_string(), error)),
        }
    }
    let inside = inventory.objects.iter().filter_map(|object| object.directory.as_ref());
    let inside = inside.flat_map(|tree| tree.inodes.iter().copied());
    let own = inventory.objects.iter().map(|object| (object.stat.dev, object.stat.ino));
    let mut named: Vec<(u64, u64)> = own.chain(inside).collect();
    named.sort_unstable();
    inventory.named = named.into();
    Ok(inventory)
}

/// Reads what is called `file` in a place.
///
/// # Errors
/// The errno of looking at it; `ENOENT` when there is no such name.
pub fn read_one(world: &World, place: usize, file: &Name) -> io::Result<Object> {
    match world.queues(place) {
        Some(queues) => mqueue::read_one(&world.host, queues, place, file),
        None => posix::read_one(world.host_of(place), place, file),
    }
}
