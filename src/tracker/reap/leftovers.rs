//! What a reaper that was killed left behind: a private directory that nobody has locked.

use std::io;

use super::quarantine::{For, Quarantine, others_may_rename};
use crate::tracker::evidence::lease::{self, LeaseError, c_name};
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::entries;
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, Stat};

/// What was done with a leftover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The directory.
    pub directory: Name,
    /// Objects that somebody holds, that cannot be asked about, or that were never judged: back under
    /// their names.
    pub put_back: Vec<Name>,
    /// Objects that nobody holds: removed, as had been begun.
    pub finished: Vec<Name>,
    /// Objects that stay in the directory, each with the reason.
    pub left: Vec<(Name, String)>,
    /// What went wrong with the directory itself.
    pub trouble: Option<String>,
}

impl Settled {
    fn nothing(directory: &Name) -> Self {
        let directory = directory.clone();
        Self {
            directory,
            put_back: Vec::new(),
            finished: Vec::new(),
            left: Vec::new(),
            trouble: None,
        }
    }
}

/// A directory of our own that an interrupted reap left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// Its name.
    pub directory: Name,
    /// The objects in it.
    pub files: Vec<Name>,
    /// What [`settle`] does with each of them.
    pub fate: &'static str,
}

/// What became of an object that an interrupted reap left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It is back under its name.
    PutBack,
    /// It is removed.
    Finished,
    /// It stays in the directory: why.
    Left(String),
}

/// Who is told of each object in a leftover.
pub trait Witness {
    /// Before it is touched, with the name of the directory; never under a lease.
    ///
    /// # Errors
    /// Why it must stay as it is.
    fn before(&mut self, directory: &Name, file: &Name, stat: &Stat) -> Result<(), String>;

    /// When it is known what became of it.
    fn after(&mut self, directory: &Name, file: &Name, stat: &Stat, fate: &Fate);
}

/// Why nothing is settled where others may have given a directory of ours its name.
const NOT_OURS_ALONE: &str = "others may rename what is in /dev/shm, because it has no sticky bit or \
                              is somebody else's: nothing shows that a reap left this directory";

/// What [`settle`] does with each object in a directory of this name, if that is a quarantine's.
///
/// # Errors
/// The errno of statx(2).
pub fn fate(host: &Host, directory: &Name) -> io::Result<Option<&'static str>> {
    let not_ours_alone = others_may_rename(host)?;
    Ok(For::of(directory).map(|purpose| match purpose {
        _ if not_ours_alone => "stays",
        For::Removal => "goes back if somebody holds it, else it is removed",
        For::Unlinked => "is removed unless somebody holds it",
        For::Strangers => "goes back if its name is free, else it stays",
    }))
}

/// The leftovers that [`settle`] would settle now.
///
/// # Errors
/// The directory of the objects could not be read.
pub fn leftovers(host: &Host) -> io::Result<Vec<Leftover>> {
    let leftover = |directory: Name| {
        let fate = fate(host, &directory).ok()??;
        // What goes wrong here goes wrong again when it is settled, and is said then.
        let quarantine = Quarantine::open(host, &directory).ok()??;
        let files = entries(quarantine.fd()).unwrap_or_default();
        Some(Leftover { directory, files, fate })
    };
    Ok(entries(host.shm())?.into_iter().filter_map(leftover).collect())
}

/// What a dry run says of a leftover.
#[must_use]
pub fn foresee(leftover: &Leftover) -> Settled {
    let Leftover { directory, files, fate } = leftover;
    let left = files.iter().map(|file| (file.clone(), (*fate).to_owned())).collect();
    Settled { left, ..Settled::nothing(directory) }
}

/// Settles every leftover of our own: what is held now goes back if its name is free, the rest is
/// finished; what counts as unlinked never goes back, and what was never judged is never removed.
/// Directories of other users, of other modes, or that somebody has locked, are not touched.
/// `witness` is told of each object.
///
/// # Errors
/// The directory of the objects could not be read. What goes wrong with one leftover is in its
/// [`Settled::trouble`].
pub fn settle(host: &Host, witness: &mut dyn Witness) -> io::Result<Vec<Settled>> {
    let not_ours_alone = others_may_rename(host)?;
    let mut all = Vec::new();
    for name in entries(host.shm())? {
        let Some(purpose) = For::of(&name) else { continue };
        let trouble = |text: String| Settled { trouble: Some(text), ..Settled::nothing(&name) };
        all.push(match Quarantine::open(host, &name) {
            Ok(None) => continue,
            Ok(Some(_)) if not_ours_alone => trouble(NOT_OURS_ALONE.into()),
            Ok(Some(quarantine)) => {
                let mut settled = settle_all(host, &quarantine, purpose, witness);
                match quarantine.close(host) {
                    // Not empty: what is left in it is in the report.
                    Ok(()) | Err(nix::Error::ENOTEMPTY) => {}
                    Err(errno) => settled.trouble = Some(format!("remove it: {}", errno.desc())),
                }
                settled
            }
            Err(error) => trouble(error.to_string()),
        });
    }
    Ok(all)
}

/// Settles everything in a quarantine.
pub(super) fn settle_all(
    host: &Host,
    quarantine: &Quarantine,
    purpose: For,
    witness: &mut dyn Witness,
) -> Settled {
    let mut settled = Settled::nothing(quarantine.name());
    let files = entries(quarantine.fd()).unwrap_or_else(|error| {
        settled.trouble = Some(format!("read it: {error}"));
        Vec::new()
    });
    for file in files {
        match settle_witnessed(host, quarantine, purpose, &file, witness) {
            Fate::PutBack => settled.put_back.push(file),
            Fate::Finished => settled.finished.push(file),
            Fate::Left(why) => settled.left.push((file, why)),
        }
    }
    settled
}

fn settle_witnessed(
    host: &Host,
    quarantine: &Quarantine,
    purpose: For,
    file: &Name,
    witness: &mut dyn Witness,
) -> Fate {
    let directory = quarantine.name();
    let stat = match c_name(file).and_then(|name| sys::stat(quarantine.fd(), &name)) {
        Ok(stat) => stat,
        Err(error) => return Fate::Left(format!("statx: {error}")),
    };
    if let Err(why) = witness.before(directory, file, &stat) {
        return Fate::Left(why);
    }
    let fate = settle_one(host, quarantine, purpose, file);
    witness.after(directory, file, &stat, &fate);
    fate
}

fn settle_one(host: &Host, quarantine: &Quarantine, purpose: For, file: &Name) -> Fate {
    let finished = match purpose {
        For::Strangers => Err("it was moved by mistake".to_owned()),
        For::Removal | For::Unlinked => {
            finish(host, quarantine, file).map_err(|error| error.to_string())
        }
    };
    let why = match finished {
        Ok(()) => return Fate::Finished,
        Err(why) if purpose == For::Unlinked => {
            return Fate::Left(format!("{why}, and it counts as unlinked"));
        }
        Err(why) => why,
    };
    match quarantine.put_back(host, file) {
        Ok(()) => Fate::PutBack,
        // It must not return when that name is free again one day.
        Err(nix::Error::EEXIST) if purpose == For::Removal => {
            Fate::Left(match set_aside(host, quarantine, file) {
                Ok(place) => format!("{why}, its name is taken, and it is in {place} now"),
                Err(error) => format!("{why}, its name is taken, and moving it: {error}"),
            })
        }
        Err(errno) => Fate::Left(format!("{why}, and cannot go back: {}", errno.desc())),
    }
}

/// Moves an object to where it counts as unlinked; the directory's name.
///
/// # Errors
/// The errno of making that directory or of the move.
fn set_aside(host: &Host, quarantine: &Quarantine, file: &Name) -> io::Result<Name> {
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
