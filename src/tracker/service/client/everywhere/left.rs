//! Whether a tracker was left behind: who started it is gone, and only strays keep it. A pure function.
//!
//! What cannot be told is not said. A tracker that is taken for one left behind may be killed by its
//! operator, and what it was told would be lost.

use std::collections::HashMap;

use super::super::launch::Family;

/// What of a process counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Relative {
    /// Its parent's pid.
    pub(super) parent: i32,
    /// Its session.
    pub(super) session: i32,
    /// When it started, in clock ticks since boot.
    pub(super) start: u64,
    /// Whether it is the first process of a PID namespace.
    pub(super) first: bool,
    /// Whether it is the first process of the machine.
    pub(super) of_machine: bool,
    /// Whether its executable is called systemd, which adopts what its services leave.
    pub(super) systemd: bool,
    /// Stands for its executable: equal ones are equal, and 0 is one that is not known.
    pub(super) exe: usize,
}

/// So many generations are looked at.
const MOST_ANCESTORS: usize = 64;

/// Whether the tracker `pid`, which is fed through a pipe by `clients` only, was left behind. All of them
/// are among `relatives`, the processes of the machine.
///
/// It was, if its parent is not who started it but who takes in orphans (the first process of its PID
/// namespace or a systemd) and has no part in the pipe, and if each of its clients started no sooner
/// than it did and descends, by way of such as did not either, from the same one.
pub(super) fn behind(
    kind: Family,
    pid: i32,
    clients: &[i32],
    relatives: &HashMap<i32, Relative>,
) -> bool {
    let Some(tracker) = relatives.get(&pid) else { return false };
    let Some(parent) = relatives.get(&tracker.parent) else { return false };
    let adopted = match kind {
        Family::TorchShmManager => false,
        // Somebody may have meant it to run by itself: as a service, or from a shell that is gone.
        Family::Rtrack => {
            (parent.of_machine || parent.systemd)
                && tracker.session != parent.session
                && tracker.session != pid
        }
        // A Python may itself be the first process, of a container.
        _ => {
            let known = parent.exe != 0 && tracker.exe != 0;
            (parent.first || parent.systemd) && known && parent.exe != tracker.exe
        }
    };
    adopted
        && !clients.is_empty()
        && !clients.contains(&tracker.parent)
        && clients.iter().all(|client| is_stray(*client, tracker, relatives))
}

/// Whether `client` was left by a process that is gone, and taken in by the parent of the tracker.
fn is_stray(client: i32, tracker: &Relative, relatives: &HashMap<i32, Relative>) -> bool {
    let mut at = client;
    for _ in 0..MOST_ANCESTORS {
        let Some(process) = relatives.get(&at) else { return false };
        if process.start < tracker.start {
            return false;
        }
        if process.parent == tracker.parent {
            return true;
        }
        at = process.parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(parent: i32, session: i32, start: u64, exe: usize) -> Relative {
        Relative { parent, session, start, exe, ..Relative::default() }
    }

    /// 1 is the machine's first process, 50 a shell, 100 was the program, 101 its tracker, 102 a child.
    fn family(change: impl FnOnce(&mut HashMap<i32, Relative>)) -> HashMap<i32, Relative> {
        let first = Relative { first: true, of_machine: true, ..process(0, 1, 0, 1) };
        let mut all = HashMap::from([
            (1, first),
            (50, process(1, 50, 5, 2)),
            (101, process(1, 50, 11, 3)),
            (102, process(1, 50, 11, 4)),
            (103, process(102, 50, 13, 4)),
        ]);
        change(&mut all);
        all
    }

    #[test]
    fn left_behind() {
        let all = family(|_| {});
        for kind in [Family::Cpython, Family::Joblib, Family::Rtrack] {
            assert!(behind(kind, 101, &[102], &all));
            assert!(behind(kind, 101, &[102, 103], &all));
            assert!(behind(kind, 101, &[103], &all));
        }
        // By a user's systemd.
        let all = family(|all| {
            let mut systemd = process(1, 60, 3, 9);
            systemd.systemd = true;
            all.insert(60, systemd);
            all.get_mut(&101).unwrap().parent = 60;
            all.get_mut(&102).unwrap().parent = 60;
        });
        assert!(behind(Family::Cpython, 101, &[102], &all));
        assert!(behind(Family::Rtrack, 101, &[102], &all));
    }

    type Change = fn(&mut HashMap<i32, Relative>);

    #[test]
    fn not_left_behind() {
        let changes: [(&str, Change); 9] = [
            ("its program lives", |all| {
                all.insert(100, process(50, 50, 10, 3));
                all.get_mut(&101).unwrap().parent = 100;
            }),
            ("it was taken in by somebody who is not known for that", |all| {
                all.get_mut(&101).unwrap().parent = 50;
            }),
            ("its parent is not known", |all| {
                all.remove(&1);
            }),
            ("its client was there before", |all| all.get_mut(&102).unwrap().start = 10),
            ("its client has a parent who was there before", |all| {
                all.get_mut(&102).unwrap().parent = 50;
            }),
            ("its client has gone", |all| {
                all.remove(&102);
            }),
            ("its parent is a program of the same kind", |all| {
                all.get_mut(&1).unwrap().exe = 3;
                // Which is enough for a Python only.
                all.get_mut(&101).unwrap().session = 1;
            }),
            ("what its parent is cannot be seen", |all| {
                all.get_mut(&1).unwrap().exe = 0;
                all.get_mut(&1).unwrap().of_machine = false;
            }),
            ("its client is its own ancestor", |all| all.get_mut(&102).unwrap().parent = 102),
        ];
        for (why, change) in changes {
            let all = family(change);
            for kind in [Family::Cpython, Family::Loky, Family::Rtrack] {
                assert!(!behind(kind, 101, &[102], &all), "{why}");
            }
        }
        let all = family(|_| {});
        for clients in [&[][..], &[1], &[102, 1], &[102, 50], &[102, 999]] {
            assert!(!behind(Family::Cpython, 101, clients, &all), "{clients:?}");
        }
        assert!(!behind(Family::TorchShmManager, 101, &[102], &all));
        assert!(!behind(Family::Cpython, 999, &[102], &all));
    }

    #[test]
    fn a_daemon_of_its_own() {
        // A service, and one in a container.
        for change in [(|all| all.get_mut(&101).unwrap().session = 101) as Change, |all| {
            all.get_mut(&1).unwrap().of_machine = false
        }] {
            let all = family(change);
            assert!(!behind(Family::Rtrack, 101, &[102], &all));
            assert!(behind(Family::Cpython, 101, &[102], &all));
        }
    }
}
