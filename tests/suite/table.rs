//! What people see: the table at the width of their terminal.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use nix::pty::{Winsize, openpty};
use unicode_width::UnicodeWidthStr;

use crate::support::{Case, case, hold, object, path, rtrack};

pub(crate) fn tests() -> Vec<Case> {
    vec![
        case("into_a_pipe", into_a_pipe),
        case("at_the_width_of_the_terminal", at_the_width_of_the_terminal),
        case("colours", colours),
        case("nothing_there", nothing_there),
    ]
}

/// A name of 90 columns, which no row has room for.
fn long_name() -> String {
    format!("mpich_shar_tmp{}", "x".repeat(76))
}

fn make() {
    object().size(3 << 20).make("mpich_shar_tmpAbC123");
    object().size(70_000).make("größe \u{202e}\x1b[31m");
    object().size(32).make("sem.日本語");
    object().size(10).make(long_name());
}

/// What `rtrack ARGUMENTS…` prints on a terminal of `width` columns, and the part of it that is not
/// the answer.
pub(crate) fn on_terminal(arguments: &[&str], width: u16) -> String {
    let size = Winsize { ws_row: 24, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = openpty(Some(&size), None).unwrap();
    let mut command = rtrack(arguments);
    command.stdin(Stdio::null()).stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut terminal = File::from(pty.master);
    let mut shown = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(length @ 1..) = terminal.read(&mut chunk) {
        shown.extend_from_slice(&chunk[..length]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(shown).unwrap().replace("\r\n", "\n")
}

/// Nothing is cut, nothing is coloured, and nothing but the table is on stdout.
fn into_a_pipe() {
    make();
    let columns = ["list", "-o", "id,size,user,verdict,reason", "--grace", "0s"];
    let run = rtrack(columns).output().unwrap();
    let expected = format!(
        "\
NAME                            SIZE  USER  VERDICT    REASON
shm:mpich_shar_tmpAbC123     3.0 MiB  root  orphaned   always-held-producer: nobody has it mapped, and a live owner always would; made by MPICH and derivatives shared segments
shm:größe \\u{{202e}}\\x1b[31m  68.4 KiB  root  unclaimed  unknown-producer: no known program makes objects of this name
sem:日本語                      32 B  root  unclaimed  unknown-producer: no known program makes objects of this name
shm:{}
                                10 B  root  unclaimed  unknown-producer: no known program makes objects of this name
",
        long_name()
    );
    assert_eq!(String::from_utf8(run.stdout).unwrap(), expected);
}

fn at_the_width_of_the_terminal() {
    make();
    let holder = hold("map-shared", path("sem.日本語"));
    for (width, expected) in [
        // Too narrow for a row: names and numbers stay whole, and a part of the reason.
        (
            40,
            "\
NAME                            SIZE  VERDICT    REASON
shm:mpich_shar_tmpAbC123     3.0 MiB  orphaned   always-held-pro…
shm:größe \\u{202e}\\x1b[31m  68.4 KiB  unclaimed  unknown-produce…
sem:日本語                      32 B  held       lease-refused: …
",
        ),
        (
            100,
            "\
NAME                            SIZE  VERDICT    REASON
shm:mpich_shar_tmpAbC123     3.0 MiB  orphaned   always-held-producer: nobody has it mapped, and a …
shm:größe \\u{202e}\\x1b[31m  68.4 KiB  unclaimed  unknown-producer: no known program makes objects o…
sem:日本語                      32 B  held       lease-refused: the kernel says that somebody has i…
",
        ),
    ] {
        let columns = "id,size,verdict,reason";
        let shown = on_terminal(
            &["list", "--grace", "0s", "-o", columns, "--color", "never", "*AbC*", "gr*", "sem:*"],
            width,
        );
        let (table, _notes) = shown.split_once("/dev/shm: ").unwrap();
        assert_eq!(table, expected);
    }
    // The first holder stands in the table, and a name that is wider than all on a line of its own.
    let shown = on_terminal(&["list", "--grace", "0s", "--color", "never"], 120);
    assert!(shown.contains(&format!("\nshm:{}\n ", long_name())), "{shown}");
    let held = shown.lines().find(|line| line.contains("日本語")).unwrap();
    assert!(held.contains(&format!("exe[{}]", holder.pid)), "{held}");
    let others = shown.lines().filter(|line| line.starts_with("shm:") && !line.contains("xxxx"));
    assert!(others.map(UnicodeWidthStr::width).all(|width| width <= 120));
}

fn colours() {
    object().make("mpich_shar_tmpAbC123");
    let list = |more: &[&str], environment: Option<&str>, terminal: bool| {
        let mut arguments = vec!["list", "--grace", "0s"];
        arguments.extend(more);
        if terminal {
            assert!(environment.is_none());
            return on_terminal(&arguments, 100);
        }
        let mut command = rtrack(arguments);
        command.envs(environment.map(|value| ("NO_COLOR", value)));
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    for (more, environment, terminal, colored) in [
        (&[][..], None, true, true),
        (&[], None, false, false),
        (&["--color", "always"], None, false, true),
        (&["--color", "always"], Some("1"), false, true),
        (&["--color", "never"], None, true, false),
        (&["--color", "auto"], Some("1"), false, false),
    ] {
        let shown = list(more, environment, terminal);
        assert_eq!(
            shown.contains("\x1b["),
            colored,
            "{more:?} {environment:?} {terminal}:\n{shown:?}"
        );
    }
}

/// Silence on stdout, and the fill of the mount for people.
fn nothing_there() {
    let run = rtrack(["list"]).output().unwrap();
    assert!(run.stdout.is_empty() && run.status.success());
    let shown = on_terminal(&["list"], 80);
    assert!(
        shown.starts_with(
            "/dev/shm: [....................] visible 0 B (#), free 256.0 MiB of 256.0 MiB\norphaned 0 (0 B)\n"
        ),
        "{shown}"
    );
}
