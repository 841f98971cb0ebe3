//! Reading an archive: what is whole, and what is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::content::{CopyError, copy};
use super::format::{Document, Entry, is_unique};
use super::{ArchiveError, Trust, open_directory};
use crate::tracker::evidence::lease::{self, c_name};
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::posix::{classify, entries};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, Stat};

/// A document is not larger than this: a directory of a hundred thousand entries needs a tenth of it.
const LARGEST_DOCUMENT: u64 = 512 << 20;

/// What is in an archive.
#[derive(Debug)]
pub struct Contents {
    pub(super) dir: File,
    /// Entries whose documents are whole, the newest first. Their data is checked when it is read.
    pub archived: Vec<Archived>,
    /// Those that are not, each with the reason.
    pub broken: Vec<Broken>,
}

/// One saved object.
#[derive(Debug, Clone)]
pub struct Archived {
    /// The name of the entry: that of its files, without what follows the first dot after it.
    pub entry: String,
    /// Its name in /dev/shm.
    pub file: Name,
    /// When it was saved.
    pub saved_at: jiff::Timestamp,
    /// What is known of it.
    pub document: Document,
}

/// What is no whole entry.
#[derive(Debug, Clone)]
pub struct Broken {
    /// Its name in the archive.
    pub entry: String,
    /// What is wrong with it.
    pub why: String,
}

impl Archived {
    /// The object that it was, for selecting by name. It has no identity.
    #[must_use]
    pub fn object(&self) -> Object {
        let mode = self.document.entries.first().map_or(0, |entry| entry.kind.file_type());
        let (kind, name, file_type) = classify(&self.file, mode);
        let stat = Stat {
            dev: 0,
            ino: 0,
            mode,
            uid: self.document.entries.first().map_or(0, |entry| entry.uid),
            gid: 0,
            nlink: 1,
            size: self.size(),
            allocated: 0,
            born: None,
            modified: 0,
            changed: 0,
        };
        let file = self.file.clone();
        Object { kind, name, file_type, ..Object::of(&file, stat) }
    }

    /// Apparent size in bytes; of a directory, that of the files in it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.document.entries.iter().fold(0, |sum, entry| entry.size.saturating_add(sum))
    }
}

/// Reads what is in the archive at `path`.
///
/// # Errors
/// [`ArchiveError`]: it is no directory, or somebody else may have put there what is in it.
pub fn read(host: &Host, path: &Path) -> Result<Contents, ArchiveError> {
    let fail = |step| move |source| ArchiveError::Io { path: path.to_owned(), step, source };
    let missing = || fail("open it")(io::Error::from_raw_os_error(libc::ENOENT));
    let dir = open_directory(path, Trust::ToRead, false, None)?.ok_or_else(missing)?;
    let names = entries(dir.as_fd()).map_err(fail("read it"))?;
    let mut contents = Contents { dir, archived: Vec::new(), broken: Vec::new() };
    for (entry, files) in by_entry(&names) {
        match contents.document(host, &entry, &files) {
            Ok(archived) => contents.archived.push(archived),
            Err(why) => contents.broken.push(Broken { entry, why }),
        }
    }
    contents.archived.sort_by(|a, b| (b.saved_at, &b.entry).cmp(&(a.saved_at, &a.entry)));
    Ok(contents)
}

/// The files of each entry, by what follows its name. Whatever else lies there is not looked at.
fn by_entry(names: &[Name]) -> BTreeMap<String, BTreeSet<String>> {
    let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for name in names {
        let Ok(name) = std::str::from_utf8(name.as_bytes()) else { continue };
        // The time in an entry's name has a dot as well.
        let Some((end, _)) = name.match_indices('.').nth(1) else { continue };
        let (entry, rest) = name.split_at(end);
        if is_unique(entry) {
            all.entry(entry.to_owned()).or_default().insert(rest.to_owned());
        }
    }
    all
}

impl Contents {
    fn document(
        &self,
        host: &Host,
        entry: &str,
        files: &BTreeSet<String>,
    ) -> Result<Archived, String> {
        if !files.contains(".json") {
            return Err(
                "incomplete: its document is missing, as when saving was interrupted; what is there of it \
                 can be deleted".into()
            );
        }
        let (file, stat) = self.open(host, &format!("{entry}.json"))?;
        if stat.size > LARGEST_DOCUMENT {
            return Err("its document is too large".into());
        }
        let mut text = Vec::new();
        File::from(file)
            .take(LARGEST_DOCUMENT)
            .read_to_end(&mut text)
            .map_err(|error| error.to_string())?;
        let document = Document::open(&text, entry)?;
        let file = document.file()?;
        let saved_at = document.saved_at.parse().map_err(|error: jiff::Error| error.to_string())?;
        Ok(Archived { entry: entry.to_owned(), file, saved_at, document })
    }

    /// Opens a file of the archive if it is a regular one that only we or root can have written.
    fn open(&self, host: &Host, name: &str) -> Result<(OwnedFd, Stat), String> {
        let say = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let own = Name::new(name);
        let stat = c_name(&own)
            .and_then(|name| sys::stat(&self.dir, &name))
            .map_err(|error| say(&error))?;
        if !stat.is_file() {
            return Err(say(&"not a regular file"));
        }
        if stat.uid != 0 && stat.uid != nix::unistd::geteuid().as_raw() || stat.mode & 0o022 != 0 {
            return Err(say(&"others may have written it"));
        }
        let file = lease::open_expected(host, self.dir.as_fd(), &own, &Identity::of(&stat));
        Ok((file.map_err(|error| say(&error))?, stat))
    }

    /// The digest of the data of an entry, which is copied to `to` if that is given, was compared: it
    /// is what was saved.
    ///
    /// # Errors
    /// What is wrong with it, or could not be written.
    pub(super) fn data(
        &self,
        host: &Host,
        entry: &Entry,
        to: Option<BorrowedFd<'_>>,
    ) -> Result<(), DataError> {
        let name = entry.data.as_deref().unwrap_or_default();
        let (file, stat) = self.open(host, name).map_err(DataError::Broken)?;
        if stat.size != entry.size {
            return Err(DataError::Broken(format!(
                "{name}: it has {} bytes, and {} were saved",
                stat.size, entry.size
            )));
        }
        let digest = copy(file.as_fd(), to, entry.size, &mut || true).map_err(|e| match e {
            CopyError::Write(error) => DataError::Write(error),
            CopyError::Read(error) => DataError::Broken(format!("{name}: {error}")),
            CopyError::Stopped => DataError::Broken(format!("{name}: interrupted")),
        })?;
        if entry.sha256.as_deref() == Some(digest.as_str()) {
            Ok(())
        } else {
            let why = "its checksum does not fit: it was changed or damaged";
            Err(DataError::Broken(format!("{name}: {why}")))
        }
    }
}

/// Why data was not restored.
#[derive(Debug)]
pub(super) enum DataError {
    /// The archive is not what it was.
    Broken(String),
    /// The content could not be written.
    Write(io::Error),
}
