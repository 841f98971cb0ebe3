//! What a reaper that was killed left behind: a private directory that nobody has locked.

use std::collections::HashSet;
use std::io;

use super::directories::{self, look_inside};
use super::quarantine::{For, Quarantine, others_may_rename};
use crate::tracker::evidence::lease::{self, LeaseError, c_name};
use crate::tracker::evidence::usage::{self, Usage};
use crate::tracker::host::Host;
use crate::tracker::inventory::posix::{entries, tree_of};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, Stat};

/// What was done with a leftover.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settled {
    /// The directory.
    pub directory: Name,
    /// Objects that somebody uses, that cannot be asked about, or that were never judged: back under
    /// their names.
    pub put_back: Vec<Name>,
    /// Objects that nobody uses: removed, as had been begun.
    pub finished: Vec<Name>,
    /// Objects that stay in the directory, each with the reason.
    pub left: Vec<(Name, String)>,
    /// What went wrong with the directory itself.
    pub trouble: Option<String>,
}

impl Settled {
    /// Nothing was done, as the directory of the objects, called `path`, could not be read.
    #[must_use]
    pub fn unread(path: &std::path::Path, error: &io::Error) -> Self {
        let directory = Name::from(path.as_os_str().to_owned());
        Self { trouble: Some(error.to_string()), ..Self::nothing(&directory) }
    }

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
    /// The objects in it, each with what [`settle`] does with it.
    pub files: Vec<(Name, &'static str)>,
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
        For::Removal => "goes back if somebody uses it, else it is removed",
        For::Unlinked => "is removed unless somebody uses it",
        For::Begun => "is removed, as far as nobody uses what is in it",
        For::Strangers => GOES_BACK,
        For::Building => "is removed: it was never whole",
    }))
}

/// What becomes of what no reap may remove.
const GOES_BACK: &str = "goes back if its name is free, else it stays";

/// How leftovers are settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct How {
    /// The operator asserts that nothing outside this PID namespace uses the mount.
    pub assume_complete: bool,
    /// Whether what was moved away to be removed is, if nobody uses it. Else it goes back, and is an object
    /// like any other.
    pub finish: bool,
}

/// The leftovers that [`settle`] would settle now.
///
/// # Errors
/// The directory of the objects could not be read.
pub fn leftovers(host: &Host, how: How) -> io::Result<Vec<Leftover>> {
    let leftover = |directory: Name| {
        let (purpose, fate) = (For::of(&directory)?, fate(host, &directory).ok()??);
        // What goes wrong here goes wrong again when it is settled, and is said then.
        let quarantine = Quarantine::open(host, &directory).ok()??;
        let files = entries(quarantine.fd()).unwrap_or_default().into_iter().map(|file| {
            let stat = c_name(&file).and_then(|name| sys::stat(quarantine.fd(), &name));
            let goes = stat.is_ok_and(|stat| stat.is_file() || stat.is_dir())
                && !(purpose == For::Removal && (!how.finish || is_younger(&quarantine, &file)));
            (file, if goes { fate } else { GOES_BACK })
        });
        Some(Leftover { files: files.collect(), directory })
    };
    Ok(entries(host.shm())?.into_iter().filter_map(leftover).collect())
}

/// What a dry run says of a leftover.
#[must_use]
pub fn foresee(leftover: &Leftover) -> Settled {
    let Leftover { directory, files } = leftover;
    let left = files.iter().map(|(file, fate)| (file.clone(), (*fate).to_owned())).collect();
    Settled { left, ..Settled::nothing(directory) }
}

/// Settles every leftover of our own: what somebody uses now goes back if its name is free, the rest is
/// finished; what counts as unlinked never goes back, and what was never judged, because it is younger than
/// the private directory or was moved by mistake, is never removed.
/// Directories of other users, of other modes, or that somebody has locked, are not touched.
/// `witness` is told of each object.
///
/// A directory goes back, too, if not everybody can be seen who may use it, but for one that is no longer
/// whole.
///
/// # Errors
/// The directory of the objects could not be read. What goes wrong with one leftover is in its
/// [`Settled::trouble`].
pub fn settle(host: &Host, how: How, witness: &mut dyn Witness) -> io::Result<Vec<Settled>> {
    let not_ours_alone = others_may_rename(host)?;
    let mut all = Vec::new();
    for name in entries(host.shm())? {
        let Some(purpose) = For::of(&name) else { continue };
        let trouble = |text: String| Settled { trouble: Some(text), ..Settled::nothing(&name) };
        all.push(match Quarantine::open(host, &name) {
            Ok(None) => continue,
            Ok(Some(_)) if not_ours_alone => trouble(NOT_OURS_ALONE.into()),
            Ok(Some(quarantine)) => {
                let mut settled = settle_all(host, &quarantine, purpose, how, witness);
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
    how: How,
    witness: &mut dyn Witness,
) -> Settled {
    let mut settled = Settled::nothing(quarantine.name());
    let files = entries(quarantine.fd()).unwrap_or_else(|error| {
        settled.trouble = Some(format!("read it: {error}"));
        Vec::new()
    });
    let mut settling = Settling { host, quarantine, purpose, finish: how.finish, begun: None };
    let usage = settling.usage(&files, how.assume_complete);
    for (index, file) in files.into_iter().enumerate() {
        let how = usage.by.get(index).cloned().flatten();
        match settling.settle_witnessed(&file, how, &usage.blind, witness) {
            Fate::PutBack => settled.put_back.push(file),
            Fate::Finished => settled.finished.push(file),
            Fate::Left(why) => settled.left.push((file, why)),
        }
    }
    if let Some(begun) = settling.begun {
        match begun.close(host) {
            Ok(()) | Err(nix::Error::ENOTEMPTY) => {}
            Err(errno) => settled.trouble = Some(format!("remove the directory: {}", errno.desc())),
        }
    }
    settled
}

/// Whether an object was made when the private directory existed, which is made after everything was
/// judged: so this one never was. One whose birth is not known counts as judged.
fn is_younger(quarantine: &Quarantine, file: &Name) -> bool {
    let born = |stat: io::Result<Stat>| stat.ok().and_then(|stat| stat.born);
    let object = c_name(file).and_then(|name| sys::stat(quarantine.fd(), &name));
    let directory = sys::stat(quarantine.fd(), c"");
    // Births are as coarse as the timer tick: what is as old may be younger.
    born(object).zip(born(directory)).is_some_and(|(object, directory)| object >= directory)
}

/// Settling what is in one quarantine.
struct Settling<'a> {
    host: &'a Host,
    quarantine: &'a Quarantine,
    purpose: For,
    finish: bool,
    /// Where directories are taken apart.
    begun: Option<Quarantine>,
}

impl Settling<'_> {
    /// Who uses what, by one look at all processes.
    fn usage(&self, files: &[Name], assume_complete: bool) -> Usage {
        if files.is_empty() || matches!(self.purpose, For::Strangers | For::Building) {
            return Usage::default();
        }
        let inodes = files.iter().map(|file| {
            let stat = self.stat(file).ok();
            let mut inodes: HashSet<_> = stat.iter().map(|stat| (stat.dev, stat.ino)).collect();
            let identity = stat.filter(Stat::is_dir).map(|stat| Identity::of(&stat));
            let tree = identity
                .and_then(|id| tree_of(self.quarantine.fd(), file, &id, &mut |_, _, _| {}).ok());
            let tree = tree.flatten().map(|(_, tree)| tree.inodes);
            let directory = tree.is_some();
            inodes.extend(tree.unwrap_or_default());
            (inodes, directory)
        });
        let inodes: Vec<_> = inodes.collect();
        let within = self.quarantine.name();
        let things = inodes.iter().map(|(inodes, directory)| usage::Thing {
            inodes,
            directory: *directory,
            within,
        });
        usage::look(self.host, &things.collect::<Vec<_>>(), assume_complete)
    }

    fn stat(&self, file: &Name) -> io::Result<Stat> {
        sys::stat(self.quarantine.fd(), &c_name(file)?)
    }

    fn settle_witnessed(
        &mut self,
        file: &Name,
        how: Option<String>,
        blind: &[&str],
        witness: &mut dyn Witness,
    ) -> Fate {
        let directory = self.quarantine.name();
        let stat = match self.stat(file) {
            Ok(stat) => stat,
            Err(error) => return Fate::Left(format!("statx: {error}")),
        };
        if let Err(why) = witness.before(directory, file, &stat) {
            return Fate::Left(why);
        }
        let fate = self.settle(file, how, blind);
        witness.after(directory, file, &stat, &fate);
        fate
    }

    fn settle(&mut self, file: &Name, how: Option<String>, blind: &[&str]) -> Fate {
        let purpose = match self.purpose {
            // A reaper that died before it could give it back.
            For::Removal if is_younger(self.quarantine, file) => For::Strangers,
            purpose => purpose,
        };
        let finished = match (purpose, how) {
            (For::Strangers, _) => Err("it was moved by mistake".to_owned()),
            (For::Building, _) => self.clear(file).map_err(|error| error.to_string()),
            (For::Removal, _) if !self.finish => Err("it is to be judged anew".to_owned()),
            (_, Some(how)) => Err(how),
            _ => self.finish(file, blind),
        };
        let why = match finished {
            Ok(()) => return Fate::Finished,
            Err(why) if purpose == For::Unlinked => {
                return Fate::Left(format!("{why}, and it counts as unlinked"));
            }
            Err(why) if purpose == For::Begun => {
                return Fate::Left(format!("{why}, and it is no longer whole"));
            }
            Err(why) if purpose == For::Building => return Fate::Left(why),
            Err(why) => why,
        };
        match self.quarantine.put_back(self.host, file) {
            Ok(()) => Fate::PutBack,
            // It must not return when that name is free again one day.
            Err(nix::Error::EEXIST) if purpose == For::Removal => {
                Fate::Left(match self.set_aside(file) {
                    Ok(place) => format!("{why}, its name is taken, and it is in {place} now"),
                    Err(error) => format!("{why}, its name is taken, and moving it: {error}"),
                })
            }
            Err(errno) => Fate::Left(format!("{why}, and cannot go back: {}", errno.desc())),
        }
    }

    /// Removes what nobody was seen to use.
    fn finish(&mut self, file: &Name, blind: &[&str]) -> Result<(), String> {
        let stat = self.stat(file).map_err(|error| error.to_string())?;
        if stat.is_dir() {
            return self.finish_directory(file, &stat, blind);
        }
        self.finish_file(file, &stat).map_err(|error| error.to_string())
    }

    /// Removes what never was whole.
    fn clear(&self, file: &Name) -> io::Result<()> {
        if self.stat(file)?.is_dir() {
            return directories::take_apart(self.quarantine.fd(), file);
        }
        Ok(self.quarantine.unlink(file)?)
    }

    fn finish_file(&self, file: &Name, stat: &Stat) -> Result<(), LeaseError> {
        let leased = lease::take(self.host, self.quarantine.fd(), file, &Identity::of(stat))?;
        if !leased.is_whole() {
            return Err(LeaseError::Held);
        }
        self.quarantine.unlink(file).map_err(io::Error::from)?;
        Ok(())
    }

    fn finish_directory(&mut self, file: &Name, stat: &Stat, blind: &[&str]) -> Result<(), String> {
        let says = |error: io::Error| error.to_string();
        if self.purpose != For::Begun && !blind.is_empty() {
            return Err(format!("not everybody can be seen who may use it: {}", blind.join("; ")));
        }
        let inside = look_inside(self.host, self.quarantine.fd(), file, &Identity::of(stat));
        let inside = inside.map_err(says)?.ok_or("it was replaced")?;
        if let Some(held) = inside.held {
            return Err(format!("somebody has {held} in it open or mapped"));
        }
        if inside.is_truncated() && self.purpose != For::Begun {
            return Err(directories::TOO_LARGE.into());
        }
        if self.purpose == For::Begun {
            return directories::take_apart(self.quarantine.fd(), file).map_err(says);
        }
        if self.begun.is_none() {
            self.begun = Some(Quarantine::make(self.host, For::Begun).map_err(says)?);
        }
        let Some(begun) = &self.begun else { return Err("no private directory".into()) };
        begun.take_in(self.quarantine.fd(), file).map_err(|errno| says(errno.into()))?;
        directories::take_apart(begun.fd(), file).map_err(says)
    }

    /// Moves an object to where it counts as unlinked; the directory's name.
    fn set_aside(&self, file: &Name) -> io::Result<Name> {
        let unlinked = Quarantine::make(self.host, For::Unlinked)?;
        match unlinked.take_in(self.quarantine.fd(), file) {
            Ok(()) => Ok(unlinked.name().clone()),
            Err(errno) => {
                // Empty, and no use to anybody.
                unlinked.close(self.host).unwrap_or(());
                Err(errno.into())
            }
        }
    }
}
