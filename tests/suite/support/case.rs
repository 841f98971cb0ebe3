//! Cases, and how they become the tests of libtest-mimic.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio, exit};
use std::sync::{Mutex, PoisonError, RwLock};

use libtest_mimic::{Arguments, Completion, Failed, Trial};

use super::sandbox;

/// What a case cannot do without. Where it is not to be had, the case is skipped, loudly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Root of the first user namespace, to become other users.
    RealRoot,
    /// A PID namespace of its own, with a /proc of its own.
    PidNamespace,
    /// A Python from 3.8 on.
    Python,
    /// No other case at the same time: a live Python or tracker of another one is evidence too.
    Alone,
    /// /dev/fuse, and the right to mount it.
    Fuse,
}

/// One test.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// The name, without that of its module.
    pub(crate) name: &'static str,
    /// What it needs.
    pub(crate) needs: &'static [Need],
    /// After how many seconds the watchdog ends it.
    pub(crate) seconds: u64,
    /// The test itself: it panics when something is wrong.
    pub(crate) body: fn(),
}

/// A case that needs nothing special.
pub(crate) const fn case(name: &'static str, body: fn()) -> Case {
    Case { name, needs: &[], seconds: 120, body }
}

impl Case {
    /// The same case with needs.
    pub(crate) const fn needs(self, needs: &'static [Need]) -> Self {
        Self { needs, ..self }
    }

    /// The same case with another bound than 120 s.
    pub(crate) const fn seconds(self, seconds: u64) -> Self {
        Self { seconds, ..self }
    }
}

/// The exit status of a case that could not run.
pub(super) const SKIPPED: i32 = 77;
const SKIP_MARK: &str = "SKIPPED: ";
const NOTE_MARK: &str = "NOTE: ";

/// Ends the case: what it needs is not to be had here.
pub(crate) fn skip(reason: impl std::fmt::Display) -> ! {
    println!("{SKIP_MARK}{reason}");
    exit(SKIPPED)
}

/// A line for the summary at the end of the run, e.g. how many interpreters there were.
pub(crate) fn note(text: impl std::fmt::Display) {
    println!("{NOTE_MARK}{text}");
}

/// The case called `MODULE::NAME`.
pub(super) fn find(full_name: &str) -> Case {
    let hidden: crate::Module = ("harness", crate::harness::hidden);
    crate::MODULES
        .iter()
        .chain([&hidden])
        .flat_map(|(module, tests)| tests().into_iter().map(move |case| (module, case)))
        .find(|(module, case)| format!("{module}::{}", case.name) == full_name)
        .map(|(_, case)| case)
        .unwrap_or_else(|| panic!("no case is called {full_name}"))
}

/// What the summary tells: skipped cases and notes, by name.
static SUMMARY: Mutex<BTreeSet<(String, String)>> = Mutex::new(BTreeSet::new());
/// Written by a case that runs alone, read by the others.
static ALONE: RwLock<()> = RwLock::new(());

/// Runs what the command line asks for and prints what was skipped, and why, on stderr.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::from_args();
    let directory = sandbox::prepare();
    let trials: Vec<Trial> = crate::MODULES
        .iter()
        .flat_map(|(module, tests)| tests().into_iter().map(move |case| (module, case)))
        .map(|(module, case)| {
            let name = format!("{module}::{}", case.name);
            let environment = directory.environment();
            Trial::ignorable_test(name.clone(), move || execute(&name, &case, &environment))
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    drop(directory);
    let summary = SUMMARY.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, text) in &*summary {
        eprintln!("{name}: {text}");
    }
    let skipped = summary.iter().filter(|(_, text)| text.starts_with(SKIP_MARK)).count();
    if skipped > 0 {
        eprintln!(
            "{skipped} of {} tests were SKIPPED, see above",
            conclusion.num_passed + conclusion.num_ignored + conclusion.num_failed
        );
    }
    conclusion.exit_code()
}

/// Runs one case in a process of its own; its output is shown when it failed.
fn execute(name: &str, case: &Case, environment: &[(&str, String)]) -> Result<Completion, Failed> {
    let is_alone = case.needs.contains(&Need::Alone);
    let _alone = is_alone.then(|| ALONE.write().unwrap_or_else(PoisonError::into_inner));
    let _beside_others = (!is_alone).then(|| ALONE.read().unwrap_or_else(PoisonError::into_inner));
    // A process group of its own: Ctrl-C reaches this process only, and its end the supervisor.
    // Files and no pipes: what a case leaves behind, and what cannot even be killed, would hold those open.
    let (mut stdout, mut stderr) = (tempfile(name, "stdout")?, tempfile(name, "stderr")?);
    let status = Command::new("/proc/self/exe")
        .args(["__case", name])
        .envs(environment.iter().map(|(key, value)| (key, value)))
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .status()?;
    let (stdout, stderr) = (text(&mut stdout)?, text(&mut stderr)?);
    let mut reason = None;
    for line in stdout.lines() {
        if line.starts_with(SKIP_MARK) || line.starts_with(NOTE_MARK) {
            let mut summary = SUMMARY.lock().unwrap_or_else(PoisonError::into_inner);
            summary.insert((name.to_owned(), line.to_owned()));
        }
        reason = line.strip_prefix(SKIP_MARK).or(reason);
    }
    match (status.code(), reason) {
        (Some(0), _) => Ok(Completion::Completed),
        (Some(SKIPPED), Some(reason)) => Ok(Completion::ignored_with(reason)),
        _ => Err(Failed::from(format!("{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}",))),
    }
}

/// A file without a name.
fn tempfile(name: &str, what: &str) -> io::Result<File> {
    let path = std::env::temp_dir().join(format!("rtrack-{}-{name}-{what}", std::process::id()));
    let file = File::options().read(true).append(true).create_new(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}

/// All that was written to it.
fn text(file: &mut File) -> io::Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
