//! Archives that are not what they were: refused, named, and nothing is written for them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::archiving::{archive, became, reap_to_archive, restore, state, the_file};
use crate::reaping::{exactly, orphan};
use crate::support::{Case, Finish, case, path, scratch};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("of_data", of_data),
        case("of_the_document", of_the_document),
        case("with_a_new_checksum", with_a_new_checksum),
        case("of_one_among_others", of_one_among_others),
    ]
}

/// An archive of one object, whose content is `content`.
fn an_archive(content: &[u8]) {
    fs::write(path(orphan(0)), content).unwrap();
    reap_to_archive().finish().expect(0);
    exactly(&[]);
}

/// The restoration of the only entry is refused, and says which and `why`.
#[track_caller]
fn refused(what: &str, why: &str) {
    for more in [&["-n"][..], &[]] {
        let run = restore().args(more).finish().expect(3);
        let report = run.json();
        let object = &report["objects"][0];
        assert_eq!(object["outcome"], "refused", "{what}: {report:#}");
        assert!(object["says"].as_str().unwrap().contains(why), "{what}: {report:#}");
        let shown = if object["id"].is_null() { &object["entry"] } else { &object["id"] };
        let error = format!("error: {}: ", shown.as_str().unwrap());
        assert!(run.stderr.contains(&error), "{what}: {run:?}");
        exactly(&[]);
    }
}

fn of_data() {
    let content = vec![7; 10_000];
    an_archive(&content);
    let data = the_file(".data");
    let kept = scratch().join("kept");
    fs::copy(&data, &kept).unwrap();
    fs::set_permissions(&kept, Permissions::from_mode(0o600)).unwrap();
    let open = || OpenOptions::new().write(true).open(&data).unwrap();
    type Tamper<'a> = &'a dyn Fn();
    let all: [(&str, Tamper<'_>, &str); 7] = [
        ("bit flipped", &|| open().write_all_at(&[6], 9_999).unwrap(), "checksum"),
        ("hole punched", &|| open().write_all_at(&[0; 4096], 4096).unwrap(), "checksum"),
        ("cut", &|| open().set_len(9_999).unwrap(), "9999 bytes"),
        ("longer", &|| open().set_len(10_001).unwrap(), "10001 bytes"),
        ("missing", &|| fs::remove_file(&data).unwrap(), ".data"),
        (
            "symlink",
            &|| {
                fs::remove_file(&data).unwrap();
                symlink(&kept, &data).unwrap();
            },
            "not a regular file",
        ),
        (
            "fifo",
            &|| {
                fs::remove_file(&data).unwrap();
                nix::unistd::mkfifo(&data, nix::sys::stat::Mode::S_IRUSR).unwrap();
            },
            "not a regular file",
        ),
    ];
    for (what, tamper, why) in all {
        tamper();
        refused(what, why);
        fs::remove_file(&data).unwrap_or(());
        fs::copy(&kept, &data).unwrap();
        fs::set_permissions(&data, Permissions::from_mode(0o600)).unwrap();
    }
    restore().finish().expect(0);
    assert_eq!(fs::read(path(orphan(0))).unwrap(), content);
}

/// Any byte of it.
fn of_the_document() {
    an_archive(b"content");
    let file = the_file(".json");
    let whole = fs::read(&file).unwrap();
    let put = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
    };
    for at in (0..whole.len()).step_by(7) {
        let mut text = whole.clone();
        text[at] ^= 1;
        put(&text);
        refused(&format!("byte {at}"), "");
    }
    for length in [0, 1, whole.len() / 2, whole.len() - 1] {
        put(&whole[..length]);
        refused(&format!("cut to {length}"), "");
    }
    put(&[&whole[..], b"\n"].concat());
    refused("longer", "checksum");
    let edited = String::from_utf8(whole.clone()).unwrap().replace(&orphan(0), &orphan(1));
    put(edited.as_bytes());
    refused("renamed", "checksum");
    fs::remove_file(&file).unwrap();
    refused("missing", "incomplete");
    let elsewhere = scratch().join("elsewhere");
    fs::write(&elsewhere, &whole).unwrap();
    symlink(&elsewhere, &file).unwrap();
    refused("symlink", "not a regular file");
    fs::remove_file(&file).unwrap();
    fs::write(&file, &whole).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o660)).unwrap();
    refused("writable", "others may have written it");
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    restore().finish().expect(0);
}

/// The text of a document with its checksum, as an archive has it.
fn sealed(document: &Value) -> String {
    let mut document = document.clone();
    document.as_object_mut().unwrap().remove("sha256");
    // The order of its fields is kept, and the last one is a list.
    let mut text = serde_json::to_string_pretty(&document).unwrap();
    text.truncate(text.trim_end_matches(['}', '\n']).len());
    let checksum: String =
        Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{text},\n  \"sha256\": \"{checksum}\"\n}}\n")
}

/// Who can make a new checksum gets no further than that.
fn with_a_new_checksum() {
    an_archive(b"content");
    let file = the_file(".json");
    let whole: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    fs::write(&file, sealed(&whole)).unwrap();
    restore().arg("-n").finish().expect(0);
    let precious = scratch().join("precious");
    fs::write(&precious, "content").unwrap();
    let data = whole["entries"][0]["data"].clone();
    let another = |path: &str| {
        let mut entry = whole["entries"][0].clone();
        (entry["path"], entry["data"]) =
            (json!(path), json!(data.as_str().unwrap().replace(".0.", ".1.")));
        entry
    };
    let mut directory = whole["entries"][0].clone();
    (directory["type"], directory["size"]) = (json!("directory"), json!(0));
    directory.as_object_mut().unwrap().retain(|key, _| key != "data" && key != "sha256");
    let tree = |path: &str| json!([directory, another(path)]);
    let long = "x".repeat(256);
    for (what, pointer, value) in [
        ("slash", "/file", json!("../x")),
        ("absolute", "/file", json!("/etc/x")),
        ("parent", "/file", json!("..")),
        ("itself", "/file", json!(".")),
        ("empty", "/file", json!("")),
        ("nul", "/file", json!("a\0b")),
        ("long", "/file", json!(long)),
        ("newer schema", "/schema", json!("rtrack.archive/2")),
        ("no schema", "/schema", json!(1)),
        ("kind", "/kind", json!("sem")),
        ("time", "/saved_at", json!("yesterday")),
        ("no entries", "/entries", json!([])),
        ("path of the object", "/entries/0/path", json!("x")),
        ("size", "/entries/0/size", json!(8)),
        ("negative size", "/entries/0/size", json!(-1)),
        ("size beyond all", "/entries/0/size", json!(u64::MAX)),
        ("digest", "/entries/0/sha256", json!("0".repeat(64))),
        ("no digest", "/entries/0/sha256", Value::Null),
        ("mode", "/entries/0/mode", json!("10000")),
        ("nanoseconds", "/entries/0/mtime/ns", json!(1_000_000_000)),
        ("data elsewhere", "/entries/0/data", json!("../precious")),
        ("data of nobody", "/entries/0/data", json!("precious")),
        ("no data", "/entries/0/data", Value::Null),
        ("type", "/entries/0/type", json!("device")),
        ("link", "/entries/0/type", json!("symlink")),
        ("two objects", "/entries", json!([whole["entries"][0], another("x")])),
    ] {
        let mut document = whole.clone();
        *document.pointer_mut(pointer).unwrap() = value;
        fs::write(&file, sealed(&document)).unwrap();
        refused(what, "");
    }
    for inside in ["/etc/x", "../x", "x/../y", "./x", "a//b", "missing/x", "x/", "", &long] {
        let mut document = whole.clone();
        (document["kind"], document["entries"]) = (json!("dir"), tree(inside));
        fs::write(&file, sealed(&document)).unwrap();
        refused(inside, "cannot be");
    }
    let mut document = whole.clone();
    document["kind"] = json!("dir");
    document["entries"] = json!([directory]);
    document["file"] = json!(".rtrack.0123456789abcdef");
    fs::write(&file, sealed(&document)).unwrap();
    refused("a quarantine", "rtrack's own");
    assert_eq!(fs::read(&precious).unwrap(), b"content");
}

/// One that is damaged keeps no other from coming back, nor does what is no entry at all.
fn of_one_among_others() {
    for number in 0..3 {
        fs::write(path(orphan(number)), vec![1; 5000]).unwrap();
    }
    let was = state(orphan(2));
    let report = reap_to_archive().finish().expect(0).json();
    let entry = |number| {
        let listed = crate::support::listed(&report, &orphan(number));
        listed["archived"].as_str().unwrap().to_owned()
    };
    let data = archive().join(format!("{}.0.data", entry(0)));
    OpenOptions::new().write(true).open(data).unwrap().write_all_at(b"x", 77).unwrap();
    fs::remove_file(archive().join(format!("{}.json", entry(1)))).unwrap();
    File::create(archive().join("README")).unwrap();
    fs::create_dir(archive().join("lost+found")).unwrap();
    let restored = restore().finish().expect(3).json();
    assert_eq!(became(&restored, &orphan(0)).0, "refused");
    assert_eq!(became(&restored, &entry(1)).0, "refused");
    assert_eq!(became(&restored, &orphan(2)).0, "restored");
    assert_eq!(restored["objects"].as_array().map(Vec::len), Some(3), "{restored:#}");
    exactly(&[&orphan(2)]);
    assert_eq!(state(orphan(2)), was);
}
