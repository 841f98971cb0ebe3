//! When processes started, in the time that files are born by, and how far that can be trusted.
//!
//! A process starts in boot time, a file is born in wall time. A wall clock that was set forward
//! since (the first NTP step, a resumed virtual machine) makes every older process look younger
//! than it is. So times may only weaken a claim: a process counts as started after a birth only by
//! a margin of one second and the net step of the wall clock since boot, and where that step
//! cannot be known no process counts so at all.

use super::mounts::Mounts;
use crate::tracker::host::Host;
use crate::tracker::sys::{self, Nanoseconds};

const SECOND: Nanoseconds = 1_000_000_000;

/// The coarse clock of births and the ticks of start times stay well below this.
const LEAST_MARGIN: Nanoseconds = SECOND;

/// What the clocks said at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Clocks {
    /// The wall time now.
    pub now: Nanoseconds,
    /// The wall time, by today's clock, at which the machine booted.
    pub boot: Nanoseconds,
    /// Clock ticks a second, the unit of start times.
    pub ticks: u64,
    /// By how much a start must lie after a birth to count; `None` when no margin is enough.
    pub margin: Option<Nanoseconds>,
}

impl Clocks {
    /// Reads the clocks of `host`.
    #[must_use]
    pub fn read(host: &Host, mounts: &Mounts) -> Self {
        let now = (host.clock.wall)();
        let boot = now - (host.clock.since_boot)();
        Self { now, boot, ticks: procfs::ticks_per_second(), margin: margin(host, mounts, boot) }
    }

    /// The wall time, by today's clock, at which a process started.
    #[must_use]
    pub fn started(&self, start_ticks: u64) -> Nanoseconds {
        self.boot + i128::from(start_ticks) * SECOND / i128::from(self.ticks.max(1))
    }

    /// Whether a process that started at `start_ticks` provably started after `birth`.
    #[must_use]
    pub fn started_after(&self, start_ticks: u64, birth: Option<Nanoseconds>) -> bool {
        match (self.margin, birth) {
            (Some(margin), Some(birth)) => self.started(start_ticks) > birth + margin,
            _ => false,
        }
    }
}

/// One second and the net step of the wall clock since boot: devtmpfs is born while the kernel
/// boots, so its birth is the boot moment by the clock of then.
fn margin(host: &Host, mounts: &Mounts, boot: Nanoseconds) -> Option<Nanoseconds> {
    let devtmpfs = mounts.at(b"/dev").is_some_and(|mount| mount.fstype == b"devtmpfs");
    if !devtmpfs || !boot_time_is_the_machines(host) {
        return None;
    }
    let dev = std::fs::File::open("/dev").ok()?;
    let born = sys::stat(&dev, c"").ok()?.born?;
    Some(LEAST_MARGIN + (boot - born).abs())
}

/// In a time namespace the boot time is not the machine's.
fn boot_time_is_the_machines(host: &Host) -> bool {
    match host.read_proc("self/timens_offsets") {
        Ok(text) => String::from_utf8_lossy(&text)
            .lines()
            .all(|line| line.split_whitespace().skip(1).all(|offset| offset == "0")),
        // A kernel without time namespaces has no such file.
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_start_beyond_the_margin_is_after_a_birth() {
        let clocks = Clocks {
            now: 2_000 * SECOND,
            boot: 1_000 * SECOND,
            ticks: 100,
            margin: Some(2 * SECOND),
        };
        assert_eq!(clocks.started(50), 1_000 * SECOND + SECOND / 2);
        for (ticks, birth, after) in [
            (10_000, Some(1_100 * SECOND), false),
            (10_200, Some(1_100 * SECOND), false),
            (10_201, Some(1_100 * SECOND), true),
            (99_000, None, false),
        ] {
            assert_eq!(clocks.started_after(ticks, birth), after, "{ticks}");
        }
        let blind = Clocks { margin: None, ..clocks };
        assert!(!blind.started_after(1_000_000, Some(1_001 * SECOND)));
    }
}
