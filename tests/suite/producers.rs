//! The catalogue as operators see it, and their own files.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::{
    Case, Finish, Finished, Need, case, inventory, listed, names, object, rtrack, scratch,
    somebody, verdict,
};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("list_of_all", list_of_all),
        case("match_explains_a_name", match_explains_a_name),
        case("operators_own", operators_own).needs(&[Need::PidNamespace]),
        case("own_before_built_in", own_before_built_in),
        case("broken_file", broken_file),
        case("check_names_the_line", check_names_the_line),
        case("nested_patterns", nested_patterns),
        case("files_of_others", files_of_others).needs(&[Need::RealRoot]),
    ]
}

/// The user's directory of catalogue files: of this case alone.
fn directory() -> PathBuf {
    let directory = scratch().join(".config/rtrack/producers.d");
    fs::create_dir_all(&directory).unwrap();
    directory
}

fn write(name: &str, text: &str) -> PathBuf {
    let file = directory().join(name);
    fs::write(&file, text).unwrap();
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    file
}

const OWN: &str = r#"schema_version = 1

[families.crunch]
executables = '^crunchd$'

[[producer]]
id = "crunch-cache"
software = "Crunch"
kind = "shm"
pattern = 'crunch\.(?P<pid>\d+)'
example = "crunch.17"
pid_embedded = true
held_while_alive = "open"

[[producer]]
id = "crunch-queue"
software = "Crunch"
kind = "shm"
pattern = 'crunchq_.*'
held_while_alive = "by-name"
family = "crunch"

[[producer]]
id = "crunch-state"
software = "Crunch"
kind = "shm"
pattern = 'crunch_state'
held_while_alive = "unknown"
persistent_by_design = true
"#;

fn matched(name: &str) -> Finished {
    rtrack(["producers", "--match", name]).finish()
}

/// A pattern may be as deep as the compiler takes them, whichever thread compiles it.
fn nested_patterns() {
    const LEVELS: usize = 80;
    let pattern = format!("{}{}", "(?:abc".repeat(LEVELS), ")?".repeat(LEVELS));
    let text = OWN.replace("crunch_state", &pattern);
    assert!(text.contains(&pattern));
    write("nested.toml", &text);
    // Several threads match names.
    for number in 0..200 {
        object().make(format!("abc-{number}"));
    }
    object().make("abcabc");
    let list = inventory();
    assert_eq!(list["objects"].as_array().unwrap().len(), 201);
    assert_eq!(listed(&list, "abcabc")["producer"]["id"], "crunch-state");
}

fn list_of_all() {
    let text = rtrack(["producers"]).finish().expect(0).text();
    let row = |id: &str| {
        let found = text.lines().find(|line| line.split_whitespace().next() == Some(id));
        found.unwrap_or_else(|| panic!("{id} is not in\n{text}")).to_owned()
    };
    for (id, kind, held, proof) in [
        ("cpython-shared-memory", "shm", "by-name", "yes"),
        ("cpython-semlock", "sem", "mapped", "yes"),
        ("glibc-sem-temp", "sem", "mapped", "no"),
        ("podman-locks-root", "shm", "persistent", "no"),
    ] {
        let row = row(id);
        let words: Vec<&str> = row.split_whitespace().collect();
        assert_eq!(words[1..4], [kind, held, proof], "{row}");
    }
    let document = rtrack(["producers", "--json"]).finish().expect(0).json();
    assert_eq!(document["producers"].as_array().unwrap().len(), text.lines().count() - 1);
}

fn match_explains_a_name() {
    for (name, id) in [
        ("psm_0a1b2c3d", "cpython-shared-memory"),
        ("/psm_0a1b2c3d", "cpython-shared-memory"),
        ("/dev/shm/psm_0a1b2c3d", "cpython-shared-memory"),
        ("shm:psm_0a1b2c3d", "cpython-shared-memory"),
        ("sem:mp-abcdefgh", "cpython-semlock"),
        ("sem.mp-abcdefgh", "cpython-semlock"),
    ] {
        let text = matched(name).expect(0).text();
        assert!(text.starts_with(&format!("producer    {id}\n")), "{name}: {text}");
        for key in ["software", "kind", "pattern", "held", "verdict", "source"] {
            assert!(text.contains(&format!("\n{key:<10}  ")), "{name}: no {key} in\n{text}");
        }
    }
    let mut json = rtrack(["producers", "--json", "--match", "sem:loky-4711-abcdefgh"]);
    let json = json.finish().expect(0).json();
    assert_eq!(json["producers"][0]["pid"], 4711);
    let unknown = matched("my_cache").expect(1);
    assert!(unknown.stderr.starts_with("error: my_cache: no known producer\nhint: "));
}

fn operators_own() {
    write("crunch.toml", OWN);
    for name in ["crunch.999999", "crunchq_1", "crunch_state"] {
        object().make(name);
    }
    let document = inventory();
    assert_eq!(verdict(&document, "crunch.999999"), ("orphaned", "always-held-producer"));
    assert_eq!(listed(&document, "crunch.999999")["creator"]["pid"], 999_999);
    assert_eq!(verdict(&document, "crunch_state"), ("claimed", "persistent"));
    let vouched = || -> Value {
        let mut list = rtrack(["list", "--json", "--grace", "0s", "--assume-complete"]);
        list.finish().expect(0).json()
    };
    assert_eq!(verdict(&vouched(), "crunchq_1"), ("orphaned", "no-family"));
    // A member of the family: known by its executable.
    let daemon = scratch().join("crunchd");
    fs::copy("/bin/sleep", &daemon).unwrap();
    let mut daemon = Command::new(&daemon).arg("1000").spawn().unwrap();
    assert_eq!(verdict(&vouched(), "crunchq_1"), ("unclaimed", "family-alive"));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let text = matched("crunchq_1").expect(0).text();
    assert!(text.contains("\nfile        ") && text.contains("crunch.toml"), "{text}");
}

/// An entry with the id of a built-in one replaces it; another one is tried first.
fn own_before_built_in() {
    let entry = |id: &str, pattern: &str| {
        format!(
            "schema_version = 1\n[[producer]]\nid = \"{id}\"\nkind = \"shm\"\npattern = \
             '{pattern}'\nheld_while_alive = \"unknown\"\npersistent_by_design = true\n"
        )
    };
    object().make("mpich_shar_tmpAbC123");
    write("a.toml", &entry("kept", "mpich_shar_.*"));
    let document = inventory();
    assert_eq!(verdict(&document, "mpich_shar_tmpAbC123"), ("claimed", "persistent"));
    assert_eq!(listed(&document, "mpich_shar_tmpAbC123")["producer"]["id"], "kept");
    write("a.toml", &entry("mpich-shar-tmp", "never_this"));
    let document = inventory();
    assert_eq!(verdict(&document, "mpich_shar_tmpAbC123"), ("unclaimed", "unknown-producer"));
}

/// Until it is mended, nothing is orphaned by what the catalogue says.
fn broken_file() {
    object().make("mpich_shar_tmpAbC123");
    let file = write("own.toml", "schema_version = 1\n\n[[producer]]\nid = 7\n");
    let said = format!("error: {}:4: ", file.display());
    for command in ["list", "reap"] {
        let mut command = rtrack([command, "--grace", "0s"]);
        command.args(if command.get_args().any(|a| a == "reap") { &["--yes"][..] } else { &[] });
        let run = command.finish().expect(3);
        assert!(run.stderr.contains(&said), "{run:?}");
        assert!(run.stderr.contains("hint: until it is mended"), "{run:?}");
    }
    assert_eq!(names().len(), 1);
    let run = rtrack(["list", "--json", "--grace", "0s"]).finish().expect(3);
    let document = run.json();
    assert_eq!(verdict(&document, "mpich_shar_tmpAbC123"), ("unclaimed", "weak-producer"));
    let says = listed(&document, "mpich_shar_tmpAbC123")["evidence"].to_string();
    assert!(says.contains("own.toml:4"), "{says}");
    // Not a file of this kind, and not looked at; nor is the lock of an editor.
    fs::rename(&file, file.with_extension("toml.bak")).unwrap();
    std::os::unix::fs::symlink("somebody@somewhere", directory().join(".#own.toml")).unwrap();
    assert_eq!(verdict(&inventory(), "mpich_shar_tmpAbC123"), ("orphaned", "always-held-producer"));
}

fn check_names_the_line() {
    let file = scratch().join("own.toml");
    let check = |text: &str| {
        fs::write(&file, text).unwrap();
        rtrack(["producers", "--check"]).arg(&file).finish()
    };
    assert!(check(OWN).expect(0).text().ends_with("own.toml: 3 entries, all right\n"));
    rtrack(["producers", "--json", "--check"]).arg(&file).finish().expect(0).json();
    for (from, to, line, what) in [
        ("schema_version = 1", "schema_version = 2", 1, "version"),
        ("crunch\\.(?P<pid>\\d+)'", "crunch\\.(?P<pid>\\d+'", 10, "unclosed group"),
        ("example = \"crunch.17\"", "example = \"cranch.17\"", 11, "example"),
        ("kind = \"shm\"", "kind = \"file\"", 9, "kind"),
        ("held_while_alive = \"open\"", "held_while_alive = \"always\"", 13, "always"),
        ("family = \"crunch\"", "family = \"cranch\"", 21, "cranch"),
        ("software = \"Crunch\"", "sftware = \"Crunch\"", 8, "sftware"),
        ("id = \"crunch-cache\"", "id = \"crunch-queue\"", 16, "crunch-queue"),
        ("(?P<pid>\\d+)", "\\d+", 10, "pid"),
        ("id = \"crunch-cache\"", "id = \"a,b\"", 7, "only a-z, 0-9 and -"),
        ("id = \"crunch-cache\"", "id = \"\"", 7, "only a-z, 0-9 and -"),
        ("executables = '^crunchd$'", "executables = '['", 4, "unclosed character class"),
    ] {
        assert!(OWN.contains(from), "{from}");
        let run = check(&OWN.replacen(from, to, 1)).expect(1);
        let said = format!("own.toml:{line}: ");
        assert!(run.stderr.contains(&said), "{to}: expected {said}, found {}", run.stderr);
        assert!(run.stderr.contains(what), "{to}: {}", run.stderr);
        assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1);
    }
    let missing = rtrack(["producers", "--check", "/nonexistent.toml"]).finish().expect(3);
    assert!(missing.stderr.contains("No such file"), "{missing:?}");
    let directory = rtrack(["producers", "--check", "/"]).finish().expect(3);
    assert!(directory.stderr.starts_with("error: /: "), "{directory:?}");
    let fifo = scratch().join("fifo.toml");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let fifo = rtrack(["producers", "--check"]).arg(&fifo).finish().expect(3);
    assert!(fifo.stderr.contains("not a regular file"), "{fifo:?}");
}

/// What a catalogue says decides what is deleted: not by files that others can write.
fn files_of_others() {
    object().make("crunch.999999");
    let file = write("crunch.toml", OWN);
    let said = |what: &str| {
        let run = rtrack(["list", "--json", "--grace", "0s"]).finish().expect(3);
        assert!(run.stderr.contains(what), "{run:?}");
        assert_eq!(verdict(&run.json(), "crunch.999999"), ("unclaimed", "weak-producer"));
    };
    fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
    said("group or others may write it");
    fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    chown(&file, Some(somebody()), None).unwrap();
    said("belongs neither to root nor to you");
    // A home that is not this user's, as sudo leaves it, has no say.
    chown(scratch(), Some(somebody()), None).unwrap();
    assert_eq!(verdict(&inventory(), "crunch.999999"), ("unclaimed", "unknown-producer"));
}
