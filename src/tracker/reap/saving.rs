//! Saving an object before its name goes.

use std::os::fd::{AsFd, BorrowedFd};

use super::directories::open_here;
use super::objects::{Steps, Target, changed, refusal};
use super::{Outcome, Report};
use crate::tracker::archive::SaveError;
use crate::tracker::evidence::lease::{self, LeaseError, Leased, Watch};
use crate::tracker::host::Host;
use crate::tracker::sys::{self, Stat};

/// Has the object saved under its lease. Where that takes long the processes are looked at again,
/// which nobody who opens it may have to wait for.
pub(super) fn save_leased(
    host: &Host,
    leased: &Leased,
    steps: &mut dyn Steps,
) -> Result<(), Report> {
    if !steps.saves() {
        return Ok(());
    }
    steps.save(leased.as_fd(), &mut || leased.is_whole()).map_err(not_saved)?;
    if steps.is_old() {
        leased.without(host, || steps.look_again()).map_err(|error| match error {
            LeaseError::Held => opened_while_saved(),
            error => refusal(error),
        })?;
    }
    let now = leased.stat().map_err(|error| Report::failed("statx", &error))?;
    steps.judge(&now).map_err(|why| Report::new(Outcome::Refused, why))
}

/// The same without a lease: a watch tells of who opens it.
pub(super) fn save_unleased(
    host: &Host,
    target: &Target<'_>,
    judged: &Stat,
    steps: &mut dyn Steps,
) -> Result<(), Report> {
    if !steps.saves() {
        return Ok(());
    }
    if !judged.is_file() {
        return Err(not_saved(SaveError::Unfit("only files have content to save".into())));
    }
    let file =
        lease::open_expected(host, host.shm(), target.file, &target.identity).map_err(refusal)?;
    let watched = |error| Report::failed("watch it", &error);
    let watch = Watch::on(host, file.as_fd()).map_err(watched)?;
    let quiet = || watch.is_quiet().unwrap_or(false);
    steps.save(file.as_fd(), &mut || quiet()).map_err(not_saved)?;
    if steps.is_old() {
        steps.look_again();
    }
    if !watch.is_quiet().map_err(watched)? {
        return Err(opened_while_saved());
    }
    let now = sys::stat(&file, c"").map_err(|error| Report::failed("statx", &error))?;
    steps.judge(&now).map_err(|why| Report::new(Outcome::Refused, why))
}

fn opened_while_saved() -> Report {
    Report::new(Outcome::OpenedMeanwhile, "somebody opened it while it was saved")
}

fn not_saved(error: SaveError) -> Report {
    match error {
        SaveError::Opened => opened_while_saved(),
        SaveError::Changed | SaveError::Unfit(_) => {
            Report::new(Outcome::Refused, error.to_string())
        }
        SaveError::Io { step, source } => {
            Report { of_archive: true, ..Report::failed(&format!("save it: {step}"), &source) }
        }
    }
}

/// A directory: nothing tells of who opens what in it, so it is looked at anew afterwards.
pub(super) fn save_directory(
    host: &Host,
    target: &Target<'_>,
    steps: &mut dyn Steps,
) -> Result<(), Report> {
    let failed = |error: std::io::Error| Report::failed("open it", &error);
    let dir =
        open_here(host.shm(), target.file.as_os_str()).map_err(|errno| failed(errno.into()))?;
    if !target.identity.is(&sys::stat(&dir, c"").map_err(failed)?) {
        return Err(changed());
    }
    steps.save(dir.as_fd(), &mut || true).map_err(not_saved)?;
    drop(dir);
    if steps.is_old() {
        steps.look_again();
    }
    Ok(())
}

/// A directory that lies in `place` now, where nobody comes: it has to be what was saved.
pub(super) fn check_directory(
    place: BorrowedFd<'_>,
    target: &Target<'_>,
    steps: &mut dyn Steps,
) -> Result<(), Report> {
    let dir = open_here(place, target.file.as_os_str())
        .map_err(|errno| Report::failed("open it", &errno.into()))?;
    match steps.is_saved(dir.as_fd()) {
        Ok(true) => Ok(()),
        Ok(false) => Err(opened_while_saved()),
        Err(error) => Err(not_saved(error)),
    }
}
