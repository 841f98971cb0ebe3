//! The streams: everything a command prints goes through [`Ui`].
//!
//! stdout carries answers and its errors matter (a full disk must not look like an empty list),
//! but for a reader that closed the pipe early, which is no error. stderr carries messages; a
//! broken stderr never stops the work.

use std::io::{self, IsTerminal, Write};

use crate::tracker::resource::escape;
use crate::tracker::sys;

/// When to colour the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum ColorChoice {
    /// Only on a terminal, and not when `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// The streams of one run and what was said about them on the command line.
#[derive(Debug)]
pub struct Ui {
    /// Silences what is not an error (`-q`).
    pub quiet: bool,
    color: ColorChoice,
}

impl Ui {
    /// A `Ui` with the global options of the command line.
    #[must_use]
    pub fn new(quiet: bool, color: ColorChoice) -> Self {
        Self { quiet, color }
    }

    /// Whether stdout is to be coloured.
    #[must_use]
    pub fn colored(&self) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto => {
                std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
                    && self.stdout_is_terminal()
            }
        }
    }

    /// Whether stdout is a terminal.
    #[must_use]
    pub fn stdout_is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Whether stderr is a terminal.
    #[must_use]
    pub fn stderr_is_terminal(&self) -> bool {
        io::stderr().is_terminal()
    }

    /// Whether somebody can be asked: stdin and stderr are terminals.
    #[must_use]
    pub fn can_ask(&self) -> bool {
        io::stdin().is_terminal() && io::stderr().is_terminal()
    }

    /// Calls `write` with a buffered stdout and flushes it.
    ///
    /// # Errors
    /// Whatever writing failed with. A reader that closed the pipe is not an error. A stdout that
    /// was closed when the process started is one (`EBADF`): the run-time opened /dev/null in its
    /// place, and an answer written there would be lost silently.
    pub fn answer(
        &self,
        write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), super::error::CommandError> {
        match self.write(write) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(not_written(error)),
            _ => Ok(()),
        }
    }

    /// As [`Ui::answer`], for who has to know that the reader is gone.
    ///
    /// # Errors
    /// Whatever writing failed with.
    pub fn write(&self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
        if sys::was_open_at_start(1) {
            let mut out = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
            let result = write(&mut out).and_then(|()| out.flush());
            // The rest of a buffer that could not be written must not be tried again on drop.
            drop(out.into_parts());
            result
        } else {
            Err(io::Error::from_raw_os_error(nix::libc::EBADF))
        }
    }

    /// `error: …` and `hint: …` for each, a line each whatever names are in them.
    pub fn errors(&self, errors: &[super::error::CommandError]) {
        for error in errors {
            self.line(escape(format!("error: {:#}", error.source).as_bytes()));
            if let Some(hint) = &error.hint {
                self.line(escape(format!("hint: {hint}").as_bytes()));
            }
        }
    }

    /// A line on stderr that `-q` silences.
    pub fn note(&self, text: impl std::fmt::Display) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Text on stderr as it is.
    pub fn raw(text: &str) {
        // A closed or full stderr has nobody left to be told.
        io::stderr().lock().write_all(text.as_bytes()).unwrap_or(());
    }

    /// A line on stderr, or several, that nothing silences.
    ///
    /// What a terminal would obey is escaped here once more, since names and paths of others come into
    /// messages in many ways. Newlines are the message's own: who quotes a name escapes those.
    pub fn line(&self, text: impl std::fmt::Display) {
        let text = text.to_string();
        let lines: Vec<String> = text.split('\n').map(|line| escape(line.as_bytes())).collect();
        // A closed or full stderr has nobody left to be told.
        writeln!(io::stderr().lock(), "{}", lines.join("\n")).unwrap_or(());
    }
}

/// stdout could not be written: status 3.
#[must_use]
pub fn not_written(error: io::Error) -> super::error::CommandError {
    super::error::CommandError::from(anyhow::Error::new(error).context("write to stdout"))
}
