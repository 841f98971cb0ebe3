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

/// Whether the tracker `pid`, which is fed through a pipe by `clients` only, was left behind; nothing where
/// that cannot be told. All of them are among `relatives`, the processes of the machine.
///
/// It was, if its parent is not who started it but who takes in orphans (the first process of its PID
/// namespace or a systemd) and has no part in the pipe, and if each of its clients started no sooner
/// than it did and descends, by way of such as did not either, from the same one, all of them in the
/// tracker's session. In another one they may be strays, or a service: what becomes a daemon leaves the
/// tracker that it started before in the session which it leaves.
pub(super) fn behind(
    kind: Family,
    pid: i32,
    clients: &[i32],
    relatives: &HashMap<i32, Relative>,
) -> Option<bool> {
    let Some(tracker) = relatives.get(&pid) else { return Some(false) };
    let Some(parent) = relatives.get(&tracker.parent) else { return Some(false) };
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
    if !adopted || clients.is_empty() || clients.contains(&tracker.parent) {
        return Some(false);
    }
    let lines = clients.iter().map(|client| line(*client, tracker, relatives));
    let Some(lines) = lines.collect::<Option<Vec<_>>>() else { return Some(false) };
    let same = |process: &&Relative| process.session == tracker.session;
    lines.iter().flatten().all(same).then_some(true)
}

/// `client` and its ancestors up to who was taken in by the parent of the tracker, if it was left by a
/// process that is gone.
fn line<'a>(
    client: i32,
    tracker: &Relative,
    relatives: &'a HashMap<i32, Relative>,
) -> Option<Vec<&'a Relative>> {
    let mut line = Vec::new();
    let mut at = client;
    for _ in 0..MOST_ANCESTORS {
        let process = relatives.get(&at)?;
        if process.start < tracker.start {
            return None;
        }
        line.push(process);
        if process.parent == tracker.parent {
            return Some(line);
        }
        at = process.parent;
    }
    None
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
            assert_eq!(behind(kind, 101, &[102], &all), Some(true));
            assert_eq!(behind(kind, 101, &[102, 103], &all), Some(true));
            assert_eq!(behind(kind, 101, &[103], &all), Some(true));
        }
        // By a user's systemd.
        let all = family(|all| {
            let mut systemd = process(1, 60, 3, 9);
            systemd.systemd = true;
            all.insert(60, systemd);
            all.get_mut(&101).unwrap().parent = 60;
            all.get_mut(&102).unwrap().parent = 60;
        });
        assert_eq!(behind(Family::Cpython, 101, &[102], &all), Some(true));
        assert_eq!(behind(Family::Rtrack, 101, &[102], &all), Some(true));
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
                assert_eq!(behind(kind, 101, &[102], &all), Some(false), "{why}");
            }
        }
        let all = family(|_| {});
        for clients in [&[][..], &[1], &[102, 1], &[102, 50], &[102, 999]] {
            assert_eq!(behind(Family::Cpython, 101, clients, &all), Some(false), "{clients:?}");
        }
        assert_eq!(behind(Family::TorchShmManager, 101, &[102], &all), Some(false));
        assert_eq!(behind(Family::Cpython, 999, &[102], &all), Some(false));
    }

    /// The program has become a daemon, or a stray one: itself, or who is between it and the adopter.
    #[test]
    fn another_session() {
        for (of, clients) in [(102, &[102][..]), (102, &[103]), (103, &[102, 103]), (103, &[103])] {
            let all = family(|all| all.get_mut(&of).unwrap().session = of);
            for kind in [Family::Cpython, Family::Loky, Family::Rtrack] {
                assert_eq!(behind(kind, 101, clients, &all), None, "{of} {clients:?}");
            }
        }
        // What is known to be no stray makes it known.
        let all = family(|all| {
            all.get_mut(&103).unwrap().session = 103;
            all.get_mut(&102).unwrap().start = 10;
        });
        assert_eq!(behind(Family::Cpython, 101, &[103], &all), Some(false));
        let all = family(|all| all.get_mut(&103).unwrap().session = 103);
        assert_eq!(behind(Family::Cpython, 101, &[102], &all), Some(true));
    }

    #[test]
    fn a_daemon_of_its_own() {
        // A service, and one in a container.
        for change in [
            (|all| {
                all.get_mut(&101).unwrap().session = 101;
                all.get_mut(&102).unwrap().session = 101;
            }) as Change,
            |all| all.get_mut(&1).unwrap().of_machine = false,
        ] {
            let all = family(change);
            assert_eq!(behind(Family::Rtrack, 101, &[102], &all), Some(false));
            assert_eq!(behind(Family::Cpython, 101, &[102], &all), Some(true));
        }
    }
}
