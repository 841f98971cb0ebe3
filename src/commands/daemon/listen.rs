//! The tracker on a socket.

use std::path::{Path, PathBuf};

use super::{DaemonArgs, PatientStderr, Records, not_started};
use crate::commands::Status;
use crate::commands::error::CommandError;
use crate::tracker::service::channel;
use crate::tracker::service::control::Control;
use crate::tracker::service::ledger::{Inheritance, Ledger};
use crate::tracker::service::listener::{self, BindError, Bound, Limits, Options};
use crate::tracker::service::server::Recorder;
use crate::tracker::sys::image::unmap_used_code;

/// The options of a tracker that listens
#[derive(Debug, Default, PartialEq, Eq, clap::Args)]
pub(super) struct ListenArgs {
    /// Listen on a unix socket of this name instead: what a client registered is removed when its process is
    /// gone, with the rights of its user. SIGTERM and SIGINT remove what is left and end the daemon. A socket
    /// that a service manager passes (LISTEN_FDS) is taken in its place
    #[arg(long, value_name = "PATH")]
    pub(super) listen: Option<PathBuf>,

    /// The permissions of the socket; 0666 if root listens, else 0600
    #[arg(long, value_name = "MODE", value_parser = mode, requires = "listen")]
    socket_mode: Option<u32>,

    /// How many clients there may be at a time, 4096 if not given; half of them of one user other than root
    #[arg(long, value_name = "N", value_parser = number, requires = "listen")]
    max_clients: Option<usize>,

    /// How many names a client may have registered at a time, 65536 if not given; twice as many one user
    #[arg(long, value_name = "N", value_parser = number, requires = "listen")]
    max_registrations: Option<usize>,
}

fn mode(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| mode & !0o777 == 0)
        .ok_or_else(|| "permissions in octal, such as 0660".to_owned())
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "a number from 1 on".to_owned())
}

/// Listens; nothing else stays open but stderr.
pub(super) fn bind(path: &Path, args: &DaemonArgs) -> Result<Bound, CommandError> {
    listener::block_signals()
        .map_err(|error| not_started(anyhow::Error::new(error).context("set up signals")))?;
    let root = nix::unistd::geteuid().is_root();
    let mode = args.listen.socket_mode.unwrap_or(if root { 0o666 } else { 0o600 });
    let bound = Bound::new(path, mode).map_err(|error| {
        let hint = match &error {
            BindError::InUse(_) => Some("end that daemon first, or choose another name"),
            BindError::NotASocket(_) => Some("choose another name"),
            BindError::Passed | BindError::Io { .. } => None,
        };
        let error = not_started(error.into());
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    })?;
    let failed = |what: &'static str| {
        move |error: std::io::Error| not_started(anyhow::Error::new(error).context(what))
    };
    let ready = args.ready_fd.map(channel::copy).transpose();
    let ready = ready.map_err(failed("say that it is ready"))?;
    bound
        .let_go_of_everything_else(ready.as_ref(), args.reports_to_stdout())
        .map_err(failed("close what was inherited"))?;
    ready.map(channel::tell).transpose().map_err(failed("say that it is ready"))?;
    Ok(bound)
}

/// Serves to the end.
pub(super) fn run(
    bound: Bound,
    args: &DaemonArgs,
    messages: &mut PatientStderr,
    mut records: Records,
    control: Option<&Control>,
    ledger: (&mut Ledger, Inheritance),
) -> Result<Status, CommandError> {
    let limits = Limits {
        clients: args.listen.max_clients.unwrap_or(4096),
        registrations: args.listen.max_registrations.unwrap_or(65536),
    };
    // Two for each client, its connection and its process, and one for each process that others registered for.
    let heirs = ledger.1.heirs.len();
    raise_limit_of_descriptors(3 * limits.clients + heirs + 256);
    let options = Options {
        dialect: args.protocol,
        verbose: args.verbose,
        warnings: !args.no_warnings,
        limits,
        care: args.care(),
    };
    let mut tell = |told| records.take(told);
    let recorder: Option<Recorder<'_>> =
        if args.audit.is_some() || args.report.is_some() { Some(&mut tell) } else { None };
    unmap_used_code();
    let status = listener::run(bound.listener(), options, messages, recorder, control, ledger)
        .map_err(|error| CommandError::from(anyhow::Error::new(error).context("serve clients")))?;
    // The next daemon replaces a name that stays.
    bound.close().unwrap_or(());
    Ok(status.code())
}

/// As far as that goes: clients beyond it are turned away.
fn raise_limit_of_descriptors(wanted: usize) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let wanted = wanted.try_into().unwrap_or(u64::MAX);
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
        && soft < wanted
    {
        setrlimit(Resource::RLIMIT_NOFILE, wanted.min(hard), hard).unwrap_or(());
    }
}
