//! `temper check`: every problem of every recipe at once, each with the way out.

use std::fmt::Write as _;
use std::path::Path;

use super::inspect::{Inspected, problem_lines};
use crate::args::Check;
use crate::failure::{self, Exit};
use crate::output::data;

/// Runs the command.
pub(crate) fn run(args: &Check) -> anyhow::Result<Exit> {
    let mut all_good = true;
    for path in &args.recipes {
        match Inspected::read(path, &args.overrides.sets) {
            Ok(found) => {
                all_good &= found.errors() == 0;
                data(&verdict(path, &found))?;
            }
            Err(error) => {
                all_good = false;
                data(&format!("{}: cannot be read\n", path.display()))?;
                failure::explain(&error);
            }
        }
    }
    Ok(if all_good { Exit::Done } else { Exit::User })
}

fn verdict(path: &Path, found: &Inspected) -> String {
    let (errors, warnings) = (found.errors(), found.problems.len() - found.errors());
    let counts =
        [(errors, "error"), (warnings, "warning"), (found.not_local.len(), "not local")].map(|(n, what)| match n {
            0 => None,
            1 => Some(format!("1 {what}")),
            n => Some(format!("{n} {what}{}", if what == "not local" { "" } else { "s" })),
        });
    let counts: Vec<String> = counts.into_iter().flatten().collect();
    let ok = if errors == 0 { vec!["ok".to_owned()] } else { vec![] };
    let mut text = format!("{}: {}\n", path.display(), [ok, counts].concat().join(", "));
    if !found.recipe.about.is_empty() && errors == 0 {
        let _ = writeln!(text, "  {}", found.recipe.about);
    }
    for problem in &found.problems {
        let [what, hint] = problem_lines(problem);
        let _ = writeln!(text, "  {what}\n    {hint}");
    }
    for missing in &found.not_local {
        let _ = writeln!(text, "  not local: {}: `{}`", missing.at, missing.name);
    }
    if !found.not_local.is_empty() {
        text.push_str(
            "    hint: `temper run` downloads what is not local; without a network name local copies with --set\n",
        );
    }
    text
}
