//! Which tracker `send` and `probe` talk to.

use std::path::PathBuf;

use anyhow::anyhow;

use super::error::{CommandError, Kind};
use crate::tracker::service::client::{ConnectionError, SOCKET_VARIABLE, Target, TargetError};

/// The options that name a tracker
#[derive(Debug, clap::Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// The tracker whose pipe is open for writing as descriptor N; $RTRACK_FD if not given
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(0..))]
    pub fd: Option<i32>,

    /// The tracker that listens on this socket; $RTRACK_SOCKET if neither this nor $RTRACK_FD is given
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,

    /// The tracker that is process PID
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(i32).range(1..))]
    pub pid: Option<i32>,
}

impl TargetArgs {
    /// The socket that the options name, or else the environment.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        if self.socket.is_some() || self.fd.is_some() || self.pid.is_some() {
            return self.socket.clone();
        }
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        if set("RTRACK_FD").is_some() { None } else { set(SOCKET_VARIABLE).map(PathBuf::from) }
    }

    /// Opens the pipe that the options, or else `$RTRACK_FD`, name.
    ///
    /// # Errors
    /// Outside: nothing names one. Inside: it cannot be reached.
    pub fn open(&self) -> Result<Result<Target, TargetError>, CommandError> {
        if let Some(pid) = self.pid {
            return Ok(Target::of_process(pid));
        }
        let fd = match (self.fd, std::env::var_os("RTRACK_FD")) {
            (Some(fd), _) => fd,
            (None, Some(text)) if !text.is_empty() => text
                .to_str()
                .and_then(|text| text.parse().ok())
                .filter(|fd| *fd >= 0)
                .ok_or_else(|| {
                    CommandError::usage(format!("RTRACK_FD is {text:?}, which is no descriptor"))
                })?,
            _ => {
                return Err(CommandError::usage("which tracker is not said").hint(
                    "name it by --fd N, --socket PATH, --pid PID, $RTRACK_FD or $RTRACK_SOCKET",
                ));
            }
        };
        Ok(Target::inherited(fd))
    }
}

/// The error with its exit status and hint, where the tracker had to be reached.
pub fn unreachable(error: TargetError) -> CommandError {
    let (kind, hint) = match &error {
        TargetError::NoProcess(_) | TargetError::Dead => (Kind::No, None),
        TargetError::NotATracker { .. } => {
            (Kind::Failed, Some("give the pid of the tracker itself, not that of its client"))
        }
        TargetError::NotOpen(_) | TargetError::NotAPipe(_) | TargetError::NotWritable(_) => {
            (Kind::Failed, Some("open the writing end of the tracker's pipe, e.g. exec 5>FIFO"))
        }
        TargetError::Hidden(_) => {
            (Kind::Failed, Some("only the tracker's own user and root can open its pipe"))
        }
        TargetError::Os { error, .. } if error.kind() == std::io::ErrorKind::PermissionDenied => {
            (Kind::Failed, Some("only the tracker's own user and root can open its pipe"))
        }
        TargetError::NoPipe(_) | TargetError::MayHang(_) | TargetError::Os { .. } => {
            (Kind::Failed, None)
        }
    };
    let result = CommandError::new(kind, anyhow!(error));
    match hint {
        Some(hint) => result.hint(hint),
        None => result,
    }
}

/// The error with its exit status and hint, where a tracker on a socket was spoken to.
pub fn not_told(error: ConnectionError) -> CommandError {
    let (kind, hint) = match &error {
        ConnectionError::Dead { .. } => {
            (Kind::No, Some("start one there: rtrack daemon --listen PATH"))
        }
        ConnectionError::Encode(_) => (Kind::Usage, None),
        ConnectionError::Io { error, .. }
            if error.kind() == std::io::ErrorKind::PermissionDenied =>
        {
            (Kind::Failed, Some("the permissions of the socket say who may register"))
        }
        _ => (Kind::Failed, None),
    };
    let result = CommandError::new(kind, error);
    match hint {
        Some(hint) => result.hint(hint),
        None => result,
    }
}
