//! The reapers that race: the program, its engine, and some that are broken, each in one way.

use std::fs;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rtrack::tracker::evidence::lease::{self, Leased};
use rtrack::tracker::host::Host;
use rtrack::tracker::reap::{Fate, Manner, Reaper, Steps, Target, Witness};
use rtrack::tracker::resource::{Identity, Name};
use rtrack::tracker::sys::{self, Stat};
use serde_json::Value;

use super::{Done, objects};

/// Which reaper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// `rtrack reap`, started again and again.
    Rtrack,
    /// The engine by itself, which removes objects at a higher rate.
    Engine,
    /// Broken: `unlink` and nothing else.
    PlainUnlink,
    /// Broken: moves each object away before it unlinks it, but leases none.
    NoLease,
    /// Broken: sees that somebody opens what it has moved away, and does not put it back.
    NoPutBack,
    /// Broken: puts an object back even over a newer one of its name.
    PutBackOver,
    /// Broken: saves the content when the name is gone already.
    ArchiveAfterRename,
}

impl Kind {
    /// Whether it has to violate something.
    fn is_broken(self) -> bool {
        !matches!(self, Self::Rtrack | Self::Engine)
    }
}

/// Where broken reapers move objects.
const AWAY: &str = "/dev/shm/.away";

/// A reaper at work.
pub(super) struct Reapers {
    kind: Kind,
    program: PathBuf,
    host: Host,
}

impl Reapers {
    pub(super) fn new(kind: Kind, program: &Path) -> Self {
        if kind.is_broken() {
            fs::create_dir(AWAY).unwrap();
        }
        Self { kind, program: program.into(), host: Host::real().unwrap() }
    }

    /// Removes what nobody holds of all objects, once.
    pub(super) fn pass(&self, done: &mut Done) {
        match self.kind {
            Kind::Rtrack => self.run(done),
            Kind::Engine => self.engine(done),
            kind => {
                for name in objects() {
                    if let Some((inode, outcome)) = self.broken(kind, &name) {
                        done.add(inode, outcome);
                    }
                }
                // As the program has a pause between two runs.
                thread::sleep(Duration::from_micros(200));
            }
        }
    }

    /// Removes what is left when nobody holds anything any more, what an earlier pass had to leave
    /// included, unless the reaper is broken.
    pub(super) fn finish(&self, done: &mut Done) {
        if !self.kind.is_broken() {
            self.run(done);
        }
    }

    fn run(&self, done: &mut Done) {
        let mut command = Command::new(&self.program);
        command
            .args(["reap", "--yes", "--json", "--grace", "0s", "--no-audit"])
            .stdin(Stdio::null());
        let output = command.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)), "{}: {errors}", output.status);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        for object in report["objects"].as_array().unwrap() {
            let outcome = object["outcome"].as_str().unwrap();
            assert!(outcome != "failed", "{object:#}");
            done.add(object["ino"].as_u64().unwrap(), outcome);
        }
    }

    fn engine(&self, done: &mut Done) {
        let mut reaper = Reaper::new(&self.host, false);
        for name in objects() {
            let Some(stat) = self.stat(&name) else { continue };
            let target = Target {
                file: &Name::new(name),
                identity: Identity::of(&stat),
                manner: Manner::Leased,
                may_go_directly: false,
                tree: None,
                messages: None,
                force: false,
            };
            let report = reaper.remove(&target, &mut Always);
            assert!(report.errno.is_none(), "{report:?}");
            done.add(stat.ino, report.outcome.as_str());
        }
        let left = reaper.finish(&mut Unheard);
        assert!(left.iter().all(|(name, _)| name.to_lossy().contains("unlinked")), "{left:?}");
        thread::sleep(Duration::from_micros(200));
    }

    fn stat(&self, name: &str) -> Option<Stat> {
        let name = std::ffi::CString::new(name).unwrap();
        sys::stat(self.host.shm().as_fd(), &name).ok()
    }

    /// What a broken reaper does with one object: the inode and the outcome.
    fn broken(&self, kind: Kind, name: &str) -> Option<(u64, &'static str)> {
        let stat = self.stat(name)?;
        let (place, away) = (Path::new("/dev/shm").join(name), Path::new(AWAY).join(name));
        if kind == Kind::PlainUnlink {
            fs::remove_file(place).ok()?;
            return Some((stat.ino, "reaped"));
        }
        let leased = if kind == Kind::NoLease { None } else { Some(self.lease(name, &stat)?) };
        let whole = || leased.as_ref().is_none_or(Leased::is_whole);
        if !whole() {
            return Some((stat.ino, "opened-meanwhile"));
        }
        move_to(&place, &away).ok()?;
        if kind == Kind::ArchiveAfterRename {
            // What reading some megabytes by the leased descriptor takes.
            thread::sleep(Duration::from_millis(2));
        }
        if whole() {
            fs::remove_file(&away).unwrap();
            return Some((stat.ino, "reaped"));
        }
        match kind {
            Kind::PutBackOver => fs::rename(&away, &place).unwrap(),
            // A newer one has the name: this one counts as unlinked.
            _ if kind == Kind::NoPutBack || move_to(&away, &place).is_err() => {
                fs::remove_file(&away).unwrap();
            }
            _ => {}
        }
        Some((stat.ino, "opened-meanwhile"))
    }

    fn lease(&self, name: &str, stat: &Stat) -> Option<Leased> {
        lease::take(&self.host, self.host.shm(), &Name::new(name), &Identity::of(stat)).ok()
    }
}

/// Moves an object, unless the name is taken.
fn move_to(from: &Path, to: &Path) -> nix::Result<()> {
    renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)
}

/// Nobody is told of what is left behind.
struct Unheard;

impl Witness for Unheard {
    fn before(&mut self, _: &Name, _: &Name, _: &Stat) -> Result<(), String> {
        Ok(())
    }

    fn after(&mut self, _: &Name, _: &Name, _: &Stat, _: &Fate) {}
}

/// A judgement that never changes.
struct Always;

impl Steps for Always {
    fn judge(&mut self, _now: &Stat) -> Result<(), String> {
        Ok(())
    }
}
