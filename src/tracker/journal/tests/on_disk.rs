//! The file: whose it is, what it may be, and what failures leave of it.

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use nix::sys::stat::Mode;

use super::{header, registration};
use crate::tracker::journal::format::{HEADER, encode_header};
use crate::tracker::journal::place::Place;
use crate::tracker::journal::{
    Batch, FormatError, Header, Journal, JournalError, Owner, Record, Recovered,
};
use crate::tracker::reap::registered;
use crate::tracker::service::dialect::Rtype;
use crate::tracker::sys;

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let place =
            std::env::temp_dir().join(format!("rtrack-journal-{}-{name}", std::process::id()));
        fs::create_dir(&place).unwrap();
        Self(place)
    }

    fn journal(&self) -> PathBuf {
        self.0.join("journal")
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        remove(Rtype::Folder, &self.0);
    }
}

/// As everything is removed.
fn remove(rtype: Rtype, path: &Path) {
    registered::remove(rtype, path.as_os_str().as_bytes()).unwrap();
}

fn open(path: &Path) -> (Journal, Option<Recovered>) {
    Journal::open(path, header()).unwrap()
}

fn refused(path: &Path) -> String {
    Journal::open(path, header()).unwrap_err().to_string()
}

fn put(journal: &mut Journal, names: &[&[u8]]) {
    let mut batch = journal.batch();
    for name in names {
        batch.push(&Record::Register(registration(name))).unwrap();
    }
    journal.append(&mut batch).unwrap();
    assert!(batch.is_empty());
}

fn names(recovered: &Recovered) -> Vec<&[u8]> {
    recovered.owners.iter().flat_map(|o| &o.entries).map(|entry| &*entry.name).collect()
}

#[test]
fn what_is_registered_is_there_for_the_next_one() {
    let scratch = Scratch::new("next");
    let path = scratch.journal();
    let (mut journal, recovered) = open(&path);
    assert!(recovered.is_none());
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    put(&mut journal, &[b"a", b"b"]);
    let error = Journal::open(&path, header()).unwrap_err();
    assert!(matches!(error, JournalError::InUse { .. }), "{error}");
    assert_eq!(error.errno(), libc::EWOULDBLOCK);
    drop(journal);

    let (mut journal, recovered) = open(&path);
    assert_eq!(names(&recovered.unwrap()), [b"a", b"b"]);
    put(&mut journal, &[b"c"]);
    assert_eq!(journal.size(), fs::metadata(&path).unwrap().len());
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"a", b"b", b"c"]);
}

#[test]
fn nothing_but_a_file_of_our_own() {
    let scratch = Scratch::new("trust");
    let path = |name: &str| scratch.0.join(name);
    drop(open(&path("good")));
    symlink("good", path("link")).unwrap();
    symlink("nowhere", path("dangling")).unwrap();
    nix::unistd::mkfifo(&path("fifo"), Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    fs::create_dir(path("dir")).unwrap();
    for name in ["link", "dangling", "fifo", "dir"] {
        let message = refused(&path(name));
        assert!(message.ends_with(&format!("{name}: it is no regular file")), "{message}");
    }
    assert!(refused(Path::new("/dev/null")).ends_with("it is no regular file"));
    for mode in [0o620, 0o602, 0o666] {
        fs::set_permissions(path("good"), Permissions::from_mode(mode)).unwrap();
        assert!(refused(&path("good")).ends_with("others may write to it"));
    }
    fs::set_permissions(path("good"), Permissions::from_mode(0o644)).unwrap();
    drop(open(&path("good")));
    fs::hard_link(path("good"), path("twin")).unwrap();
    assert!(refused(&path("good")).ends_with("it has another name as well"));
    if nix::unistd::geteuid().is_root() {
        drop(open(&path("foreign")));
        std::os::unix::fs::chown(path("foreign"), Some(54321), None).unwrap();
        assert!(refused(&path("foreign")).ends_with("it belongs to another user"));
    }
    let error = Journal::open(&path("missing/journal"), header()).unwrap_err();
    assert_eq!(error.errno(), libc::ENOENT);
    assert!(error.to_string().ends_with("journal: open its directory"), "{error}");
}

#[test]
fn what_cannot_be_read_is_not_touched() {
    let scratch = Scratch::new("foreign");
    let path = scratch.journal();
    let mut newer = encode_header(&header(), 1);
    newer[8] = 2;
    let mut damaged = encode_header(&header(), 1);
    damaged[20] ^= 1;
    for (bytes, expected) in [
        (newer, FormatError::Newer { found: 2 }),
        (damaged, FormatError::Damaged),
        (b"a diary".to_vec(), FormatError::Foreign),
    ] {
        fs::write(&path, &bytes).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let error = Journal::open(&path, header()).unwrap_err();
        assert!(matches!(&error, JournalError::Format { reason, .. } if *reason == expected));
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
    // What a crash has left before anything was recorded.
    for length in [0, 5, HEADER - 1] {
        fs::write(&path, &encode_header(&header(), 1)[..length]).unwrap();
        let (mut journal, recovered) = open(&path);
        assert!(recovered.is_none());
        put(&mut journal, &[b"a"]);
        drop(journal);
        assert_eq!(names(&open(&path).1.unwrap()), [b"a"]);
    }
}

#[test]
fn a_write_that_was_interrupted_is_cut_off() {
    let scratch = Scratch::new("torn");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"a", b"b"]);
    drop(journal);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let (mut journal, recovered) = open(&path);
    let recovered = recovered.unwrap();
    assert_eq!(names(&recovered), [b"a"]);
    assert_eq!(recovered.torn, whole.len() as u64 - 1 - recovered.end);
    assert_eq!(fs::metadata(&path).unwrap().len(), recovered.end);
    put(&mut journal, &[b"c"]);
    drop(journal);
    let recovered = open(&path).1.unwrap();
    assert_eq!((names(&recovered), recovered.torn), (vec![&b"a"[..], b"c"], 0));
}

/// Writes `most` bytes, then fails.
fn full(most: usize) -> impl FnMut(&File, &[u8]) -> nix::Result<usize> {
    let mut left = most;
    move |file, bytes| {
        let length = bytes.len().min(left);
        left -= length;
        if length == 0 { Err(Errno::ENOSPC) } else { nix::unistd::write(file, &bytes[..length]) }
    }
}

#[test]
fn a_full_disk_leaves_what_was_there() {
    let scratch = Scratch::new("full");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"a"]);
    let end = journal.size();
    let mut batch = journal.batch();
    for name in [b"b", b"c"] {
        batch.push(&Record::Register(registration(name))).unwrap();
    }
    for most in 0..batch.len() {
        let error = journal.append_by(&mut batch, full(most)).unwrap_err();
        assert_eq!(error.errno(), libc::ENOSPC);
        assert!(error.to_string().ends_with("journal: write"), "{error}");
        assert_eq!((journal.size(), fs::metadata(&path).unwrap().len()), (end, end));
    }
    // What could not be cut off then goes before the next batch.
    let mut other = journal.batch();
    other.push(&Record::Register(registration(b"d"))).unwrap();
    File::options().append(true).open(&path).unwrap().write_all(b"half a record").unwrap();
    journal.mark_torn();
    journal.append(&mut other).unwrap();
    // A batch that failed can be tried again, and a write in pieces is as good as one.
    journal.append_by(&mut batch, |file, bytes| nix::unistd::write(file, &bytes[..1])).unwrap();
    drop(journal);
    let recovered = open(&path).1.unwrap();
    assert_eq!(names(&recovered), [b"a", b"d", b"b", b"c"]);
    assert!(!recovered.is_damaged() && recovered.torn == 0);
}

#[test]
fn batches_of_another_journal() {
    let scratch = Scratch::new("batch");
    let (mut journal, _) = open(&scratch.journal());
    let mut batch = Batch::new(!journal.batch().seed());
    batch.push(&Record::Ended { owner: 0 }).unwrap();
    assert_eq!(journal.append(&mut batch).unwrap_err().errno(), libc::EINVAL);
}

/// Registers and takes back so much that writing anew is worth it.
fn churn(journal: &mut Journal, kept: &[&[u8]]) {
    put(journal, kept);
    let mut batch = journal.batch();
    while batch.len() < 3 << 19 {
        batch.push(&Record::Register(registration(b"passing"))).unwrap();
        let gone = Record::Unregister { owner: 0, rtype: b"folder", name: b"passing" };
        batch.push(&gone).unwrap();
    }
    journal.append(&mut batch).unwrap();
}

#[test]
fn written_anew() {
    let scratch = Scratch::new("anew");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    assert_eq!(journal.compact_if_due().unwrap(), None);
    let mut batch = journal.batch();
    churn(&mut journal, &[b"a", b"b"]);
    let before = journal.size();
    // What a crash has left.
    let draft = Place::of(&path).unwrap().draft().path().to_owned();
    fs::write(&draft, "half").unwrap();
    let old = File::open(&path).unwrap();
    assert!(!sys::try_lock(&old).unwrap());

    let compacted = journal.compact_if_due().unwrap().unwrap();
    assert_eq!(compacted.before, before);
    assert!(compacted.after < 200, "{compacted:?}");
    assert_eq!(fs::metadata(&path).unwrap().len(), compacted.after);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(scratch.names(), ["journal"]);
    // Whoever has opened the old one gets its lock, and sees that this is not the journal.
    assert!(sys::try_lock(&old).unwrap());
    assert!(!Place::of(&path).unwrap().is(&old).unwrap());
    assert!(matches!(Journal::open(&path, header()), Err(JournalError::InUse { .. })));
    // A batch that was there before is good.
    batch.push(&Record::Register(registration(b"c"))).unwrap();
    journal.append(&mut batch).unwrap();
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"a", b"b", b"c"]);
}

#[test]
fn what_is_not_sparse_stays() {
    let scratch = Scratch::new("dense");
    let (mut journal, _) = open(&scratch.journal());
    let many: Vec<_> = (0..40_000_u32).map(|n| n.to_le_bytes()).collect();
    let many: Vec<_> = many.iter().map(|name| &name[..]).collect();
    put(&mut journal, &many);
    let before = journal.size();
    assert!(before > 1 << 20);
    assert_eq!(journal.compact_if_due().unwrap(), None);
    assert_eq!(journal.size(), before);
    assert_eq!(journal.compact().unwrap().after, before);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "two files of the test's own")]
fn the_old_one_goes_on_where_a_new_one_cannot_be_made() {
    let scratch = Scratch::new("goes-on");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    churn(&mut journal, &[b"a"]);
    let draft = Place::of(&path).unwrap().draft().path().to_owned();
    fs::create_dir(&draft).unwrap();
    let error = journal.compact_if_due().unwrap_err().to_string();
    assert!(error.ends_with(".journal.rtrack-draft: it is no regular file"), "{error}");
    // Not with each batch.
    assert_eq!(journal.compact_if_due().unwrap(), None);
    put(&mut journal, &[b"b"]);
    drop(journal);
    let (mut journal, recovered) = open(&path);
    assert_eq!(names(&recovered.unwrap()), [b"a", b"b"]);

    // Another file has the name: it is not ours to replace.
    let new = scratch.0.join("new");
    File::create(&new).unwrap();
    let (here, exchange) = (AT_FDCWD, RenameFlags::RENAME_EXCHANGE);
    renameat2(here, &new, here, &path, exchange).unwrap();
    assert!(matches!(journal.compact(), Err(JournalError::Moved { .. })));
    assert_eq!(fs::metadata(&path).unwrap().len(), 0);
}

#[test]
fn room_is_made_with_what_waits_to_be_written() {
    let scratch = Scratch::new("room");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    churn(&mut journal, &[b"a", b"b"]);
    let before = journal.size();
    let mut batch = journal.batch();
    batch.push(&Record::Register(registration(b"c"))).unwrap();
    batch.push(&Record::Unregister { owner: 0, rtype: b"folder", name: b"a" }).unwrap();
    let error = journal.append_by(&mut batch, full(10)).unwrap_err();
    assert!(error.lacks_room(), "{error}");
    let compacted = journal.make_room(&mut batch).unwrap();
    assert_eq!((compacted.before, compacted.after), (before, fs::metadata(&path).unwrap().len()));
    assert!(batch.is_empty() && compacted.after < 200, "{compacted:?}");
    put(&mut journal, &[b"d"]);
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"b", b"c", b"d"]);
}

#[test]
fn what_is_sparse_is_written_anew_when_it_is_opened() {
    let scratch = Scratch::new("sparse");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    churn(&mut journal, &[b"a"]);
    drop(journal);
    // It is no reason not to start that it cannot be.
    let draft = Place::of(&path).unwrap().draft().path().to_owned();
    fs::create_dir(&draft).unwrap();
    let (journal, recovered) = open(&path);
    assert_eq!(names(&recovered.unwrap()), [b"a"]);
    assert!(journal.size() > 1 << 20);
    drop(journal);
    remove(Rtype::Folder, &draft);
    let (journal, recovered) = open(&path);
    assert_eq!(names(&recovered.unwrap()), [b"a"]);
    assert!(journal.size() < 200);
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"a"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "files of the test's own")]
fn its_name_is_kept() {
    let scratch = Scratch::new("name");
    let (path, old) = (scratch.journal(), scratch.0.join("old"));
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"a"]);
    assert_eq!(journal.keep_name().unwrap(), None);
    fs::rename(&path, &old).unwrap();
    // Not each time.
    assert_eq!(journal.keep_name().unwrap(), None);
    journal.look_again();
    assert!(journal.keep_name().unwrap().is_some());
    put(&mut journal, &[b"b"]);
    remove(Rtype::File, &path);
    journal.look_again();
    assert!(journal.keep_name().unwrap().is_some());
    put(&mut journal, &[b"c"]);

    fs::rename(&path, &old).unwrap();
    fs::write(&path, "another's").unwrap();
    journal.look_again();
    for _ in 0..2 {
        assert!(matches!(journal.keep_name(), Err(JournalError::Moved { .. })));
    }
    assert_eq!(fs::read(&path).unwrap(), b"another's");
    put(&mut journal, &[b"d"]);
    remove(Rtype::File, &path);
    journal.look_again();
    assert!(journal.keep_name().unwrap().is_some());
    drop(journal);
    let (journal, recovered) = open(&path);
    assert_eq!(names(&recovered.unwrap()), [b"a", b"b", b"c", b"d"]);
    drop(journal);

    // With its directory.
    let (inner, aside) = (scratch.0.join("inner"), scratch.0.join("aside"));
    fs::create_dir(&inner).unwrap();
    let path = inner.join("journal");
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"e"]);
    fs::rename(&inner, &aside).unwrap();
    assert_eq!(journal.keep_name().unwrap_err().errno(), libc::ENOENT);
    fs::create_dir(&inner).unwrap();
    journal.look_again();
    assert!(journal.keep_name().unwrap().is_some());
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"e"]);
    remove(Rtype::File, &path);
}

#[test]
fn another_boot() {
    let scratch = Scratch::new("boot");
    let path = scratch.journal();
    let owner = Owner { id: 3, pid: 9, start_ticks: 5, uid: 1, gid: 2 };
    let (mut journal, _) = open(&path);
    let mut batch = journal.batch();
    batch.push(&Record::Owner(owner)).unwrap();
    journal.append(&mut batch).unwrap();
    put(&mut journal, &[b"a"]);
    drop(journal);

    let next = Header { boot_id: "another boot".into(), pid: 78, ..header() };
    let (mut journal, recovered) = Journal::open(&path, next.clone()).unwrap();
    let recovered = recovered.unwrap();
    assert_eq!(recovered.header, header());
    assert_eq!(
        recovered.owners.iter().map(|owned| owned.earlier).collect::<Vec<_>>(),
        [false, true]
    );
    assert!(recovered.owners[0].entries[0].earlier);
    put(&mut journal, &[b"b"]);
    drop(journal);

    // The one after that has to know as well.
    let (journal, recovered) = Journal::open(&path, next.clone()).unwrap();
    drop(journal);
    let recovered = recovered.unwrap();
    assert_eq!(recovered.header, next);
    let earlier: Vec<_> = recovered.owners[0].entries.iter().map(|entry| entry.earlier).collect();
    assert_eq!(earlier, [true, false]);
    assert_eq!(recovered.owners[1].process, Some(owner));
    assert!(recovered.owners[1].earlier);
    assert_eq!(recovered.next_owner, 4);

    // What is not known is not the same.
    let unknown = Header { boot_id: String::new(), ..header() };
    drop(Journal::open(&path, unknown.clone()).unwrap());
    let recovered = Journal::open(&path, unknown).unwrap().1.unwrap();
    assert!(recovered.owners[0].entries.iter().all(|entry| entry.earlier));
}

#[test]
fn damage_is_remembered_by_what_it_makes_doubtful() {
    let scratch = Scratch::new("doubt");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"a"]);
    let begin = usize::try_from(journal.size()).unwrap();
    put(&mut journal, &[b"b"]);
    put(&mut journal, &[b"c"]);
    drop(journal);
    let mut bytes = fs::read(&path).unwrap();
    bytes[begin + 10] ^= 1;
    fs::write(&path, &bytes).unwrap();

    let doubts = |recovered: &Recovered| -> Vec<bool> {
        recovered.owners[0].entries.iter().map(|entry| entry.doubtful).collect()
    };
    let (journal, recovered) = open(&path);
    let recovered = recovered.unwrap();
    assert!(recovered.is_damaged());
    assert_eq!((names(&recovered), doubts(&recovered)), (vec![&b"a"[..], b"c"], vec![true, false]));
    drop(journal);
    let (mut journal, again) = open(&path);
    let again = again.unwrap();
    assert!(!again.is_damaged());
    assert_eq!(again.owners, recovered.owners);
    // What happens to it in use is told to whoever can say what is registered.
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER + 10] ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert_eq!(journal.compact().unwrap().damage.places, 1);
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"c"]);
}

#[test]
fn one_has_it_at_any_time() {
    let scratch = Scratch::new("race");
    let path = scratch.journal();
    let (mut journal, _) = open(&path);
    put(&mut journal, &[b"a"]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let rival = scope.spawn(|| {
            let mut tries = 0;
            while !done.load(Ordering::Relaxed) {
                let error = Journal::open(&path, header()).unwrap_err();
                assert!(matches!(error, JournalError::InUse { .. }), "{error}");
                tries += 1;
            }
            tries
        });
        for _round in 0..300 {
            journal.compact().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        assert!(rival.join().unwrap() > 0);
    });
    drop(journal);
    assert_eq!(names(&open(&path).1.unwrap()), [b"a"]);
}
