//! Directories in an archive: saved by descriptor through the library, and put back whole.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rtrack::tracker::archive::{Archive, SaveError, Subject};
use rtrack::tracker::host::Host;
use rtrack::tracker::inventory::posix::read_one;
use rtrack::tracker::resource::Name;
use rtrack::tracker::verdict::{Code, Judgement, Verdict};

use crate::archiving::{archive, became, noise, restore};
use crate::reaping::exactly;
use crate::support::{Case, Finish, case, mount, path, scratch};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("a_tree_comes_back", a_tree_comes_back),
        case("links_are_not_followed", links_are_not_followed),
        case("mounts_are_not_crossed", mounts_are_not_crossed),
        case("stopped_half_way", stopped_half_way),
        case("too_deep", too_deep),
        case("damaged_tree_leaves_nothing", damaged_tree_leaves_nothing),
    ]
}

const TREE: &str = "joblib_memmapping_folder_1";

fn save(go_on: &mut dyn FnMut() -> bool) -> Result<String, SaveError> {
    let host = Host::real().unwrap();
    let object = read_one(&host, 0, &Name::new(TREE)).unwrap();
    let judgement =
        Judgement { verdict: Verdict::Orphaned, reason: Code::NoFamily, evidence: Vec::new() };
    let subject = Subject { object: &object, judgement: &judgement, forced: false };
    let dir = File::open(path(TREE)).unwrap();
    let archive = Archive::open(&host, &archive(), true).unwrap().unwrap();
    archive.save_tree(&host, &subject, dir.as_fd(), go_on).map(|(entry, _)| entry)
}

/// Everything below `top`: type and mode, owner, times, content.
fn picture(top: &Path) -> BTreeMap<PathBuf, (u32, u32, [i64; 2], Vec<u8>)> {
    let mut all = BTreeMap::new();
    let mut left = vec![top.to_owned()];
    while let Some(place) = left.pop() {
        let meta = fs::symlink_metadata(&place).unwrap();
        let content = if meta.is_symlink() {
            fs::read_link(&place).unwrap().as_os_str().as_bytes().to_vec()
        } else if meta.is_file() {
            fs::read(&place).unwrap()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            left.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        }
        let times = [meta.mtime(), meta.mtime_nsec()];
        all.insert(place, (meta.mode(), meta.uid(), times, content));
    }
    all
}

fn make_tree() {
    fs::create_dir_all(path(TREE).join("a/b")).unwrap();
    fs::create_dir(path(TREE).join("empty")).unwrap();
    for (name, size) in [("one.pkl", 100_000), ("a/two.pkl", 0), ("a/b/three.pkl", 5_000)] {
        fs::write(path(TREE).join(name), noise(size, 1)).unwrap();
    }
    let odd = std::ffi::OsStr::from_bytes(b"a/odd\xff\n");
    fs::write(path(TREE).join(odd), "odd").unwrap();
    let sparse = File::create(path(TREE).join("sparse")).unwrap();
    sparse.set_len(100 << 30).unwrap();
    drop(sparse);
    symlink("../../nowhere", path(TREE).join("a/link")).unwrap();
    nix::unistd::mkfifo(&path(TREE).join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::set_permissions(path(TREE).join("a/b"), Permissions::from_mode(0o500)).unwrap();
    fs::set_permissions(path(TREE).join("one.pkl"), Permissions::from_mode(0o640)).unwrap();
    fs::set_permissions(path(TREE), Permissions::from_mode(0o750)).unwrap();
    // Long ago, so that what is made anew has other times.
    for place in picture_names() {
        let long_ago = nix::sys::time::TimeSpec::new(1_000_000_000, 5);
        let follow = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
        let here = nix::fcntl::AT_FDCWD;
        nix::sys::stat::utimensat(here, &place, &long_ago, &long_ago, follow).unwrap();
    }
}

fn picture_names() -> Vec<PathBuf> {
    let mut all = vec![path(TREE)];
    let mut next = 0;
    while let Some(place) = all.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&place).unwrap().is_dir() {
            all.extend(fs::read_dir(&place).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    all
}

fn a_tree_comes_back() {
    make_tree();
    // Too large to be compared byte for byte.
    fs::rename(path(TREE).join("sparse"), path("sparse")).unwrap();
    nix::sys::stat::utimensat(
        nix::fcntl::AT_FDCWD,
        &path(TREE),
        &nix::sys::time::TimeSpec::new(1_000_000_000, 5),
        &nix::sys::time::TimeSpec::new(1_000_000_000, 5),
        nix::sys::stat::UtimensatFlags::NoFollowSymlink,
    )
    .unwrap();
    let before = picture(&path(TREE));
    save(&mut || true).unwrap();
    let exists = restore().finish().expect(1).json();
    assert_eq!(became(&exists, TREE).0, "exists");
    fs::remove_dir_all(path(TREE)).unwrap();
    fs::remove_file(path("sparse")).unwrap();
    restore().arg("-n").finish().expect(0);
    exactly(&[]);
    let report = restore().arg(format!("dir:{TREE}")).finish().expect(0).json();
    assert_eq!(became(&report, TREE).0, "restored");
    exactly(&[TREE]);
    let after = picture(&path(TREE));
    assert!(before == after, "{:#?}\n{:#?}", before.keys(), after.keys());
}

fn links_are_not_followed() {
    let outside = scratch().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "a secret").unwrap();
    fs::create_dir(path(TREE)).unwrap();
    symlink(&outside, path(TREE).join("directory")).unwrap();
    symlink(outside.join("secret"), path(TREE).join("file")).unwrap();
    save(&mut || true).unwrap();
    let data = fs::read_dir(archive()).unwrap().map(|entry| entry.unwrap().path());
    assert_eq!(data.filter(|file| file.extension().unwrap() == "data").count(), 0);
    fs::remove_dir_all(path(TREE)).unwrap();
    restore().finish().expect(0);
    assert_eq!(fs::read_link(path(TREE).join("directory")).unwrap(), outside);
}

fn mounts_are_not_crossed() {
    fs::create_dir_all(path(TREE).join("inside")).unwrap();
    fs::create_dir(path("other")).unwrap();
    fs::write(path("other/file"), "other").unwrap();
    let inside = path(TREE).join("inside");
    let target = inside.to_str().unwrap();
    // A bind mount has the same device.
    for (source, kind, flags) in [("tmpfs", "tmpfs", 0), ("/dev/shm/other", "", libc::MS_BIND)] {
        mount(source, target, kind, flags, "").unwrap();
        let refused = save(&mut || true);
        assert!(
            matches!(&refused, Err(SaveError::Unfit(why)) if why.contains("another mount")),
            "{refused:?}"
        );
        assert_eq!(fs::read_dir(archive()).unwrap().count(), 0);
        nix::mount::umount(&inside).unwrap();
    }
    save(&mut || true).unwrap();
}

/// Nothing half is left.
fn stopped_half_way() {
    make_tree();
    for stop in 0..8 {
        let mut left = stop;
        let stopped = save(&mut || {
            left -= 1;
            left >= 0
        });
        assert!(matches!(stopped, Err(SaveError::Opened)), "{stop}: {stopped:?}");
        assert_eq!(fs::read_dir(archive()).unwrap().count(), 0, "{stop}");
    }
}

fn too_deep() {
    let mut place = path(TREE);
    fs::create_dir(&place).unwrap();
    for _ in 0..65 {
        place.push("d");
        fs::create_dir(&place).unwrap();
    }
    let refused = save(&mut || true);
    assert!(
        matches!(&refused, Err(SaveError::Unfit(why)) if why.contains("levels")),
        "{refused:?}"
    );
    fs::remove_dir(&place).unwrap();
    save(&mut || true).unwrap();
}

/// What was put together of a tree whose last file is damaged goes again.
fn damaged_tree_leaves_nothing() {
    make_tree();
    let entry = save(&mut || true).unwrap();
    fs::remove_dir_all(path(TREE)).unwrap();
    let data = |number: usize| archive().join(format!("{entry}.{number}.data"));
    let last = (0..5).rev().map(data).find(|file| file.metadata().unwrap().len() == 5_000).unwrap();
    let file = File::options().write(true).open(last).unwrap();
    file.write_all_at(b"x", 4_999).unwrap();
    let report = restore().finish().expect(3).json();
    let (outcome, says) = became(&report, TREE);
    assert_eq!(outcome, "refused", "{report:#}");
    assert!(says.contains("checksum"), "{report:#}");
    exactly(&[]);
}
