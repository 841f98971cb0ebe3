//! The file of a journal: what it may be, whose it is, and one write for each batch.

use std::fs::File;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, Read as _, Seek as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::unistd::{fsync, ftruncate};

use super::format::{Batch, FormatError, HEADER, Header, decode_header, encode_header};
use super::place::Place;
use super::replay::{Damage, Recovered, condense, replay};
use crate::tracker::resource::escape;

/// Up to so many bytes a journal is left as it is.
const SMALL: u64 = 1 << 20;

/// It is written anew when it has more than so many times what is registered needs.
/// Twice, and not more: all of it is in memory while that is done, and everybody waits.
const SPARSE: u64 = 2;

/// So long it is believed that the file still has its name.
const LOOK: Duration = Duration::from_secs(1);

/// Why there is no journal, or something is not in it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another daemon that lives has it.
    #[error("journal {}: another daemon has it", show(.path))]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It cannot be read, and was not touched.
    #[error("journal {}: {reason}", show(.path))]
    Format {
        /// The file.
        path: PathBuf,
        /// Why not; [`FormatError::Newer`] has both versions.
        reason: FormatError,
    },
    /// It is nothing that registrations are entrusted to, and was not touched.
    #[error("journal {}: {reason}", show(.path))]
    Untrusted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Something else has its name now: somebody has moved it away while it was in use.
    #[error("journal {}: its name belongs to another file now, or to none", show(.path))]
    Moved {
        /// The file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("journal {}: {operation}", show(.path))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was done.
        operation: &'static str,
        /// The errno.
        source: io::Error,
    },
}

fn show(path: &Path) -> String {
    escape(path.as_os_str().as_bytes())
}

impl JournalError {
    /// The errno, for a report: that of the call which failed, `EWOULDBLOCK` of a journal that is in use,
    /// else 0.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::InUse { .. } => libc::EWOULDBLOCK,
            Self::Format { .. } | Self::Untrusted { .. } | Self::Moved { .. } => 0,
        }
    }

    /// Whether a file was to become longer than there is room for: then [`Journal::make_room`] may help.
    #[must_use]
    pub fn lacks_room(&self) -> bool {
        matches!(self.errno(), libc::ENOSPC | libc::EDQUOT | libc::EFBIG)
    }
}

/// What writing a journal anew has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compacted {
    /// Bytes before.
    pub before: u64,
    /// Bytes after.
    pub after: u64,
    /// What could not be read of the old one. What was registered before that and not again is doubtful from now on,
    /// and what it would have said is not in the new one: whoever knows what is registered has to append it again.
    pub damage: Damage,
}

/// The journal of a daemon: open for appending and locked (flock(2)) until this is dropped, or the process
/// ends however it ends. A process forked without exec(2) keeps the lock as well.
///
/// Nothing that is appended is forced to the disk: see [`journal`](super).
#[derive(Debug)]
pub struct Journal {
    place: Place,
    file: File,
    header: Header,
    seed: u32,
    /// Bytes that are whole.
    end: u64,
    /// There may be more than those, of a batch that was not written to its end.
    torn: bool,
    /// Beyond so many bytes it may have become sparse.
    due: u64,
    /// When it was last seen whether it still has its name, and whether it has not.
    looked: Option<Instant>,
    nameless: bool,
}

impl Journal {
    /// Opens the journal at `path`, or makes one of mode 0600, and answers with what is in it if it was
    /// there before. `header` is this process and this boot, with the time of the clock. Where its boot is
    /// not that of the journal, all entries are [`earlier`](super::replay::Entry::earlier). Then, and where the
    /// journal is damaged, it is written anew before this returns, so that what is appended can be read
    /// whatever is before it.
    ///
    /// The directory has to be there. A file is looked at before it is opened: it has to be a regular file with one
    /// name, of the effective user or root, and nobody else may write to it. A write that was interrupted
    /// is cut off.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, header: Header) -> Result<(Self, Option<Recovered>), JournalError> {
        let place = Place::of(path)?;
        let file = place.lock()?;
        let mut journal = Self {
            place,
            file,
            header,
            seed: 0,
            end: 0,
            torn: false,
            due: SMALL,
            looked: None,
            nameless: false,
        };
        let bytes = journal.read()?;
        let mut recovered = match replay(&bytes) {
            Ok(recovered) => recovered,
            Err(FormatError::Unfinished) => {
                journal.begin()?;
                return Ok((journal, None));
            }
            Err(reason) => return Err(journal.place.format(reason)),
        };
        journal.seed = decode_header(&bytes).map_or(0, |(_, seed)| seed);
        journal.end = recovered.end;
        journal.torn = recovered.torn > 0;
        drop(bytes);
        let same_boot = journal.header.same_boot(&recovered.header);
        if !same_boot {
            recovered.age();
        }
        let anew = recovered.rewritten(&journal.header, journal.seed);
        if same_boot && !recovered.is_damaged() {
            journal.mend()?;
            journal.due = SMALL.max(SPARSE.saturating_mul(anew.len() as u64));
            // A predecessor that had no room for it may have left more than is due. Without it everything is there as well.
            if journal.end > journal.due && journal.replace(&anew).is_err() {
                journal.due = journal.end.saturating_add(journal.end / 2);
            }
        } else {
            journal.replace(&anew)?;
        }
        Ok((journal, Some(recovered)))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Bytes that are in it, those of the header included.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.end
    }

    /// An empty batch for this journal; it can be used as long as the journal, also after it is written anew.
    #[must_use]
    pub fn batch(&self) -> Batch {
        Batch::new(self.seed)
    }

    /// Appends all records of `batch` by one write(2), and empties it. What an earlier failure has left of
    /// others is cut off first.
    ///
    /// # Errors
    /// [`JournalError::Io`] with the errno: the batch still has its records, and nothing of it counts, unless
    /// what was written of it could not be cut off at once and the process is killed before the next try.
    /// `EINVAL`: it is a batch of another journal.
    pub fn append(&mut self, batch: &mut Batch) -> Result<(), JournalError> {
        self.append_by(batch, |file, bytes| nix::unistd::write(file, bytes))
    }

    /// The same, with a write(2) of the caller's.
    pub(super) fn append_by(
        &mut self,
        batch: &mut Batch,
        mut write: impl FnMut(&File, &[u8]) -> nix::Result<usize>,
    ) -> Result<(), JournalError> {
        if batch.seed() != self.seed {
            return Err(self.place.io("append a batch of another journal", Errno::EINVAL));
        }
        self.mend()?;
        let mut rest = batch.as_bytes();
        while !rest.is_empty() {
            // What follows a short write goes on with the rest, or says why it was short.
            let failure = match write(&self.file, rest) {
                Ok(0) => Errno::EIO,
                Ok(written) => {
                    self.torn = true;
                    rest = rest.get(written..).unwrap_or_default();
                    continue;
                }
                Err(Errno::EINTR) => continue,
                Err(errno) => errno,
            };
            let error = self.place.io("write", failure);
            // Now, for the sake of others who need the room; if it fails, before the next batch.
            self.mend().ok();
            return Err(error);
        }
        self.torn = false;
        self.end += batch.len() as u64;
        batch.clear();
        Ok(())
    }

    /// Writes the journal anew if it has more than 1 MiB and more than about twice of what is registered
    /// needs; else this costs nothing, or now and then one reading of the file. Nothing: it is as it was.
    ///
    /// # Errors
    /// As [`Journal::compact`]. It is tried again when the journal has become half as large again.
    pub fn compact_if_due(&mut self) -> Result<Option<Compacted>, JournalError> {
        if self.end <= self.due {
            return Ok(None);
        }
        // So that neither a failure nor a journal that is just not sparse enough is paid for with each batch.
        self.due = self.end.saturating_add(self.end / 2);
        let (damage, bytes) = self.condensed_with(&[])?;
        if self.end <= SPARSE.saturating_mul(bytes.len() as u64) {
            return Ok(None);
        }
        self.switch(damage, &bytes).map(Some)
    }

    /// Writes the journal anew, with what is registered only: into a file beside it, which is forced to
    /// the disk and then takes its name. A crash leaves the old one or the new one. Whoever waits
    /// for the lock of the old one finds that it has no name any more.
    ///
    /// # Errors
    /// [`JournalError`]. The old one goes on, or, if only the directory could not be forced to the disk,
    /// the new one; [`Journal::append`] works as before.
    pub fn compact(&mut self) -> Result<Compacted, JournalError> {
        let (damage, bytes) = self.condensed_with(&[])?;
        self.switch(damage, &bytes)
    }

    /// Writes down `batch` and empties it where [`Journal::append`] has no room for it, by writing the journal anew, with
    /// what is registered only by all of both: into a file beside it, as [`Journal::compact`] does; or, where there is
    /// no room for that one either, over what is there, if it is no longer than that. A `kill -9` in that moment
    /// loses what is not written again yet.
    ///
    /// # Errors
    /// [`JournalError`]: the batch and the journal say the same together as before.
    pub fn make_room(&mut self, batch: &mut Batch) -> Result<Compacted, JournalError> {
        if batch.seed() != self.seed {
            return Err(self.place.io("append a batch of another journal", Errno::EINVAL));
        }
        // Not the file by itself: what the batch takes back is in it, and what it registers is not.
        let (damage, bytes) = self.condensed_with(batch.as_bytes())?;
        match self.switch(damage, &bytes) {
            Err(error) if error.lacks_room() && bytes.len() as u64 <= self.end => {}
            switched => return switched.inspect(|_| batch.clear()),
        }
        let before = self.end;
        let header = i64::try_from(HEADER).unwrap_or(i64::MAX);
        ftruncate(&self.file, header).map_err(|errno| self.place.io("truncate", errno))?;
        self.end = HEADER as u64;
        // The header is of this boot and this seed, or it would have been replaced when it was opened.
        batch.refill(bytes.get(HEADER..).unwrap_or_default());
        self.append(batch)?;
        self.due = SMALL.max(self.end.saturating_mul(SPARSE));
        Ok(Compacted { before, after: self.end, damage })
    }

    /// Looks, now and then, whether the file still has its name: nobody would find what is written into one that was moved
    /// away or removed. If nothing has the name, what is registered is written into a new file of that name, and this is
    /// what it answers.
    ///
    /// # Errors
    /// [`JournalError`], [`JournalError::Moved`] if another file has the name, again and again until this one has it. The
    /// file that is open goes on.
    pub fn keep_name(&mut self) -> Result<Option<Compacted>, JournalError> {
        if self.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return if self.nameless { Err(self.place.moved()) } else { Ok(None) };
        }
        self.looked = Some(Instant::now());
        self.nameless = true;
        // Not by the directory that is open, which may have been moved with all that is in it.
        let place = Place::of(self.place.path())?;
        if place.is(&self.file)? {
            self.nameless = false;
            return Ok(None);
        }
        if place.look()?.is_some() {
            return Err(place.moved());
        }
        let (damage, bytes) = self.condensed_with(&[])?;
        let before = self.end;
        self.place = place;
        self.publish(&bytes, Place::take_free_name_of)?;
        self.nameless = false;
        Ok(Some(Compacted { before, after: self.end, damage }))
    }

    fn switch(&mut self, damage: Damage, bytes: &[u8]) -> Result<Compacted, JournalError> {
        let before = self.end;
        self.replace(bytes)?;
        Ok(Compacted { before, after: self.end, damage })
    }

    /// What of it and of more records was lost, and the bytes of one that says what they say and no more.
    fn condensed_with(&mut self, more: &[u8]) -> Result<(Damage, Vec<u8>), JournalError> {
        self.mend()?;
        let mut bytes = self.read()?;
        bytes.extend_from_slice(more);
        condense(&bytes, &self.header, self.seed).map_err(|reason| self.place.format(reason))
    }

    fn read(&mut self) -> Result<Vec<u8>, JournalError> {
        let mut bytes = Vec::new();
        let read = self.file.rewind().and_then(|()| self.file.read_to_end(&mut bytes));
        read.map_err(|error| self.place.io("read", error))?;
        Ok(bytes)
    }

    /// As after a failure that could not be cut off.
    #[cfg(test)]
    pub(super) fn mark_torn(&mut self) {
        self.torn = true;
    }

    /// As a second later.
    #[cfg(test)]
    pub(super) fn look_again(&mut self) {
        self.looked = None;
    }

    /// Cuts off what is not whole.
    fn mend(&mut self) -> Result<(), JournalError> {
        if self.torn {
            let end = i64::try_from(self.end).unwrap_or(i64::MAX);
            ftruncate(&self.file, end).map_err(|errno| self.place.io("truncate", errno))?;
            self.torn = false;
        }
        Ok(())
    }

    /// Makes the file, which has nothing but perhaps the beginning of a header, a journal.
    fn begin(&mut self) -> Result<(), JournalError> {
        // Random, and nobody but readers of the file comes to know it.
        #[allow(clippy::cast_possible_truncation, reason = "any 32 bits will do")]
        let seed = RandomState::new().build_hasher().finish() as u32;
        self.seed = seed;
        self.torn = true;
        self.mend()?;
        let bytes = encode_header(&self.header, seed);
        // A header is not continued by the next one who opens the file, but begun again.
        write_all(&self.file, &bytes).map_err(|errno| self.place.io("write", errno))?;
        self.end = bytes.len() as u64;
        Ok(())
    }

    /// Puts a file of these bytes in the place of this one.
    fn replace(&mut self, bytes: &[u8]) -> Result<(), JournalError> {
        // Who moved this one away may have made room for another daemon's.
        if !self.place.is(&self.file)? {
            return Err(self.place.moved());
        }
        self.publish(bytes, Place::take_name_of)
    }

    /// Makes a file of these bytes, which gets the name by `take_name`, and goes on with it.
    fn publish(
        &mut self,
        bytes: &[u8],
        take_name: impl FnOnce(&Place, &Place) -> Result<(), JournalError>,
    ) -> Result<(), JournalError> {
        let draft = self.place.draft();
        let file = draft.make()?;
        let published = write_all(&file, bytes)
            .map_err(|errno| draft.io("write", errno))
            .and_then(|()| fsync(&file).map_err(|errno| draft.io("fsync", errno)))
            .and_then(|()| take_name(&self.place, &draft));
        if let Err(error) = published {
            draft.discard().ok();
            return Err(error);
        }
        // The lock of the old one is given back here, when it has no name any more.
        self.file = file;
        self.end = bytes.len() as u64;
        self.torn = false;
        self.due = SMALL.max(self.end.saturating_mul(SPARSE));
        fsync(self.place.directory()).map_err(|errno| self.place.io("fsync its directory", errno))
    }
}

fn write_all(file: &File, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(file, bytes) {
            Ok(0) => return Err(Errno::EIO),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
