//! Who uses what has lost its name: a look at all processes and mounts for a few inodes, in whatever
//! private directory they lie.

use std::collections::HashSet;
use std::sync::Arc;

use super::holders::{self, Holder, KEEPS_UNSEEN, Scan, Search, Targets};
use super::processes::Processes;
use super::sight::Sight;
use crate::tracker::host::Host;
use crate::tracker::resource::{Name, escape};
use crate::tracker::sys;

/// What one look showed.
#[derive(Debug, Default)]
pub struct Usage {
    /// Of each thing that was asked about: how it is in use, if it was seen to be.
    pub by: Vec<Option<String>>,
    /// Why not everything was seen; empty when it was.
    pub blind: Vec<&'static str>,
}

/// What is asked about.
#[derive(Debug)]
pub struct Thing<'a> {
    /// Device and inode of it and, if it is a directory, of everything in it.
    pub inodes: &'a HashSet<(u64, u64)>,
    /// Whether it is a directory.
    pub directory: bool,
    /// The private directory that it lies in.
    pub within: &'a Name,
}

/// Looks who uses each of `things`. With `assume_complete` the operator asserts that nothing outside this
/// PID namespace does.
#[must_use]
pub fn look(host: &Host, things: &[Thing<'_>], assume_complete: bool) -> Usage {
    let mut targets = Targets::default();
    let dev = host.shm_dev().unwrap_or(0);
    targets.places.insert(dev);
    for (index, thing) in things.iter().enumerate() {
        for inode in thing.inodes {
            targets.add(*inode, index);
        }
    }
    let targets = Arc::new(targets);
    let mut processes = Processes::read(&host.proc, &HashSet::new());
    let scan = holders::scan(host, &mut processes, &targets, &Search::deep());
    let (idmapped, unreadable) = (scan.maps_owners_of(&targets.places), scan.unreadable.len());
    let sight =
        Sight::new(&host.proc, &scan.own_mounts, idmapped, &processes, unreadable, assume_complete);
    let by = things.iter().enumerate().map(|(index, thing)| {
        let held = scan.holders.get(&index).and_then(|holders| holders.first()).map(open_in);
        held.or_else(|| mounted(host, thing, dev, &scan))
    });
    let by = by.collect();
    let mut blind: Vec<&'static str> = sight.holders.iter().map(|blind| blind.says()).collect();
    blind.extend(scan.keeps_unseen.then_some(KEEPS_UNSEEN));
    Usage { by, blind }
}

fn open_in(holder: &Holder) -> String {
    format!("in use by {}[{}]", escape(&holder.comm), holder.pid)
}

/// How a thing is part of a mount, or may be.
fn mounted(host: &Host, thing: &Thing<'_>, dev: u64, scan: &Scan) -> Option<String> {
    let base = scan.base(host, dev);
    let all = sys::stat(host.shm(), c"").ok().map(|stat| (stat.dev, stat.ino));
    let within = thing.within.as_bytes();
    scan.namespaces.iter().find_map(|namespace| {
        // A name tells of all that lies in that directory.
        let uses = namespace.mounts.uses_of(dev, base);
        let mut uses = uses.into_iter().filter(|(name, _)| name == within);
        let mut mounts = namespace.mounted.iter().filter(|(inode, _)| thing.inodes.contains(inode));
        let layer = thing.directory
            && namespace
                .layers
                .iter()
                .any(|layer| thing.inodes.contains(layer) || all.is_some_and(|all| all == *layer));
        uses.next()
            .map(|(_, says)| says)
            .or_else(|| mounts.next().map(|(_, says)| says.clone()))
            .or_else(|| namespace.lost.first().map(|(_, says)| says.clone()))
            .or_else(|| layer.then(|| "a layer of an overlay".to_owned()))
    })
}
