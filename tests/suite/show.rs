//! `rtrack show`: all that is known about an object.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Case, Finish, Need, case, hold, identity, listed, names, object, path, rtrack, sem_open,
    somebody, wait_for,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("every_way_of_holding", every_way_of_holding),
        case("command_lines_and_groups", command_lines_and_groups),
        case("semaphore", semaphore),
        case("content", content),
        case("outlook", outlook).needs(&[Need::PidNamespace]),
        case("the_young_are_asked_about", the_young_are_asked_about),
        case("which_objects", which_objects),
        case("names_are_escaped", names_are_escaped),
        case("what_is_no_file", what_is_no_file),
        case("other_user", other_user).needs(&[Need::RealRoot]),
    ]
}

const NAME: &str = "mpich_shar_tmpAbC123";

fn show_json(arguments: &[&str]) -> Value {
    rtrack(["show", "--json"]).args(arguments).finish().expect(0).json()
}

fn show_text(arguments: &[&str]) -> String {
    rtrack(["show"]).args(arguments).finish().expect(0).text()
}

/// The lines of the field `key` in the text about one object.
fn field(text: &str, key: &str) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&format!("  {key}")));
    let first = lines.next().unwrap_or_else(|| panic!("no {key} in\n{text}"));
    let more = lines.take_while(|line| line.starts_with("            "));
    std::iter::once(first).chain(more).map(|line| line[12..].to_owned()).collect()
}

fn every_way_of_holding() {
    object().make(NAME);
    for (kind, how, said) in [
        ("fd-read", "fd", "(r)"),
        ("fd-write", "fd", "(rw)"),
        ("fd-o-path", "fd", "(path)"),
        ("map-shared", "map", "shared map rw- of 4.0 KiB"),
        ("map-private", "map", "private map rw- of 4.0 KiB"),
        ("map-no-access", "map", "shared map without access of 4.0 KiB"),
        ("thread-table", "fd", "(r"),
    ] {
        let holder = hold(kind, path(NAME));
        let document = show_json(&[NAME]);
        let found = &listed(&document, NAME)["holders"];
        let [found] = found.as_array().unwrap().as_slice() else { panic!("{kind}: {found:#}") };
        assert_eq!(found["pid"], holder.pid, "{kind}");
        assert!(found["how"].as_array().unwrap().contains(&how.into()), "{kind}: {found:#}");
        let text = show_text(&[NAME]);
        assert!(field(&text, "holders")[0].contains(said), "{kind}: {text}");
        assert!(field(&text, "verdict")[0].starts_with("held"), "{text}");
        assert!(field(&text, "reap")[0].contains("even by force"), "{text}");
    }
    fs::create_dir(path("parked")).unwrap();
    let _holder = hold("working-directory", path("parked"));
    assert!(field(&show_text(&["parked"]), "holders")[0].ends_with(": working directory"));
}

fn command_lines_and_groups() {
    object().make(NAME);
    let mut holder = Command::new("/bin/sh")
        .args(["-c", "exec 7<\"$0\"; exec sleep 1000 <\"$0\"", path(NAME).to_str().unwrap()])
        .spawn()
        .unwrap();
    let document = wait_for("both descriptors", || {
        let document = show_json(&[NAME]);
        let details = listed(&document, NAME)["holders"][0]["details"].as_array().map(Vec::len);
        (details == Some(2)).then_some(document)
    });
    let found = &listed(&document, NAME)["holders"][0];
    assert_eq!(found["command_line"], serde_json::json!(["sleep", "1000"]));
    assert_eq!(found["user"], "root");
    let fds: Vec<_> = found["details"].as_array().unwrap().iter().map(|d| &d["fd"]).collect();
    assert!(fds.contains(&&0.into()) && fds.contains(&&7.into()), "{fds:?}");
    let group = fs::read_to_string(format!("/proc/{}/cgroup", holder.id())).unwrap();
    match found["cgroup"].as_str() {
        Some(shown) => assert!(group.contains(shown), "{shown} is not of\n{group}"),
        None => assert!(group.lines().all(|line| line.ends_with(":/")), "{group}"),
    }
    let text = show_text(&[NAME]);
    let lines = field(&text, "holders");
    assert!(lines[0].starts_with(&format!("sleep[{}] of root: fd ", holder.id())), "{text}");
    assert_eq!(lines[1], "  sleep 1000");
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(field(&show_text(&[NAME]), "holders"), ["none seen"]);
}

fn semaphore() {
    let semaphore = sem_open("/mp-abcdefgh", 3);
    semaphore.wait();
    let text = show_text(&["sem:mp-abcdefgh"]);
    assert_eq!(field(&text, "semaphore"), ["value 2, 0 waiting"]);
    assert!(field(&text, "what")[0].starts_with("named semaphore, mode 0600"), "{text}");
    assert!(field(&text, "producer")[0].contains("(cpython-semlock)"), "{text}");
    let document = show_json(&["mp-abcdefgh"]);
    assert_eq!(listed(&document, "mp-abcdefgh")["semaphore"]["value"], 2);
}

fn content() {
    fs::write(path(NAME), b"AB\x1b[31m\xff\0 end of the first line and more").unwrap();
    let text = show_text(&["--hexdump", "16", NAME]);
    assert!(
        text.ends_with(
            "  content   the first 16 bytes\n    \
             00000000  41 42 1b 5b 33 31 6d ff 00 20 65 6e 64 20 6f 66  |AB.[31m.. end of|\n"
        ),
        "{text}"
    );
    let document = show_json(&["--hexdump", "3", NAME]);
    assert_eq!(listed(&document, NAME)["content_base64"], "QUIb");
    assert!(listed(&show_json(&[NAME]), NAME).get("content_base64").is_none());
    // More than there is.
    let text = show_text(&["--hexdump", "1MiB", NAME]);
    assert!(text.contains("the first 40 bytes"), "{text}");
}

/// What `reap` does with it, and that this is true.
fn outlook() {
    for (name, does) in [
        (NAME, "removes it"),
        ("libpod_lock", "leaves it; reap --force NAME would remove it"),
        ("my_cache", "leaves it; reap --verdict orphaned,unclaimed would remove it"),
    ] {
        object().make(name);
        let text = show_text(&["--grace", "0s", name]);
        assert_eq!(field(&text, "reap").join(" "), does);
        assert!(!field(&text, "changes").join(" ").is_empty());
    }
    let reap = |arguments: &[&str]| {
        rtrack(["reap", "--yes", "--grace", "0s"]).args(arguments).finish().expect(0);
    };
    reap(&[]);
    assert!(identity(NAME).is_none() && names().len() == 2);
    reap(&["--verdict", "orphaned,unclaimed"]);
    assert!(identity("my_cache").is_none() && names().len() == 1);
    reap(&["--force", "libpod_lock"]);
    assert!(names().is_empty());
}

/// `list` leaves young objects and those kept by design in peace, `show` does not.
fn the_young_are_asked_about() {
    object().make("libpod_lock");
    for (command, asked) in [("list", false), ("show", true)] {
        let document = rtrack([command, "--json", "libpod_lock"]).finish().expect(0).json();
        let found = listed(&document, "libpod_lock");
        assert_eq!(
            (&found["verdict"], &found["reason"]),
            (&"claimed".into(), &"persistent".into())
        );
        let granted = found["evidence"].as_array().unwrap().iter();
        assert_eq!(granted.filter(|e| e["code"] == "lease-granted").count() == 1, asked);
    }
    let _holder = hold("map-shared", path("libpod_lock"));
    let document = show_json(&["libpod_lock"]);
    assert_eq!(listed(&document, "libpod_lock")["verdict"], "held");
}

fn which_objects() {
    object().size(10).make(NAME);
    object().size(20).make("my_cache");
    let ids = |arguments: &[&str]| -> Vec<String> {
        let text = show_text(arguments);
        let heads = text.lines().filter(|line| !line.starts_with(' ') && !line.is_empty());
        heads.map(str::to_owned).collect()
    };
    let (mpich, cache) = (format!("shm:{NAME}"), "shm:my_cache".to_owned());
    assert_eq!(ids(&["my_*", NAME]), [cache.clone(), mpich.clone()]);
    assert_eq!(ids(&["--sort", "size", "--reverse", "*"]), [mpich.clone(), cache.clone()]);
    assert_eq!(ids(&["--kind", "shm", "--min-size", "20"]), ["shm:my_cache"]);
    assert_eq!(ids(&["--grace", "0s", "--verdict", "orphaned"]), [format!("shm:{NAME}")]);
    assert_eq!(ids(&["--producer", "mpich-shar-tmp"]), [mpich]);
    assert_eq!(ids(&["--exact", "shm:my_cache"]), [cache]);
    assert_eq!(ids(&["none*"]), [""; 0]);
    let all = rtrack(["show"]).finish().expect(2);
    assert!(all.stderr.contains("hint: "), "{all:?}");
    let missing = rtrack(["show", "my_cash"]).finish().expect(1);
    assert!(missing.stderr.contains("did you mean shm:my_cache"), "{missing:?}");
    assert!(missing.stdout.is_empty());
}

fn names_are_escaped() {
    let name = "x\x1b[31m\u{202e}\n";
    object().make(name);
    let text = show_text(&[name]);
    assert!(text.starts_with("shm:x\\x1b[31m\\u{202e}\\n\n"), "{text}");
    assert!(text.chars().all(|c| c == '\n' || !c.is_control() && c != '\u{202e}'), "{text:?}");
    assert_eq!(show_json(&[name])["objects"][0]["name"], name);
}

fn what_is_no_file() {
    symlink("/nonexistent", path("link")).unwrap();
    let text = show_text(&["link"]);
    assert!(field(&text, "what")[0].starts_with("symlink, "), "{text}");
    assert!(field(&text, "verdict")[0].starts_with("claimed"), "{text}");
    assert!(field(&show_text(&["--grace", "0s", "link"]), "verdict")[0].starts_with("unknown"));
    // It has no content that could be shown, and it is not followed to look.
    let run = rtrack(["show", "--hexdump", "16", "link"]).finish().expect(3);
    assert!(run.stderr.contains("error: other:link: read: not a regular file"), "{run:?}");
}

/// What may not be read is said, and the rest is shown.
fn other_user() {
    object().make(NAME);
    let mut show = rtrack(["show", "--grace", "0s", "--hexdump", "16", NAME]);
    let run = show.as_user(somebody()).finish().expect(3);
    let text = run.text();
    assert_eq!(field(&text, "verdict"), ["unknown (no-permission)"]);
    assert!(run.stderr.contains("hint: root sees all processes"), "{run:?}");
    assert!(run.stderr.contains(&format!("error: shm:{NAME}: read: ")), "{run:?}");
}
