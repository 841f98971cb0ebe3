//! The `rtrack` command: parse, run, exit status. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    rtrack::commands::main(std::env::args_os())
}
