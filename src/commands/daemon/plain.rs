//! The command line as those write it who start trackers, read without clap.
//!
//! Every program that uses `multiprocessing` waits for its tracker. To set up clap for all of
//! rtrack's commands takes as long as everything else until the first read, and touches a
//! megabyte of the program that the daemon then keeps resident. So what launchers write is read
//! here: `daemon`, then long options and their values as words of their own. For everything else
//! the answer is `None`, and clap reads it: another order, abbreviations, mistakes, `--help`.

use std::ffi::{OsStr, OsString};

use super::DaemonArgs;
use super::listen::ListenArgs;
use crate::tracker::service::dialect::Dialect;

/// The arguments of `rtrack daemon`, if `arguments` (with the program's name first) are of the
/// plain form. What is answered is what clap would have answered.
#[must_use]
pub fn parse(arguments: &[OsString]) -> Option<DaemonArgs> {
    let [_, command, options @ ..] = arguments else { return None };
    if command != "daemon" {
        return None;
    }
    let mut fd = None;
    let mut protocol = None;
    let mut audit = None;
    let mut ready_fd = None;
    let mut in_place_of = None;
    let (mut verbose, mut no_warnings, mut missing_files_ok) = (false, false, false);
    let mut words = options.iter();
    while let Some(option) = words.next() {
        // An option that is there twice is a mistake, and clap's to tell.
        let fresh = match option.to_str()? {
            "--fd" => fd.replace(number(words.next()?)?).is_none(),
            "--ready-fd" => ready_fd.replace(number(words.next()?)?).is_none(),
            "--protocol" => {
                let word = words.next()?.as_encoded_bytes();
                protocol.replace(Dialect::from_word(word)?).is_none()
            }
            "--audit" => {
                let file = words.next()?;
                !file.is_empty() && !is_option(file) && audit.replace(file.into()).is_none()
            }
            "--in-place-of" => {
                let command = words.next()?;
                !command.is_empty()
                    && !is_option(command)
                    && in_place_of.replace(command.clone()).is_none()
            }
            "--verbose" => !std::mem::replace(&mut verbose, true),
            "--no-warnings" => !std::mem::replace(&mut no_warnings, true),
            "--missing-files-ok" => !std::mem::replace(&mut missing_files_ok, true),
            _ => false,
        };
        if !fresh {
            return None;
        }
    }
    Some(DaemonArgs {
        fd: Some(fd?),
        listen: ListenArgs::default(),
        protocol: protocol.unwrap_or_default(),
        verbose,
        no_warnings,
        missing_files_ok,
        audit,
        keep_used: false,
        assume_complete: false,
        report: None,
        ready_fd,
        in_place_of,
        control: None,
        journal: None,
    })
}

fn is_option(word: &OsStr) -> bool {
    word.as_encoded_bytes().starts_with(b"-")
}

/// A descriptor in digits alone.
fn number(word: &OsStr) -> Option<i32> {
    let word = word.to_str()?;
    word.bytes().all(|byte| byte.is_ascii_digit()).then(|| word.parse().ok())?
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use proptest::prelude::*;

    use super::*;
    use crate::commands::{Cli, Command};

    fn by_clap(words: &[&str]) -> Option<DaemonArgs> {
        match Cli::try_parse_from(words).ok()?.command {
            Command::Daemon(args) => Some(args),
            _ => None,
        }
    }

    fn by_itself(words: &[&str]) -> Option<DaemonArgs> {
        let words: Vec<OsString> = words.iter().map(Into::into).collect();
        parse(&words)
    }

    #[test]
    fn what_launchers_write() {
        for words in [
            &["rtrack", "daemon", "--fd", "5"][..],
            &["rtrack", "daemon", "--fd", "0", "--protocol", "loky", "--verbose"],
            &["rtrack", "daemon", "--no-warnings", "--fd", "7", "--ready-fd", "8"],
            &["rtrack", "daemon", "--fd", "5", "--protocol", "rtrack"],
            &["rtrack", "daemon", "--fd", "5", "--protocol", "loky", "--missing-files-ok"],
            &["rtrack", "daemon", "--audit", "removed.jsonl", "--fd", "2147483647"],
            &["rtrack", "daemon", "--fd", "5", "--in-place-of", "from a import main;main(5)"],
        ] {
            let plain = by_itself(words);
            assert!(plain.is_some(), "{words:?}");
            assert_eq!(plain, by_clap(words), "{words:?}");
        }
    }

    proptest! {
        #[test]
        fn never_anything_but_what_clap_says(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "--fd", "--ready-fd", "--protocol", "--audit", "--verbose", "--no-warnings",
                    "--missing-files-ok", "--in-place-of", "5", "05", "+5", "-5", "2147483648", "", "--", "-", "loky", "any", "Any",
                    "rtrack", "cpython", "file", "--fd=5", "--quiet", "-q", "--help", "--color", "daemon",
                ]),
                0..7,
            )
        ) {
            let mut line = vec!["rtrack", "daemon", "--fd", "3"];
            line.extend(&words);
            for words in [&line[..], &line[..2], &line[1..]] {
                if let Some(plain) = by_itself(words) {
                    prop_assert_eq!(Some(plain), by_clap(words));
                }
            }
        }
    }
}
