//! The units of systemd: what they start works with the rights that they leave, and what they say is understood.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{
    Case, Finish, Need, binary, case, check, identity, inside, note, object, rtrack, scratch, skip,
    wait_for,
};

const SERVICE: &str = include_str!("../../systemd/rtrack.service");
const SOCKET: &str = include_str!("../../systemd/rtrack.socket");
const FILES: &str = include_str!("../../systemd/rtrack.service.d/files.conf");

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("with_the_capabilities_of_the_service", with_its_capabilities)
            .needs(&[Need::RealRoot]),
        case("same_objects_for_everybody", same_objects_for_everybody),
        case("verified_by_systemd", verified_by_systemd),
    ]
}

/// What a unit sets: of what is set several times, all values.
fn settings(unit: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut settings: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in unit.lines().filter(|line| !line.starts_with(['#', '['])) {
        if let Some((key, value)) = line.split_once('=') {
            settings.entry(key).or_default().push(value);
        }
    }
    settings
}

/// The command of the service, with other paths.
fn command() -> Vec<String> {
    let line = settings(SERVICE)["ExecStart"][0].to_owned();
    let line = line.replace("/usr/local/bin/rtrack", binary().to_str().unwrap());
    let line = line.replace("/run/rtrack", scratch().to_str().unwrap());
    line.split(' ').map(str::to_owned).collect()
}

/// Registers for `owner` with the rights of a user, and answers what the tracker says.
fn register(uid: u32, owner: u32, messages: &str) -> Value {
    let socket: PathBuf = scratch().join("rtrack.sock");
    let lines = format!("{{\"cmd\":\"OWNER\",\"pid\":{owner}}}\n{messages}PROBE:0:noop\n");
    let mut talk = Command::new("python3");
    let script = "import socket, sys\n\
        s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.sendall(sys.argv[2].encode())\n\
        print(s.makefile().readline(), end='')\n";
    talk.args(["-c", script]).arg(socket).arg(lines);
    let run = inside(&format!("user={uid}"), &talk).finish().expect(0);
    serde_json::from_str(&run.text()).unwrap()
}

/// In a mount namespace of its own, as the service has one.
fn with_its_capabilities() {
    if Command::new("setpriv").arg("--version").output().is_err() {
        skip("there is no setpriv");
    }
    let kept = settings(SERVICE)["CapabilityBoundingSet"][0].to_lowercase();
    let kept: Vec<String> = kept.split(' ').map(|name| name.replacen("cap_", "+", 1)).collect();
    let mut daemon = Command::new("setpriv");
    daemon.arg(format!("--bounding-set=-all,{}", kept.join(","))).arg("--no-new-privs");
    daemon.args(command());
    let mut daemon = inside("own-mounts", &daemon).stderr(Stdio::piped()).spawn().unwrap();
    let socket = scratch().join("rtrack.sock");
    wait_for("the socket", || UnixStream::connect(&socket).ok());
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let mut owners = Vec::new();
    let mut ids = Vec::new();
    for uid in [0, 61001] {
        object().owner(uid).make(format!("of-{uid}"));
        let mut make = Command::new("ipcmk");
        let made = inside(&format!("user={uid}"), make.arg("-Q")).finish().expect(0).text();
        let id: String = made.chars().filter(char::is_ascii_digit).collect();
        let mut owner = Command::new("sleep");
        let owner = owner.arg("1000").uid(uid).gid(uid).spawn().unwrap();
        let messages = format!(
            "REGISTER:/of-{uid}:shared_memory\nREGISTER:{id}:sysv_msg\nREGISTER:/nowhere/file:file\n"
        );
        let answer = register(uid, owner.id(), &messages);
        assert_eq!(answer["registered"], 2, "{answer}");
        assert!(answer["wrong"].as_str().unwrap().contains("mount namespace"), "{answer}");
        owners.push(owner);
        ids.push(id);
    }
    let run = rtrack(["probe", "--json", "--socket"]).arg(&socket).finish().expect(0);
    let registered = &run.json()["tracker"]["registered"];
    assert_eq!(registered.as_array().unwrap().len(), 4, "{registered:#}");
    for owner in &mut owners {
        owner.kill().unwrap();
        owner.wait().unwrap();
    }
    for uid in [0, 61001] {
        let name = format!("of-{uid}");
        wait_for(&format!("the end of {name}"), || identity(&name).is_none().then_some(()));
    }
    wait_for("the end of the queues", || {
        let queues = fs::read_to_string("/proc/sysvipc/msg").unwrap();
        (queues.lines().count() == 1).then_some(())
    });
    // SAFETY: the child has not been waited for.
    check(unsafe { libc::kill(i32::try_from(daemon.id()).unwrap(), libc::SIGTERM) }).unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(daemon.stderr.take().unwrap());
    while stderr.read_line(&mut said).unwrap() > 0 {}
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{said}");
    assert!(!said.contains("could not be removed"), "{said}");
}

/// What would give the service other objects than its clients have is off, and what keeps paths from being the same
/// is off where files are served.
fn same_objects_for_everybody() {
    const MOUNTS: [&str; 24] = [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "MountAPIVFS",
        "MountFlags",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "ProcSubset",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "TemporaryFileSystem",
    ];
    let (service, files) = (settings(SERVICE), settings(FILES));
    for (key, value) in [("PrivateIPC", "no"), ("PrivateUsers", "no"), ("ProtectProc", "default")] {
        assert_eq!(service[key], [value], "{key}");
    }
    for key in
        ["IPCNamespacePath", "PrivatePIDs", "RootDirectory", "RootImage", "DynamicUser", "User"]
    {
        assert!(!service.contains_key(key), "{key}");
    }
    for key in MOUNTS {
        let values = [&service, &files].map(|unit| unit.get(key).map(|values| values[0]));
        let off = |value: &str| ["no", "default", "all"].contains(&value);
        assert!(values[1].or(values[0]).is_none_or(off), "{key}: {values:?}");
    }
    assert_eq!(settings(SOCKET)["ListenStream"], ["/run/rtrack/rtrack.sock"]);
}

fn verified_by_systemd() {
    let Ok(version) = Command::new("systemd-analyze").arg("--version").output() else {
        skip("there is no systemd-analyze: the units of systemd are not verified");
    };
    let service = SERVICE.replace("/usr/local/bin/rtrack", binary().to_str().unwrap());
    let directory = scratch().join("units");
    fs::create_dir_all(directory.join("rtrack.service.d")).unwrap();
    let write = |name: &str, text: &str| fs::write(directory.join(name), text).unwrap();
    write("rtrack.socket", SOCKET);
    let verify = || {
        let mut verify = Command::new("systemd-analyze");
        verify.args(["verify", "--man=no", "rtrack.service", "rtrack.socket"]);
        verify
            .current_dir(&directory)
            .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()));
        verify.finish()
    };
    // Whether it would say anything.
    write("rtrack.service", &service.replace("NoNewPrivileges=yes", "NoNewPrivilege=yes"));
    let run = verify();
    assert!(run.stderr.contains("NoNewPrivilege"), "{run:?}");
    for files in ["", FILES] {
        write("rtrack.service", &service);
        write("rtrack.service.d/files.conf", files);
        let run = verify().expect(0);
        assert_eq!((run.text().trim(), run.stderr.trim()), ("", ""));
    }
    let version = String::from_utf8_lossy(&version.stdout);
    note(format!("units verified by {}", version.lines().next().unwrap_or_default()));
}
