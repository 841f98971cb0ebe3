//! What a process is to people: its command line, its control group, its container.

use std::collections::HashMap;

use super::container::Container;
use super::processes::Processes;
use crate::tracker::host::Host;

/// What a process is to people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Its arguments; empty when it did not answer, or may not be read.
    pub command_line: Vec<Vec<u8>>,
    /// Its control group: that of cgroup v2, or else the first one that is not the root.
    pub cgroup: Option<String>,
    /// The container that the control groups tell of.
    pub container: Option<Container>,
}

/// Looks at `pids`, which are among `processes`. One that is gone or may not be read has nothing.
#[must_use]
pub fn of(host: &Host, processes: &Processes, pids: &[i32]) -> HashMap<i32, Identity> {
    let lines = processes.clone().command_lines(&host.proc, pids.to_vec());
    pids.iter()
        .map(|pid| {
            let groups = host.read_proc(&format!("{pid}/cgroup")).unwrap_or_default();
            let groups = String::from_utf8_lossy(&groups);
            let (cgroup, container) = (cgroup(&groups), Container::of(&groups));
            let line = lines.get(pid).and_then(Option::as_deref).unwrap_or_default();
            let line = line.strip_suffix(b"\0").unwrap_or(line);
            let command_line = match line {
                [] => Vec::new(),
                line => line.split(|b| *b == 0).map(<[u8]>::to_vec).collect(),
            };
            (*pid, Identity { command_line, cgroup, container })
        })
        .collect()
}

/// `hierarchy:controllers:path` a line; that of cgroup v2 has hierarchy 0.
fn cgroup(text: &str) -> Option<String> {
    let paths =
        || text.lines().filter_map(|line| line.splitn(3, ':').nth(2).map(|path| (line, path)));
    let unified = paths().find(|(line, path)| line.starts_with("0:") && *path != "/");
    unified.or_else(|| paths().find(|(_, path)| *path != "/")).map(|(_, path)| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_and_containers() {
        let id = "0123456789abcdef".repeat(4);
        let text = format!("12:cpu:/\n0::/system.slice/docker-{id}.scope\n");
        let found = cgroup(&text).unwrap();
        assert_eq!(Container::in_path(&found).map(|container| container.id), Some(id));
        assert_eq!(cgroup("4:memory:/user\n0::/\n").as_deref(), Some("/user"));
        assert_eq!(cgroup("0::/\n"), None);
    }
}
