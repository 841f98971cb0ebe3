//! The Pythons of this machine.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::sandbox::{self, everybody_reaches};
use super::{Finish, scratch};

/// An interpreter with `multiprocessing.shared_memory`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Python {
    /// E.g. `(3, 13, 0)`.
    pub(crate) version: (u32, u32, u32),
    /// The executable, with links resolved.
    pub(crate) path: PathBuf,
    /// Where its libraries are, if not where they were installed.
    libraries: Option<PathBuf>,
}

/// Every interpreter of version 3.8 or later on the `PATH`, in /usr/bin, /usr/local/bin and among
/// pyenv's, oldest first, each once however many names it has.
pub(crate) fn pythons() -> Vec<Python> {
    let mut places: Vec<PathBuf> =
        env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    places.extend(["/usr/bin".into(), "/usr/local/bin".into()]);
    let home = env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    if let Some(root) = env::var_os("PYENV_ROOT").map(PathBuf::from).or(home) {
        let versions = fs::read_dir(root.join("versions")).into_iter().flatten().flatten();
        places.extend(versions.map(|entry| entry.path().join("bin")));
        // pyenv's shims are scripts that choose one of these.
        places.retain(|place| *place != root.join("shims"));
    }
    let mut found = BTreeMap::new();
    for place in places {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let minor = name.to_str().and_then(|name| name.strip_prefix("python3"));
            let is_python = minor.is_some_and(|minor| {
                let digits = minor.strip_prefix('.').unwrap_or(minor);
                digits.bytes().all(|byte| byte.is_ascii_digit())
            });
            let path = if is_python { fs::canonicalize(entry.path()).ok() } else { None };
            if let Some(path) = path {
                found.entry(path).or_insert_with_key(|path| version(Command::new(path)));
            }
        }
    }
    let mut pythons: Vec<Python> = found
        .into_iter()
        .filter_map(|(path, version)| Some(Python { version: version?, path, libraries: None }))
        .collect();
    pythons.sort();
    pythons
}

/// The version of `python`, if it is one that has shared memory.
fn version(mut python: Command) -> Option<(u32, u32, u32)> {
    let asks = "import sys, multiprocessing.shared_memory; print(*sys.version_info[:3])";
    let output = python.args(["-I", "-c", asks]).stderr(Stdio::null()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next()??))
}

impl Python {
    /// The same interpreter where every user can run it. One that lies under a directory that
    /// others cannot enter (pyenv in root's home) appears below the scratch directory, by a bind
    /// mount in the case's own mount namespace. Nothing if it cannot be run there.
    pub(crate) fn for_everybody(&self) -> Option<Self> {
        if everybody_reaches(&self.path) {
            return Some(self.clone());
        }
        let prefix = self.path.parent()?.parent()?;
        let (major, minor, patch) = self.version;
        let place = scratch().join(format!("python-{major}.{minor}.{patch}"));
        if !place.exists() {
            fs::create_dir(&place).unwrap();
            let (prefix, place) = (prefix.to_str()?, place.to_str()?);
            sandbox::mount(prefix, place, "", libc::MS_BIND, "").ok()?;
        }
        let path = place.join(self.path.strip_prefix(prefix).ok()?);
        let moved = Self { path, libraries: Some(place.join("lib")), ..self.clone() };
        (version(moved.command())? == self.version).then_some(moved)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.envs(self.libraries.as_ref().map(|path| ("LD_LIBRARY_PATH", path)));
        command
    }

    /// The interpreter with a program, not yet started.
    pub(crate) fn program(&self, source: &str) -> Command {
        let mut command = self.command();
        command.args(["-c", source]);
        command
    }

    /// The interpreter with a program in a file, as spawned children need it; not yet started.
    pub(crate) fn script(&self, path: &Path) -> Command {
        let mut command = self.command();
        command.arg(path);
        command
    }

    /// Whether user `uid` can run it (needs real root).
    pub(crate) fn runs_as(&self, uid: u32) -> bool {
        let mut command = self.program("import multiprocessing.shared_memory");
        command.as_user(uid).finish().code == Some(0)
    }
}

impl std::fmt::Display for Python {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor, patch) = self.version;
        write!(f, "{major}.{minor}.{patch}")
    }
}
