//! `rtrack completions`: the shell completions, from the command line itself.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Status, error::CommandError, ui::Ui};

/// The arguments of `rtrack completions`.
#[derive(Debug, clap::Args)]
pub struct CompletionsArgs {
    /// The shell to print completions for
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the completions.
///
/// # Errors
/// stdout could not be written.
pub fn run(args: &CompletionsArgs, ui: &Ui) -> Result<Status, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "rtrack", &mut script);
    ui.answer(|out| out.write_all(&script))?;
    Ok(0)
}
