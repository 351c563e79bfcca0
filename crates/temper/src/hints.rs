//! The way out of errors whose message alone does not show it, by the crate that reports them.

use std::error::Error as StdError;
use std::io::ErrorKind as Kind;

use temper_train::recipe::RecipeError;

/// The way out of one cause in a chain.
pub(crate) fn of(cause: &(dyn StdError + 'static)) -> Option<String> {
    if let Some(error) = cause.downcast_ref::<temper_train::Error>() {
        return train(error);
    }
    if let Some(error) = cause.downcast_ref::<RecipeError>() {
        return Some(recipe(error).into());
    }
    let found = cause.downcast_ref().and_then(data).or_else(|| cause.downcast_ref().and_then(env));
    let found =
        found.or_else(|| cause.downcast_ref().and_then(model)).or_else(|| cause.downcast_ref().and_then(format));
    found.or_else(|| cause.downcast_ref::<std::io::Error>().and_then(system)).map(String::from)
}

fn train(error: &temper_train::Error) -> Option<String> {
    use temper_train::Error;
    let hint = match error {
        Error::Recipe(error) => Some(recipe(error)),
        Error::Data(error) => data(error),
        Error::Env(error) => env(error),
        Error::Model(error) => model(error),
        Error::Format(error) => format(error),
        Error::Io { source, .. } => system(source),
        _ => error.hint(),
    };
    hint.map(String::from)
}

fn recipe(error: &RecipeError) -> &'static str {
    match error {
        RecipeError::Read { source, .. } => match source.kind() {
            Kind::IsADirectory => "name the recipe file itself",
            Kind::InvalidData => "a recipe is a text file (TOML in UTF-8)",
            _ => "name a recipe file; those that come with temper lie in recipes/",
        },
        RecipeError::Toml { .. } => "mend the line that is named; a recipe is TOML (https://toml.io)",
        RecipeError::Shape { .. } => "`temper recipe schema` prints every key with its meaning and default",
        RecipeError::Set { .. } => "for example --set seed=7, --set model.policy.path=DIR or --set stage.sft.steps=10",
    }
}

const TEMPLATE: &str =
    "the template is chat_template.jinja beside the model, or stands in its tokenizer_config.json: mend it there";

fn data(error: &temper_data::Error) -> Option<&'static str> {
    use temper_data::Error;
    match error {
        Error::File { .. } => Some("check the path and its permissions"),
        Error::Content { .. } | Error::Tokenizer(_) => Some("mend the file, or get it again from where it came"),
        Error::BadRows { .. } => Some("mend or remove these rows; a file's format is recognised by its first object"),
        Error::TemplateSyntax(_) | Error::Render(_) | Error::EndlessTemplate { .. } => Some(TEMPLATE),
        Error::NothingSupervised { cause, .. } if matches!(cause.as_str(), "unrenderable" | "rewritten_history") => {
            Some(TEMPLATE)
        }
        Error::NothingSupervised { .. } => Some(
            "are there assistant turns, and do they fit in `max_tokens` and the model's context? `mask = \"all\"` trains on every token",
        ),
        Error::Storage(error) => format(error),
        _ => None,
    }
}

fn env(error: &temper_env::Error) -> Option<&'static str> {
    use temper_env::Error;
    match error {
        Error::Read { .. } => Some("check the path and the file"),
        Error::Row { .. } | Error::Gold { .. } => Some("mend or remove the row that is named"),
        Error::Command { .. } => {
            Some("try the command by hand: one JSON line in, one JSON line such as {\"reward\": 0.5} out")
        }
        Error::NoTask { .. } => Some("ask for fewer tasks"),
        _ => None,
    }
}

fn model(error: &temper_model::Error) -> Option<&'static str> {
    use temper_model::Error;
    match error {
        Error::File(error) => format(error),
        Error::In { source, .. } => model(source),
        Error::Json { .. } => Some("mend the file, or get it again from where the model came"),
        Error::TensorShape { .. } | Error::TensorNames { .. } => {
            Some("config.json and the weights are of different models: get both again from the same place")
        }
        Error::TooLarge { .. } => Some("use a smaller model, or a machine with more memory"),
        Error::NotFinite { .. } | Error::BadLogits { .. } => {
            Some("use an earlier checkpoint, or get the weights again")
        }
        Error::Config { .. } => Some("mend config.json, or in a recipe the `shape` of the `init` stage"),
        _ => None,
    }
}

fn format(error: &temper_format::Error) -> Option<&'static str> {
    use temper_format::Error;
    match error {
        Error::Io { source, .. } => system(source),
        Error::Malformed { .. } | Error::NoSuchArray { .. } => {
            Some("the file may be cut short or of another kind: get it again from where it came")
        }
        Error::NoWeights { .. } => Some("name a directory with the model's weights as safetensors, or a .gguf file"),
        Error::OutOfMemory { .. } => Some("use a smaller model, or a machine with more memory"),
        _ => None,
    }
}

/// What the operating system refuses.
fn system(error: &std::io::Error) -> Option<&'static str> {
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            Some("free some space on the disk; nothing that was complete is lost")
        }
        Kind::FileTooLarge => {
            Some("raise the limit on the size of a file (`ulimit -f`); nothing that was complete is lost")
        }
        Kind::NotFound | Kind::NotADirectory | Kind::IsADirectory => Some("check the path"),
        Kind::PermissionDenied => Some("check the permissions of the file and its directory"),
        Kind::ReadOnlyFilesystem => Some("write to another place"),
        Kind::AlreadyExists => Some("name another place"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_the_template_refuses_point_to_the_template() {
        let error = |cause: &str| temper_data::Error::NothingSupervised {
            rows: 1,
            detail: String::new(),
            cause: cause.to_owned(),
        };
        assert_eq!(of(&error("unrenderable")).as_deref(), Some(TEMPLATE));
        assert!(of(&error("too_long")).is_some_and(|hint| hint.contains("max_tokens")));
    }

    #[test]
    fn a_full_disk_is_recognised_however_deep() {
        let full = || std::io::Error::from(Kind::StorageFull);
        let io = || temper_format::Error::Io { action: "write", path: "x".into(), source: full() };
        let errors: [Box<dyn StdError>; 4] = [
            Box::new(full()),
            Box::new(io()),
            Box::new(temper_train::Error::from(io())),
            Box::new(temper_train::Error::from(temper_model::Error::from(io()))),
        ];
        for error in errors {
            assert!(of(error.as_ref()).is_some_and(|hint| hint.starts_with("free some space")), "{error:?}");
        }
    }
}
