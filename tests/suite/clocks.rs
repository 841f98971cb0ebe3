//! What clocks can and cannot show: a file is born by the wall clock, which can be set, and a
//! process starts by the time since boot.
//!
//! Where the clock is the matter, the engine runs in this process, with clocks that the case sets;
//! and a process's `stat` is covered by one that says when it shall have started.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use rtrack::tracker::host::{Clock, Host};
use rtrack::tracker::inventory;
use rtrack::tracker::survey::{Judging, Sought, Survey, Wanted};
use rtrack::tracker::verdict::Judgement;
use rtrack::tracker::world::World;

use crate::support::{
    Case, Finish, Need, case, hold, identity, inside, listed, mount, names, object, path, rtrack,
    scratch, skip, verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    const ALONE: &[Need] = &[Need::PidNamespace];
    vec![
        case("creators_as_young_as_their_files", creators_as_young_as_their_files).needs(ALONE),
        case("start_within_the_margin", start_within_the_margin).needs(ALONE),
        case("recycled_pid", recycled_pid).needs(ALONE),
        case("wall_clock_set_forward", wall_clock_set_forward).needs(ALONE),
        case("wall_clock_set_back", wall_clock_set_back).needs(ALONE),
        case("grace_by_the_age_as_seen", grace_by_the_age_as_seen).needs(ALONE),
        case("age_of_a_directory", age_of_a_directory).needs(ALONE),
        case("old_enough_only_afterwards", old_enough_only_afterwards).needs(ALONE),
        case("unknown_step_of_the_clock", unknown_step_of_the_clock).needs(ALONE),
        case("time_namespace", time_namespace).needs(ALONE),
    ]
}

const SECOND: i128 = 1_000_000_000;
/// A name of a producer whose live owners always hold its objects.
const ALWAYS_HELD: &str = "mpich_shar_tmpClock1";

/// By how much the wall clock of the engine in this process differs from the machine's, in
/// nanoseconds.
static WALL: AtomicI64 = AtomicI64::new(0);
/// If not 0, the time at which that clock stands still, in nanoseconds since 1970.
static STANDS_AT: AtomicI64 = AtomicI64::new(0);
/// By how much the time since boot of the engine differs, in nanoseconds.
static SINCE_BOOT: AtomicI64 = AtomicI64::new(0);

fn set(clock: &AtomicI64, nanoseconds: i128) {
    clock.store(nanoseconds.try_into().unwrap(), Ordering::Relaxed);
}

fn read(clock: ClockId) -> i128 {
    let time = clock_gettime(clock).unwrap();
    i128::from(time.tv_sec()) * SECOND + i128::from(time.tv_nsec())
}

/// The engine's clocks.
fn clock() -> Clock {
    Clock {
        wall: || match STANDS_AT.load(Ordering::Relaxed) {
            0 => read(ClockId::CLOCK_REALTIME) + i128::from(WALL.load(Ordering::Relaxed)),
            at => at.into(),
        },
        since_boot: || {
            read(ClockId::CLOCK_BOOTTIME) + i128::from(SINCE_BOOT.load(Ordering::Relaxed))
        },
    }
}

fn world() -> World {
    World::of(Host::open("/proc".as_ref(), "/dev/shm".as_ref(), clock()).unwrap())
}

fn survey(world: &World, grace: u64) -> Survey {
    let judging = Judging {
        grace: Duration::from_secs(grace),
        assume_complete: true,
        thorough: false,
        sought: Sought::All,
    };
    let wanted = Wanted { instead: &|_, _| true, unlinked: None };
    Survey::take(world, judging, Survey::begin(world).unwrap(), wanted)
}

/// What a survey in this process says of `name`, by the clocks that are set.
fn judge(world: &World, survey: &Survey, name: &str) -> Judgement {
    let wanted = |object: &inventory::Object| object.file.as_bytes() == name.as_bytes();
    survey.judge(world, survey.objects.iter().position(wanted).unwrap()).unwrap()
}

#[track_caller]
fn judged(name: &str, grace: u64, verdict: &str, reason: &str) {
    let world = world();
    let judgement = judge(&world, &survey(&world, grace), name);
    let found = (judgement.verdict.as_str(), judgement.reason.as_str());
    assert_eq!(found, (verdict, reason), "{name}: {judgement:#?}");
}

/// What the program itself says, by the machine's clocks.
#[track_caller]
fn told(name: &str, wanted: &str, reason: &str) {
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.finish().expect(0).json();
    assert_eq!(verdict(&document, name), (wanted, reason), "{document:#}");
}

fn reap() {
    let mut reap = rtrack(["reap", "--yes", "--grace", "0s", "--assume-complete"]);
    reap.args(["--verdict", "orphaned,unclaimed"]).finish().expect(0);
}

/// When a file was born, by the wall clock of then, in nanoseconds since 1970.
fn born(file: impl AsRef<std::path::Path>) -> i128 {
    let time = fs::symlink_metadata(file).unwrap().created().unwrap();
    time.duration_since(UNIX_EPOCH).unwrap().as_nanos().try_into().unwrap()
}

/// When the machine booted, by the wall clock of now.
fn boot() -> i128 {
    read(ClockId::CLOCK_REALTIME) - read(ClockId::CLOCK_BOOTTIME)
}

/// By how much the wall clock was set since boot, all in all; skips the case where it is not known.
fn net_step() -> i128 {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let dev = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some("/dev"));
    if !dev.is_some_and(|line| line.contains(" - devtmpfs ")) {
        skip("/dev is no devtmpfs: no process can be shown to be younger than an object");
    }
    let offsets = fs::read_to_string("/proc/self/timens_offsets").unwrap_or_default();
    if offsets.lines().any(|line| line.split_whitespace().skip(1).any(|offset| offset != "0")) {
        skip("in a time namespace no process can be shown to be younger than an object");
    }
    boot() - born("/dev")
}

/// A process that stays, and an object that names it as its creator.
struct Creator {
    process: Child,
    name: String,
}

impl Creator {
    fn new() -> Self {
        let process = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().unwrap();
        let name = format!("pym-{}-abcdefgh", process.id());
        object().make(&name);
        Self { process, name }
    }

    fn end(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// Has a process seem to have started `nanoseconds` after the moment from which on that is
/// provably later than the birth of `name`.
pub(crate) fn pretend_start(pid: u32, name: &str, nanoseconds: i128) {
    let provable = born(path(name)) + SECOND + net_step().abs();
    cover_stat(pid, provable + nanoseconds - boot());
}

/// Has a process seem to have started `since_boot` nanoseconds after boot.
fn cover_stat(pid: u32, since_boot: i128) {
    let place = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&place).unwrap();
    // The name, in parentheses, can hold anything: what follows the last one is fields, from the
    // third on.
    let (name, fields) = stat.rsplit_once(") ").unwrap();
    let mut fields: Vec<String> = fields.split(' ').map(str::to_owned).collect();
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).unwrap().unwrap();
    fields[22 - 3] = (since_boot * i128::from(ticks) / SECOND).to_string();
    let cover = scratch().join(format!("stat-{pid}"));
    fs::write(&cover, format!("{name}) {}", fields.join(" "))).unwrap();
    mount(cover.to_str().unwrap(), &place, "", libc::MS_BIND, "").unwrap();
}

/// Many creators, each no older than its file by the coarse clock of births.
fn creators_as_young_as_their_files() {
    let script = "umask 077; echo > /dev/shm/pym-$$-abcdefgh; exec sleep 1000";
    let mut creators: Vec<Child> =
        (0..100).map(|_| Command::new("sh").args(["-c", script]).spawn().unwrap()).collect();
    crate::support::wait_for("the files", || (names().len() == 100).then_some(()));
    let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let document = list.finish().expect(0).json();
    for creator in &creators {
        let name = format!("pym-{}-abcdefgh", creator.id());
        assert_eq!(listed(&document, &name)["creator"]["alive"], true, "{document:#}");
        assert_eq!(verdict(&document, &name), ("claimed", "creator-alive"), "{document:#}");
    }
    reap();
    assert_eq!(names().len(), 100);
    for creator in &mut creators {
        creator.kill().unwrap();
        creator.wait().unwrap();
    }
    reap();
    assert!(names().is_empty());
}

/// By a clock that was never set, a second is the margin, no less and no more.
fn start_within_the_margin() {
    net_step();
    let mut creator = Creator::new();
    let (birth, dev) = (born(path(&creator.name)), born("/dev"));
    // The machine booted when its /dev was born.
    set(&SINCE_BOOT, boot() - dev);
    for (after, verdict, reason) in [
        (-3600 * SECOND, "claimed", "creator-alive"),
        (0, "claimed", "creator-alive"),
        (SECOND / 250, "claimed", "creator-alive"),
        (SECOND * 9 / 10, "claimed", "creator-alive"),
        (SECOND * 11 / 10, "orphaned", "always-held-producer"),
        (3600 * SECOND, "orphaned", "always-held-producer"),
    ] {
        cover_stat(creator.process.id(), birth + after - dev);
        judged(&creator.name, 0, verdict, reason);
    }
    creator.end();
}

/// A process has the creator's pid and is provably another one; half a second less is no proof.
fn recycled_pid() {
    let mut creator = Creator::new();
    let (pid, name) = (creator.process.id(), creator.name.clone());
    pretend_start(pid, &name, -SECOND / 2);
    told(&name, "claimed", "creator-alive");
    reap();
    assert!(identity(&name).is_some());
    pretend_start(pid, &name, SECOND / 2);
    told(&name, "orphaned", "always-held-producer");
    let show = rtrack(["show", "--json", "--assume-complete", &name]).finish();
    assert!(show.text().contains("pid-recycled"), "{show:?}");
    reap();
    assert!(identity(&name).is_none());
    creator.end();
}

/// Files that were born before a step of the wall clock look older than their creators.
fn wall_clock_set_forward() {
    net_step();
    let mut creator = Creator::new();
    let mut tracker = Command::new("sh");
    let title = "sleep 1000; : from multiprocessing.resource_tracker import main";
    let mut tracker = tracker.args(["-c", title]).spawn().unwrap();
    object().make("psm_0a1b2c3d");
    for forward in [1, 10, 44 * 60, 86_400, 10 * 365 * 86_400] {
        set(&WALL, forward * SECOND);
        judged(&creator.name, 0, "claimed", "creator-alive");
        judged("psm_0a1b2c3d", 0, "claimed", "guardian-alive");
    }
    creator.end();
    judged(&creator.name, 0, "orphaned", "always-held-producer");
    tracker.kill().unwrap();
    tracker.wait().unwrap();
    judged("psm_0a1b2c3d", 0, "orphaned", "no-family");
}

/// What was born in the future, by the clock, is too young, whatever the grace period.
fn wall_clock_set_back() {
    object().make(ALWAYS_HELD);
    judged(ALWAYS_HELD, 0, "orphaned", "always-held-producer");
    for back in [60, 3600, 10 * 365 * 86_400] {
        set(&WALL, -back * SECOND);
        judged(ALWAYS_HELD, 0, "claimed", "too-young");
        judged(ALWAYS_HELD, 60, "claimed", "too-young");
    }
}

/// The grace period counts from birth and from the last change, by the clock of now.
fn grace_by_the_age_as_seen() {
    object().make(ALWAYS_HELD);
    set(&WALL, 30 * SECOND);
    judged(ALWAYS_HELD, 60, "claimed", "too-young");
    set(&WALL, 61 * SECOND);
    judged(ALWAYS_HELD, 60, "orphaned", "always-held-producer");
    judged(ALWAYS_HELD, 3600, "claimed", "too-young");
}

/// A directory is as young as what was last changed in it, at whatever level.
fn age_of_a_directory() {
    const DIRECTORY: &str = "joblib_memmapping_folder_4194399_0123456789abcdef_0123456789abcdef";
    fs::create_dir(path(DIRECTORY)).unwrap();
    fs::create_dir(path(DIRECTORY).join("below")).unwrap();
    object().make(format!("{DIRECTORY}/below/deep"));
    fs::set_permissions(path(DIRECTORY), PermissionsExt::from_mode(0o700)).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    // Nothing of this is to be seen at the directory itself.
    let deep = path(DIRECTORY).join("below/deep");
    fs::write(&deep, "written").unwrap();
    let changed = |file: &std::path::Path| {
        let meta = fs::metadata(file).unwrap();
        i128::from(meta.ctime()) * SECOND + i128::from(meta.ctime_nsec())
    };
    assert!(changed(&deep) > changed(&path(DIRECTORY)));
    set(&STANDS_AT, changed(&deep) + 60 * SECOND - 1);
    judged(DIRECTORY, 60, "claimed", "too-young");
    set(&STANDS_AT, changed(&deep) + 60 * SECOND);
    judged(DIRECTORY, 60, "orphaned", "no-family");
}

/// An object that was too young to be asked about when it was looked at, and is not when it is
/// judged: nobody knows whether it is held.
fn old_enough_only_afterwards() {
    object().make(ALWAYS_HELD);
    for is_held in [true, false] {
        let _holder = is_held.then(|| hold("in-flight", path(ALWAYS_HELD)));
        set(&WALL, 0);
        let world = world();
        let survey = survey(&world, 60);
        let young = judge(&world, &survey, ALWAYS_HELD);
        assert_eq!((young.verdict.as_str(), young.reason.as_str()), ("claimed", "too-young"));
        set(&WALL, 61 * SECOND);
        let later = judge(&world, &survey, ALWAYS_HELD);
        assert_eq!(later.verdict.reapability(), 0, "{later:#?}");
    }
}

/// Where it is not known by how much the clock was set, no process is provably younger.
fn unknown_step_of_the_clock() {
    let mut creator = Creator::new();
    pretend_start(creator.process.id(), &creator.name, 3600 * SECOND);
    told(&creator.name, "orphaned", "always-held-producer");
    let dev = scratch().join("dev");
    for name in ["null", "shm"] {
        let (from, to) = (format!("/dev/{name}"), dev.join(name));
        fs::create_dir_all(if name == "shm" { &to } else { &dev }).unwrap();
        if name == "null" {
            fs::write(&to, "").unwrap();
        }
        mount(&from, to.to_str().unwrap(), "", libc::MS_BIND, "").unwrap();
    }
    mount(dev.to_str().unwrap(), "/dev", "", libc::MS_BIND | libc::MS_REC, "").unwrap();
    told(&creator.name, "claimed", "creator-alive");
    reap();
    assert!(identity(&creator.name).is_some());
    creator.end();
    told(&creator.name, "orphaned", "always-held-producer");
}

/// In a time namespace the time since boot is not the machine's. An offset can hide that the
/// clock was set: here it makes the boot moment that of /dev's birth.
fn time_namespace() {
    let mut creator = Creator::new();
    let offset = net_step() + SECOND / 10;
    pretend_start(creator.process.id(), &creator.name, SECOND);
    told(&creator.name, "orphaned", "always-held-producer");
    let (seconds, rest) = (offset.div_euclid(SECOND), offset.rem_euclid(SECOND));
    let list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
    let mut list = inside(&format!("boot-time={seconds}.{rest}"), &list);
    let document = list.finish().expect(0).json();
    assert_eq!(verdict(&document, &creator.name), ("claimed", "creator-alive"), "{document:#}");
    creator.end();
    let document = list.finish().expect(0).json();
    let judged = verdict(&document, &creator.name);
    assert_eq!(judged, ("orphaned", "always-held-producer"), "{document:#}");
}
