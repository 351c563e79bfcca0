//! Gradient transforms, what follows an update, and frozen parameters.

use super::Found;
use crate::recipe::{AfterUpdate, Freeze, GradientTransform, Training};

pub(super) fn problems(at: &str, stage: &Training, found: &mut Found) {
    for (i, transform) in stage.gradient.iter().enumerate() {
        let GradientTransform::L2Sp { weight, parameters } = transform;
        let at = &format!("{at}, `gradient.{i}`");
        if !(*weight > 0.0 && weight.is_finite()) {
            found.error(at, format!("`weight` is {weight}"), "give it a finite number above 0, or remove it");
        }
        if stage.gradient[..i].iter().any(|before| before == transform) {
            found.error(at, "it is given twice", "add the weights up");
        }
        if parameters.as_ref().is_some_and(Vec::is_empty) {
            found.error(at, "`parameters` is empty", "name some, or leave it out for all");
        }
        if stage.adapter.is_some() {
            found.error(
                at,
                "an adapter's own start is no model to stay near",
                "use `weight_decay`, or train without it",
            );
        }
    }
    for (i, after) in stage.after_update.iter().enumerate() {
        let at = &format!("{at}, `after_update.{i}`");
        if stage.after_update[..i].iter().any(|before| before.name() == after.name()) {
            found.error(at, format!("two of kind `{}`", after.name()), "give one of them");
        }
        after_problems(at, after, stage, found);
    }
    match stage.freeze {
        Some(_) if stage.adapter.is_some() => {
            found.error(at, "`freeze` has no effect: with an adapter the model is frozen", "remove one of the two");
        }
        Some(Freeze::Names { names }) if names.is_empty() => found.error(at, "`freeze` names nothing", "remove it"),
        _ => {}
    }
}

fn after_problems(at: &str, after: &AfterUpdate, stage: &Training, found: &mut Found) {
    let share = |name: &str, value: f64, most: f64, hint: &str, found: &mut Found| {
        if !(value > 0.0 && (value < most || most > 1.0 && value == 1.0)) {
            found.error(at, format!("`{name}` is {value}"), hint);
        }
    };
    match *after {
        AfterUpdate::Ema { decay } => {
            share("decay", decay, 1.0, "between 0 and 1: 0 keeps no average, 1 nothing new", found);
        }
        AfterUpdate::LookAhead { alpha, .. } => {
            share("alpha", alpha, 1.0, "between 0 and 1: at 1 nothing is looked back from", found);
        }
        AfterUpdate::ReferenceSync { alpha, .. } => {
            share("alpha", alpha, 2.0, "above 0 and at most 1", found);
            if !stage.needs_reference() {
                found.error(
                    at,
                    "nothing in the stage compares with a reference, so none can follow",
                    "remove it, or add a KL term",
                );
            }
            if stage.adapter.is_some() {
                found.error(
                    at,
                    "with an adapter the reference is the policy without it, which does not move",
                    "remove one of the two",
                );
            }
        }
    }
    if let Some(every) = after.every() {
        found.positive(at, "every", every as usize);
    }
    if let Some(never) = stage.updates.and_then(|updates| after.never(updates)) {
        found.error(at, never.message, never.hint);
    }
}
