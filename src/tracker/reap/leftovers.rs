//! What a reaper that was killed left behind: a private directory that nobody has locked.

use std::io;

use super::quarantine::{
    For, Quarantine, anybody_may_rename, counts_as_unlinked, is_of_strangers, is_quarantine_name,
};
use crate::tracker::evidence::lease::{self, LeaseError, c_name};
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::entries;
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys;

/// What was done with a leftover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// The directory.
    pub directory: Option<Name>,
    /// Objects that somebody holds, or that cannot be asked about: back under their names.
    pub put_back: Vec<Name>,
    /// Objects that nobody holds: removed, as had been begun.
    pub finished: Vec<Name>,
    /// Objects that stay in the directory, each with the reason.
    pub left: Vec<(Name, String)>,
    /// What went wrong with the directory itself.
    pub trouble: Option<String>,
}

/// A directory of our own that an interrupted reap left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name.
    pub directory: Name,
    /// The objects in it.
    pub files: Vec<Name>,
}

/// The leftovers that [`settle`] would settle now.
///
/// # Errors
/// The directory of the objects could not be read.
pub fn leftovers(host: &Host) -> io::Result<Vec<Leftover>> {
    let names = entries(host.shm())?.into_iter().filter(is_quarantine_name);
    Ok(names
        .filter_map(|directory| {
            // What goes wrong here goes wrong again when it is settled, and is said then.
            let quarantine = Quarantine::open(host, &directory).ok()??;
            let files = entries(quarantine.fd()).unwrap_or_default();
            Some(Leftover { directory, files })
        })
        .collect())
}

/// What a dry run says of a leftover.
#[must_use]
pub fn foresee(leftover: &Leftover) -> Settled {
    let says = "goes back if somebody holds it, else it is removed";
    let left = leftover.files.iter().map(|file| (file.clone(), says.to_owned())).collect();
    Settled { directory: Some(leftover.directory.clone()), left, ..Settled::default() }
}

/// Settles every leftover of our own: what is held now goes back if its name is free, the rest is
/// finished. Directories of other users, of other modes, or that somebody has locked, are not
/// touched.
///
/// # Errors
/// The directory of the objects could not be read. What goes wrong with one leftover is in its
/// [`Settled::trouble`].
pub fn settle(host: &Host) -> io::Result<Vec<Settled>> {
    let mut all = Vec::new();
    for name in entries(host.shm())? {
        if !is_quarantine_name(&name) {
            continue;
        }
        let settled = match Quarantine::open(host, &name) {
            Ok(None) => continue,
            Ok(Some(quarantine)) => {
                let mut settled = if anybody_may_rename(host)? {
                    let why = "everybody may rename what is in /dev/shm, which has no sticky bit: \
                               nothing shows that a reap left this directory";
                    Settled { trouble: Some(why.into()), ..Settled::default() }
                } else if is_of_strangers(&name) {
                    give_back(host, &quarantine)
                } else if counts_as_unlinked(&name) {
                    finish_unlinked(host, &quarantine)
                } else {
                    settle_one(host, &quarantine)
                };
                match quarantine.close(host) {
                    // Not empty: what is left in it is in the report.
                    Ok(()) | Err(nix::Error::ENOTEMPTY) => {}
                    Err(errno) => settled.trouble = Some(format!("remove it: {}", errno.desc())),
                }
                settled
            }
            Err(error) => Settled { trouble: Some(error.to_string()), ..Settled::default() },
        };
        all.push(Settled { directory: Some(name), ..settled });
    }
    Ok(all)
}

fn settle_one(host: &Host, quarantine: &Quarantine) -> Settled {
    let mut settled = Settled::default();
    let files = entries(quarantine.fd()).unwrap_or_else(|error| {
        settled.trouble = Some(format!("read it: {error}"));
        Vec::new()
    });
    for file in files {
        match finish(host, quarantine, &file) {
            Ok(()) => settled.finished.push(file),
            Err(why) => match quarantine.put_back(host, &file) {
                Ok(()) => settled.put_back.push(file),
                // It must not return when that name is free again one day.
                Err(nix::Error::EEXIST) => {
                    let why = match set_aside(host, quarantine, &file) {
                        Ok(place) => format!("{why}, its name is taken, and it is in {place} now"),
                        Err(error) => format!("{why}, its name is taken, and moving it: {error}"),
                    };
                    settled.left.push((file, why));
                }
                Err(errno) => settled.left.push((file, io::Error::from(errno).to_string())),
            },
        }
    }
    settled
}

/// Gives what was moved by mistake its name back, if that is free; nothing of it is removed.
fn give_back(host: &Host, quarantine: &Quarantine) -> Settled {
    let mut settled = Settled::default();
    let files = entries(quarantine.fd()).unwrap_or_else(|error| {
        settled.trouble = Some(format!("read it: {error}"));
        Vec::new()
    });
    for file in files {
        match quarantine.put_back(host, &file) {
            Ok(()) => settled.put_back.push(file),
            Err(errno) => {
                let why = format!("moved by mistake, and its name is taken: {}", errno.desc());
                settled.left.push((file, why));
            }
        }
    }
    settled
}

/// Moves an object to where it counts as unlinked; the directory's name.
///
/// # Errors
/// The errno of making that directory or of the move.
pub(super) fn set_aside(host: &Host, quarantine: &Quarantine, file: &Name) -> io::Result<Name> {
    let unlinked = Quarantine::make(host, For::Unlinked)?;
    match unlinked.take_in(quarantine.fd(), file) {
        Ok(()) => Ok(unlinked.name().clone()),
        Err(errno) => {
            // Empty, and no use to anybody.
            unlinked.close(host).unwrap_or(());
            Err(errno.into())
        }
    }
}

/// Removes what counts as unlinked and nobody holds; the rest stays, and never returns.
pub(super) fn finish_unlinked(host: &Host, quarantine: &Quarantine) -> Settled {
    let mut settled = Settled::default();
    let files = entries(quarantine.fd()).unwrap_or_else(|error| {
        settled.trouble = Some(format!("read it: {error}"));
        Vec::new()
    });
    for file in files {
        match finish(host, quarantine, &file) {
            Ok(()) => settled.finished.push(file),
            Err(why) => settled.left.push((file, format!("{why}, and it counts as unlinked"))),
        }
    }
    settled
}

/// Removes an object of the quarantine if nobody holds it.
fn finish(host: &Host, quarantine: &Quarantine, file: &Name) -> Result<(), LeaseError> {
    let stat = sys::stat(quarantine.fd(), &c_name(file)?)?;
    let leased = lease::take(host, quarantine.fd(), file, &Identity::of(&stat))?;
    if !leased.is_whole() {
        return Err(LeaseError::Held);
    }
    quarantine.unlink(file).map_err(io::Error::from)?;
    Ok(())
}
