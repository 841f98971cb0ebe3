//! Saving an object before it goes.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::syncfs;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::content::{CopyError, copy};
use super::format::{Document, Entry, Moment, SCHEMA, Type, Verdict, finish, to_text};
use super::{ArchiveError, Trust, open_directory};
use crate::tracker::evidence::lease::{self, LeaseError};
use crate::tracker::host::Host;
use crate::tracker::inventory::Object;
use crate::tracker::inventory::posix::{self, entries};
use crate::tracker::reap::{discard, publish};
use crate::tracker::resource::{Identity, Name};
use crate::tracker::sys::{self, Stat};
use crate::tracker::verdict::Judgement;

/// At most so many levels below a directory are saved: each needs a descriptor.
const MOST_LEVELS: usize = 64;

/// What is saved, and why it is to go.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The object, as it was found.
    pub object: &'a Object,
    /// The verdict on it.
    pub judgement: &'a Judgement,
    /// The operator overrides the verdict.
    pub forced: bool,
}

/// Why an object was not saved. Nothing of it is left in the archive.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Somebody was opening it.
    #[error("somebody is opening it")]
    Opened,
    /// It was changed while it was read.
    #[error("it was written or changed while it was saved")]
    Changed,
    /// There is no way to save it, or not whole.
    #[error("it cannot be archived: {0}")]
    Unfit(String),
    /// A system call failed.
    #[error("{step}: {source}")]
    Io {
        /// What was tried, with the path.
        step: String,
        /// The errno.
        source: io::Error,
    },
}

/// A directory that objects are saved in: ours, and closed to everybody else.
#[derive(Debug)]
pub struct Archive {
    dir: File,
    path: PathBuf,
    host: String,
    boot_id: Option<String>,
}

impl Archive {
    /// Opens it. With `make` a missing one is made; without, it is `None`.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn open(host: &Host, path: &Path, make: bool) -> Result<Option<Self>, ArchiveError> {
        let device = host.shm_dev().map_err(|source| ArchiveError::Io {
            path: host.shm_path.clone(),
            step: "look at it",
            source,
        })?;
        let dir = open_directory(path, Trust::ToWrite, make, Some(device))?;
        // Read now: while an object is leased nothing in /proc is read.
        let boot_id = Some(host.boot_id()).filter(|id| !id.is_empty());
        Ok(dir.map(|dir| Self { dir, path: path.to_owned(), host: host.name(), boot_id }))
    }

    /// Saves a regular file, which is open as `file`, and answers with the name of its entry.
    /// Nothing else is opened, read or waited for but the archive. `go_on` is asked at least every
    /// 8 MiB whether nobody has tried to open the file.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn save_file(
        &self,
        subject: &Subject<'_>,
        file: BorrowedFd<'_>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<String, SaveError> {
        self.save(subject, |draft| draft.file(&[], file, go_on))
    }

    /// Saves the directory that is open as `dir`, and all that is in it, by descriptor: no link is
    /// followed, no mount is crossed. A file with several names in it is saved once for each. `go_on`
    /// is asked before each entry and at least every 8 MiB of files. The second answer is a digest of all
    /// content.
    ///
    /// # Errors
    /// [`SaveError`]; `Unfit` when something in it is on another mount, or it has too many levels.
    pub fn save_tree(
        &self,
        host: &Host,
        subject: &Subject<'_>,
        dir: BorrowedFd<'_>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(String, String), SaveError> {
        let mut digest = String::new();
        let unique = self.save(subject, |draft| {
            draft.whole(host, dir, go_on)?;
            digest = content_of(&draft.entries);
            Ok(())
        })?;
        Ok((unique, digest))
    }

    /// The digest of what is in the directory that is open as `dir` now, as [`Archive::save_tree`] answers with it.
    ///
    /// # Errors
    /// [`SaveError`].
    pub fn digest_tree(&self, host: &Host, dir: BorrowedFd<'_>) -> Result<String, SaveError> {
        let mut draft =
            Draft { archive: self, unique: "", entries: Vec::new(), files: 0, keeps: false };
        draft.whole(host, dir, &mut || true)?;
        Ok(content_of(&draft.entries))
    }

    /// Takes an entry away again, whole or not.
    ///
    /// # Errors
    /// The errno of a step; what is left is known for incomplete.
    pub fn forget(&self, unique: &str) -> io::Result<()> {
        let own = format!("{unique}.");
        let mut names = entries(self.dir.as_fd())?;
        names.retain(|name| name.as_bytes().starts_with(own.as_bytes()));
        // The document first: without it, data is no archived object.
        names.sort_by_key(|name| name.as_bytes().ends_with(b".data"));
        names.iter().try_for_each(|name| discard(self.dir.as_fd(), name))?;
        self.dir.sync_all()
    }

    fn save(
        &self,
        subject: &Subject<'_>,
        fill: impl FnOnce(&mut Draft<'_>) -> Result<(), SaveError>,
    ) -> Result<String, SaveError> {
        let now = jiff::Timestamp::now();
        // The standard library seeds its hashes by the kernel's random numbers.
        let random = RandomState::new().hash_one(std::process::id());
        let unique = format!("{}-{random:016x}", now.strftime("%Y%m%dT%H%M%S.%3fZ"));
        let mut draft =
            Draft { archive: self, unique: &unique, entries: Vec::new(), files: 0, keeps: true };
        let filled = fill(&mut draft);
        let files = draft.files;
        let saved = filled.and_then(|()| {
            let document = self.document(subject, now, draft.entries);
            self.finish(&unique, &document, files)
        });
        match saved {
            Ok(()) => Ok(unique),
            Err(error) => {
                // The first error is the one to tell; what stays is known for incomplete.
                let data = (0..files).map(|number| format!("{unique}.{number}.data"));
                let documents = ["json", "json.tmp"].map(|end| format!("{unique}.{end}"));
                for name in documents.into_iter().chain(data) {
                    discard(self.dir.as_fd(), &Name::new(name)).unwrap_or(());
                }
                Err(error)
            }
        }
    }

    fn document(
        &self,
        subject: &Subject<'_>,
        now: jiff::Timestamp,
        entries: Vec<Entry>,
    ) -> Document {
        let Subject { object, judgement, forced } = *subject;
        let (file, file_base64) = to_text(object.file.as_bytes());
        let dev = object.stat.dev;
        Document {
            schema: SCHEMA.into(),
            saved_at: now.to_string(),
            rtrack: env!("CARGO_PKG_VERSION").into(),
            host: self.host.clone(),
            boot_id: self.boot_id.clone(),
            id: object.id(),
            kind: object.kind.to_string(),
            file,
            file_base64,
            dev: format!("{}:{}", libc::major(dev), libc::minor(dev)),
            ino: object.stat.ino,
            born: object.stat.born.map(Moment::of),
            changed: Moment::of(object.stat.changed),
            verdict: Verdict {
                verdict: judgement.verdict.to_string(),
                reason: judgement.reason.as_str().into(),
                forced,
                evidence: json!(judgement.evidence),
            },
            entries,
        }
    }

    /// Writes the document once all the data is on the disk.
    fn finish(&self, unique: &str, document: &Document, files: usize) -> Result<(), SaveError> {
        if files > 1 {
            syncfs(&self.dir).map_err(|errno| self.failed("sync", "", errno.into()))?;
        }
        let (draft, name) = (format!("{unique}.json.tmp"), format!("{unique}.json"));
        let text = document.seal().map_err(|error| self.failed("write", &name, error.into()))?;
        let mut file = self.create(&draft)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(publish(self.dir.as_fd(), &draft, &name)?))
            .and_then(|()| self.dir.sync_all())
            .map_err(|error| self.failed("write", &name, error))
    }

    fn create(&self, name: &str) -> Result<File, SaveError> {
        let flags =
            OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let made = openat(&self.dir, name, flags, mode)
            // What the umask took away is given back.
            .and_then(|file| fchmod(&file, mode).map(|()| File::from(file)));
        made.map_err(|errno| self.failed("create", name, errno.into()))
    }

    fn failed(&self, step: &str, name: &str, source: io::Error) -> SaveError {
        failed(format!("{step} {}", Name::new(path_bytes(&self.path.join(name)))), source)
    }
}

fn path_bytes(path: &Path) -> Vec<u8> {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().to_vec()
}

fn failed(step: impl Into<String>, source: io::Error) -> SaveError {
    SaveError::Io { step: step.into(), source }
}

/// Where a directory is that is saved.
struct Place<'a> {
    host: &'a Host,
    dev: u64,
    mount: u64,
}

/// An entry that is being made.
struct Draft<'a> {
    archive: &'a Archive,
    unique: &'a str,
    entries: Vec<Entry>,
    /// How many data files there are.
    files: usize,
    /// Whether content is saved, and not only read.
    keeps: bool,
}

impl Draft<'_> {
    /// Saves the directory that is open as `dir`, and all that is in it.
    fn whole(
        &mut self,
        host: &Host,
        dir: BorrowedFd<'_>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), SaveError> {
        let looked = || Ok((sys::stat(dir, c"")?, sys::mount_id(dir)?));
        let (stat, mount) = looked().map_err(|source| failed("look at it", source))?;
        if !stat.is_dir() {
            return Err(SaveError::Unfit("it is no directory".into()));
        }
        let place = Place { host, dev: stat.dev, mount };
        self.other(&[], dir)?;
        self.tree(&place, &[], dir, 0, go_on)
    }

    /// Saves the regular file that is open as `file`.
    fn file(
        &mut self,
        path: &[u8],
        file: BorrowedFd<'_>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), SaveError> {
        let (before, mut entry) = describe(path, file)?;
        if entry.kind != Type::File {
            return Err(SaveError::Unfit("it is no regular file".into()));
        }
        let name = format!("{}.{}.data", self.unique, self.files);
        let data = self.keeps.then(|| self.archive.create(&name)).transpose()?;
        self.files += 1;
        let sha256 = copy(file, data.as_ref().map(AsFd::as_fd), before.size, go_on).map_err(
            |e| match e {
                CopyError::Stopped => SaveError::Opened,
                CopyError::Read(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                    SaveError::Changed
                }
                CopyError::Read(error) => failed("read it", error),
                CopyError::Write(error) => self.archive.failed("write", &name, error),
            },
        )?;
        // Of many files all are sent to the disk together.
        if path.is_empty()
            && let Some(data) = data
        {
            data.sync_all().map_err(|error| self.archive.failed("sync", &name, error))?;
        }
        let after = sys::stat(file, c"").map_err(|error| failed("look at it", error))?;
        let of = |stat: &Stat| (stat.size, stat.modified, stat.changed);
        if of(&after) != of(&before) {
            return Err(SaveError::Changed);
        }
        entry.size = before.size;
        entry.data = Some(name);
        entry.sha256 = Some(sha256);
        self.entries.push(entry);
        Ok(())
    }

    /// Saves what is known of anything that has no content of its own.
    fn other(&mut self, path: &[u8], fd: BorrowedFd<'_>) -> Result<(), SaveError> {
        let (_, mut entry) = describe(path, fd)?;
        if entry.kind == Type::Symlink {
            let target =
                readlinkat(fd, c"").map_err(|errno| failed("read the link", errno.into()))?;
            let (text, exact) = to_text(target.as_encoded_bytes());
            (entry.target, entry.target_base64) = (Some(text), exact);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Saves what is in the directory `dir`.
    fn tree(
        &mut self,
        place: &Place<'_>,
        above: &[u8],
        dir: BorrowedFd<'_>,
        level: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), SaveError> {
        let at = |path: &[u8]| Name::new(path).to_string();
        if level > MOST_LEVELS {
            return Err(SaveError::Unfit(format!("{} has too many levels", at(above))));
        }
        for name in entries(dir).map_err(|error| failed(at(above), error))? {
            if !go_on() {
                return Err(SaveError::Opened);
            }
            let mut path = above.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
            let mounted = || SaveError::Unfit(format!("{} is on another mount", at(&path)));
            let error = |error| failed(at(&path), error);
            let fd = match posix::entry(dir, &name, place.dev).map_err(error)? {
                posix::Entry::Here(fd) => fd,
                posix::Entry::OtherMount => return Err(mounted()),
            };
            if sys::mount_id(&fd).map_err(error)? != place.mount {
                return Err(mounted());
            }
            let stat = sys::stat(&fd, c"").map_err(error)?;
            if stat.is_file() {
                let file = lease::open_expected(place.host, dir, &name, &Identity::of(&stat))
                    .map_err(|refused| not_opened(at(&path), refused))?;
                self.file(&path, file.as_fd(), go_on)?;
                continue;
            }
            self.other(&path, fd.as_fd())?;
            if stat.is_dir() {
                let inside = posix::open_directory(fd.as_fd()).map_err(error)?;
                drop(fd);
                self.tree(place, &path, inside.as_fd(), level + 1, go_on)?;
            }
        }
        Ok(())
    }
}

/// A digest of the names, kinds and contents of a tree, in whatever order it was read.
fn content_of(entries: &[Entry]) -> String {
    let one = |entry: &Entry| {
        let Entry { path, path_base64, kind, size, sha256, target, target_base64, .. } = entry;
        json!([path, path_base64, kind, size, sha256, target, target_base64]).to_string()
    };
    let mut lines: Vec<String> = entries.iter().map(one).collect();
    lines.sort_unstable();
    let mut hash = Sha256::new_with_prefix(b"rtrack.tree/1\0");
    lines.iter().for_each(|line| hash.update(line));
    finish(hash)
}

/// Why a file in a directory was not opened.
fn not_opened(step: String, refused: LeaseError) -> SaveError {
    match refused {
        LeaseError::Held => SaveError::Opened,
        LeaseError::Gone | LeaseError::Changed => SaveError::Changed,
        LeaseError::NoPermission => failed(step, io::Error::from_raw_os_error(libc::EACCES)),
        LeaseError::Unsupported => failed(step, io::Error::from_raw_os_error(libc::EOPNOTSUPP)),
        LeaseError::Reopen { source, .. } | LeaseError::Io(source) => failed(step, source),
    }
}

/// What is known of anything without its content.
fn describe(path: &[u8], fd: BorrowedFd<'_>) -> Result<(Stat, Entry), SaveError> {
    let times = fstat(fd).map_err(|errno| failed("look at it", errno.into()))?;
    let stat = sys::stat(fd, c"").map_err(|error| failed("look at it", error))?;
    let (text, path_base64) = to_text(path);
    let names =
        sys::attribute_names(fd).map_err(|error| failed("look at its attributes", error))?;
    // What the system's policy gives every file, it gives a restored one as well.
    let names = names.iter().filter(|name| !name.starts_with(b"security."));
    let entry = Entry {
        attributes: names.map(|name| Name::new(name.as_slice()).to_lossy()).collect(),
        path: text,
        path_base64,
        kind: Type::of(stat.file_type()),
        mode: format!("{:04o}", stat.mode & 0o7777),
        uid: stat.uid,
        gid: stat.gid,
        nlink: stat.nlink,
        mtime: Moment::of(stat.modified),
        atime: Moment {
            s: times.st_atime,
            ns: u32::try_from(times.st_atime_nsec).unwrap_or_default(),
        },
        size: 0,
        data: None,
        sha256: None,
        target: None,
        target_base64: None,
    };
    Ok((stat, entry))
}
