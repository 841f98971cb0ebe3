//! The report of what was left, which never keeps the daemon from its work, as the record does not.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;
use serde_json::Value;

use super::patience::{OPENING, Trouble, WRITING, within};
use crate::tracker::resource::{escape, harmless};
use crate::tracker::service::leaks::{self, Care};
use crate::tracker::service::server::Told;
use crate::tracker::sys;

/// Appending, never waiting for the other end of a FIFO, and neither through a link nor a terminal of this
/// process's own.
const FLAGS: OFlag = OFlag::O_WRONLY
    .union(OFlag::O_APPEND)
    .union(OFlag::O_CREAT)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC)
    .union(OFlag::O_NONBLOCK)
    .union(OFlag::O_NOCTTY);

/// The report, as long as nothing has gone wrong with it.
pub(super) struct Report {
    shown: String,
    file: Option<Arc<OwnedFd>>,
    care: Care,
    /// Each owner gets a line when it ends; else there is one document, at the end.
    lines: bool,
    /// What the document is going to have in it.
    leaks: Vec<Value>,
}

impl Report {
    /// Opens it, and says what went wrong with that. `-` is standard output.
    pub(super) fn open(path: &Path, care: Care, lines: bool) -> (Self, Option<String>) {
        let (shown, opened) = if path.as_os_str() == "-" {
            let open =
                if sys::was_open_at_start(1) { duplicate() } else { Err(Errno::EBADF.into()) };
            ("standard output".to_owned(), open.map_err(Trouble::Failed))
        } else {
            let path = path.to_owned();
            let shown = escape(path.as_os_str().as_encoded_bytes());
            let make = move || {
                let file = open(&path, FLAGS, Mode::S_IRUSR | Mode::S_IWUSR)?;
                Ok::<_, io::Error>(file)
            };
            (shown, within(OPENING, "report", make))
        };
        let mut report = Self { shown, file: None, care, lines, leaks: Vec::new() };
        let warning = match opened {
            Ok(file) => {
                report.file = Some(Arc::new(file));
                None
            }
            Err(error) => Some(report.warning(&error, "open", "nothing is reported")),
        };
        (report, warning)
    }

    /// Takes removals in, writes what is to be written by now, and says what went wrong with that. Nothing more
    /// is written then.
    pub(super) fn take(&mut self, told: &Told) -> Option<String> {
        self.file.as_ref()?;
        let leaks = told.removals.iter().filter(|removal| leaks::is_leak(removal));
        self.leaks.extend(leaks.map(leaks::leak));
        let is_due = if self.lines { !self.leaks.is_empty() } else { told.end };
        if !is_due {
            return None;
        }
        let leaks = std::mem::take(&mut self.leaks);
        let document = leaks::document(told.owner.as_ref(), self.care, leaks);
        let text = match self.lines {
            true => format!("{document}\n"),
            false => format!("{document:#}\n"),
        };
        let (text, file) = (harmless(&text).into_owned(), self.file.take()?);
        match within(WRITING, "report", move || write(&file, text.as_bytes()).map(|()| file)) {
            Ok(file) => {
                self.file = Some(file);
                None
            }
            Err(error) => Some(self.warning(&error, "write", "not everything is reported")),
        }
    }

    fn warning(&self, error: &Trouble<io::Error>, operation: &str, says: &str) -> String {
        let shown = &self.shown;
        match error {
            Trouble::Failed(error) => format!("report {shown}: {operation}: {error}: {says}"),
            Trouble::Late => format!("report {shown}: no answer in time: {says}"),
            Trouble::Thread(error) => format!("report {shown}: make a thread: {error}: {says}"),
        }
    }
}

/// Standard output, which is others' as well: whether it waits is not changed.
fn duplicate() -> io::Result<OwnedFd> {
    let stdout = io::stdout();
    let flags = OFlag::from_bits_retain(fcntl(&stdout, FcntlArg::F_GETFL)?);
    if flags & OFlag::O_ACCMODE == OFlag::O_RDONLY {
        return Err(Errno::EBADF.into());
    }
    stdout.as_fd().try_clone_to_owned()
}

/// Writes all of it, in one piece where the file takes it so. A line that the file has a part of only is ended:
/// whoever appends next must not add to it.
fn write(file: &Arc<OwnedFd>, text: &[u8]) -> io::Result<()> {
    let began = Instant::now();
    let mut rest = text;
    while !rest.is_empty() {
        match nix::unistd::write(file, rest) {
            Ok(length) => rest = rest.get(length..).unwrap_or_default(),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let left = WRITING.saturating_sub(began.elapsed());
                if left.is_zero() {
                    return Err(Errno::EAGAIN.into());
                }
                let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                let mut room = [PollFd::new(file.as_fd(), PollFlags::POLLOUT)];
                // Whatever it answers, the write tells.
                poll(&mut room, timeout).map(drop).unwrap_or(());
            }
            Err(errno) => {
                let is_file = file.try_clone().map(File::from).and_then(|file| file.metadata());
                if rest.len() < text.len() && is_file.is_ok_and(|meta| meta.is_file()) {
                    // On a full disk there may be no room for this either.
                    nix::unistd::write(file, b"\n").map(drop).unwrap_or(());
                }
                return Err(errno.into());
            }
        }
    }
    Ok(())
}
