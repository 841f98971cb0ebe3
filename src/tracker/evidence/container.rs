//! Which container a process is in, by its control groups: the runtimes write it into their names.

use std::fmt;

/// The digits of a container id of Docker, Podman, containerd and CRI-O.
const ID: usize = 64;

/// How much of an id people are shown, as the runtimes do.
const SHOWN: usize = 12;

/// A container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// What runs it: `docker`, `podman`, `containerd`, `cri-o`, `lxc`, `systemd-nspawn`, `flatpak`, or
    /// `container` where only an id is to be seen.
    pub runtime: &'static str,
    /// Its id, or its name where the runtime has no ids.
    pub id: String,
    /// The uid of the Kubernetes pod that it belongs to.
    pub pod: Option<String>,
}

impl fmt::Display for Container {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = if is_id(&self.id) { self.id.get(..SHOWN) } else { None };
        f.pad(&format!("{}:{}", self.runtime, shown.unwrap_or(&self.id)))
    }
}

impl Container {
    /// Whether `name` is its name, its id, or the first digits of it, at least as many as people are shown; with
    /// or without the runtime before a colon.
    #[must_use]
    pub fn is_called(&self, name: &str) -> bool {
        let plain = name.strip_prefix(self.runtime).and_then(|rest| rest.strip_prefix(':'));
        let plain = plain.unwrap_or(name);
        let short = is_id(&self.id) && plain.len() >= SHOWN && self.id.starts_with(plain);
        plain == self.id || short || self.pod.as_deref() == Some(plain)
    }

    /// The container of a process, by its `/proc/PID/cgroup` (cgroups(7)): the innermost one that is
    /// known. Of cgroup v1 any hierarchy may tell.
    #[must_use]
    pub fn of(cgroups: &str) -> Option<Self> {
        cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(Self::in_path)
    }

    /// The container that the path of a control group tells of.
    #[must_use]
    pub fn in_path(path: &str) -> Option<Self> {
        let parts: Vec<String> = path.split('/').map(unescape).collect();
        let pod = parts.iter().rev().find_map(|part| pod(part));
        let mut found = None;
        for (index, part) in parts.iter().enumerate().rev() {
            let above = index.checked_sub(1).and_then(|above| parts.get(above));
            if let Some((runtime, id)) = of_part(part, above.map_or("", String::as_str)) {
                found = Some((runtime, id));
                break;
            }
        }
        let (runtime, id) = found?;
        Some(Self { runtime, id, pod })
    }
}

/// What one name of a path tells; `above` is the one before it.
fn of_part(part: &str, above: &str) -> Option<(&'static str, String)> {
    const PREFIXES: [(&str, &str); 5] = [
        ("docker-", "docker"),
        ("libpod-", "podman"),
        ("cri-containerd-", "containerd"),
        ("crio-", "cri-o"),
        ("nerdctl-", "containerd"),
    ];
    let unit = part.strip_suffix(".scope").or_else(|| part.strip_suffix(".service"));
    let plain = unit.unwrap_or(part);
    for (prefix, runtime) in PREFIXES {
        if let Some(id) = plain.strip_prefix(prefix).filter(|id| is_id(id)) {
            return Some((runtime, id.to_owned()));
        }
    }
    // Without systemd the id stands by itself, below the runtime's or the pod's group.
    let bare = plain.rsplit(':').next().unwrap_or(plain);
    if is_id(bare) {
        let runtime = match above {
            "docker" => "docker",
            "libpod_parent" | "libpod" => "podman",
            _ if plain.contains(":cri-containerd:") => "containerd",
            _ => "container",
        };
        return Some((runtime, bare.to_owned()));
    }
    let named = |runtime, name: &str| (!name.is_empty()).then(|| (runtime, name.to_owned()));
    if let Some(name) = plain.strip_prefix("lxc.payload.") {
        return named("lxc", name);
    }
    if above == "lxc" && !part.starts_with("lxc.") {
        return named("lxc", part);
    }
    if unit.is_some() {
        if let Some(name) = plain.strip_prefix("systemd-nspawn@") {
            return named("systemd-nspawn", name);
        }
        // Virtual machines of libvirt have such scopes too, and their names begin so.
        if let Some(name) = plain.strip_prefix("machine-").filter(|name| !name.starts_with("qemu"))
        {
            return named("systemd-nspawn", name);
        }
        if let Some(name) = plain.strip_prefix("app-flatpak-") {
            // `app-flatpak-org.example.App-1234.scope`: the number tells instances apart.
            return named("flatpak", name.rsplit_once('-').map_or(name, |(name, _)| name));
        }
    }
    None
}

/// `pod<uid>`, by itself or at the end of a slice (`kubepods-burstable-pod<uid>.slice`), where the
/// hyphens of the uid are written as underlines.
fn pod(part: &str) -> Option<String> {
    let slice = part.strip_suffix(".slice");
    let tail = match slice {
        Some(slice) => slice.rsplit('-').next()?,
        None => part,
    };
    let uid = tail.strip_prefix("pod")?.replace('_', "-");
    let is_uid = uid.len() >= 32 && uid.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    is_uid.then_some(uid)
}

fn is_id(text: &str) -> bool {
    text.len() == ID && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Undoes systemd's escapes (`\x2d`) of what may not stand in the name of a unit.
fn unescape(part: &str) -> String {
    let mut plain = String::with_capacity(part.len());
    let mut rest = part;
    while let Some(at) = rest.find("\\x") {
        plain.push_str(rest.get(..at).unwrap_or_default());
        let code = rest.get(at + 2..at + 4).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match code.filter(u8::is_ascii_graphic) {
            Some(code) => {
                plain.push(char::from(code));
                rest = rest.get(at + 4..).unwrap_or_default();
            }
            None => {
                plain.push_str("\\x");
                rest = rest.get(at + 2..).unwrap_or_default();
            }
        }
    }
    plain.push_str(rest);
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtimes_write() {
        let id = "0123456789abcdef".repeat(4);
        let uid = "8f2a1c34-55aa-4f9e-9b1d-0c1d2e3f4a5b";
        let (slice_uid, id) = (uid.replace('-', "_"), id.as_str());
        for (path, runtime, name, pod) in [
            (format!("0::/system.slice/docker-{id}.scope"), "docker", id, None),
            (format!("12:memory:/docker/{id}"), "docker", id, None),
            (format!("0::/user.slice/x/libpod-{id}.scope/container"), "podman", id, None),
            (format!("0::/machine.slice/libpod-{id}.scope"), "podman", id, None),
            (
                format!("0::/kubepods.slice/kubepods-pod{slice_uid}.slice/cri-containerd-{id}.scope"),
                "containerd",
                id,
                Some(uid),
            ),
            (
                format!("0::/kubepods.slice/kubepods-burstable-pod{slice_uid}.slice/crio-{id}.scope"),
                "cri-o",
                id,
                Some(uid),
            ),
            (format!("4:cpu:/kubepods/burstable/pod{uid}/{id}"), "container", id, Some(uid)),
            (
                format!("0::/system.slice/containerd.service/kubepods-pod{slice_uid}.slice:cri-containerd:{id}"),
                "containerd",
                id,
                None,
            ),
            ("0::/lxc.payload.web-1/init.scope".into(), "lxc", "web-1", None),
            ("7:pids:/lxc/web".into(), "lxc", "web", None),
            ("0::/machine.slice/systemd-nspawn@deb.service/payload".into(), "systemd-nspawn", "deb", None),
            ("0::/machine.slice/machine-a\\x2db.scope".into(), "systemd-nspawn", "a-b", None),
            (
                "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-flatpak-org.mozilla.firefox-4711.scope".into(),
                "flatpak",
                "org.mozilla.firefox",
                None,
            ),
        ] {
            let found = Container::of(&path);
            let pod = pod.map(str::to_owned);
            assert_eq!(found, Some(Container { runtime, id: name.to_owned(), pod }), "{path}");
        }
    }

    #[test]
    fn what_is_no_container() {
        for path in [
            "0::/",
            "0::/user.slice/user-1000.slice/session-1.scope",
            "0::/machine.slice/machine-qemu\\x2d1\\x2dvm.scope",
            "0::/system.slice/docker.service",
            "0::/system.slice/docker-0123.scope",
            "1:name=systemd:/init.scope\n0::/init.scope",
            "0::/lxc.monitor.web",
            "rubbish",
            "",
        ] {
            assert_eq!(Container::of(path), None, "{path}");
        }
    }

    #[test]
    fn people_see_short_ids() {
        let (runtime, pod) = ("docker", None);
        let container = Container { runtime, id: "0123456789abcdef".repeat(4), pod };
        assert_eq!(container.to_string(), "docker:0123456789ab");
    }
}
