//! `temper recipe schema`.

use temper_train::recipe::Recipe;

use crate::args::RecipeCommand;
use crate::failure::Exit;
use crate::output::data;

/// Runs the command.
pub(crate) fn run(args: &RecipeCommand) -> anyhow::Result<Exit> {
    match args {
        RecipeCommand::Schema => data(&format!("{:#}\n", Recipe::schema()))?,
    }
    Ok(Exit::Done)
}
