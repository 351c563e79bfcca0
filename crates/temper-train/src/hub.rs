//! Names that begin with `hf:`: models and data files of the Hugging Face Hub, in its local cache.
//!
//! `hf:owner/name` is a model, `hf:datasets/owner/name/file` a data file. What is in the cache (`HF_HOME`) is used from there;
//! what is not is downloaded by `temper run`, and reported as "not local" by `temper check`.

use std::path::PathBuf;

use hf_hub::{Cache, Repo, RepoType};
use temper_env::TaskSource;

use crate::error::{Error, Result};

/// A parsed `hf:` name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName {
    repo: String,
    dataset: bool,
    file: Option<String>,
}

impl HubName {
    /// Parses `hf:...`; `None` when `name` does not begin so.
    pub fn parse(name: &str) -> Option<Result<Self>> {
        let rest = name.strip_prefix("hf:")?;
        let (dataset, rest) = match rest.strip_prefix("datasets/") {
            Some(rest) => (true, rest),
            None => (false, rest),
        };
        let mut parts = rest.splitn(3, '/');
        let (owner, repo, file) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""), parts.next());
        let fits = !owner.is_empty() && !repo.is_empty() && (file.is_some_and(|f| !f.is_empty()) || !dataset);
        if !fits {
            return Some(Err(Error::user(
                format!("`{name}` is not a Hub name"),
                "write `hf:owner/name` for a model, `hf:datasets/owner/name/file` for a data file",
            )));
        }
        Some(Ok(Self { repo: format!("{owner}/{repo}"), dataset, file: file.map(String::from) }))
    }

    fn repo(&self) -> Repo {
        Repo::new(self.repo.clone(), if self.dataset { RepoType::Dataset } else { RepoType::Model })
    }

    /// Where it lies in the cache, if it does.
    pub fn cached(&self) -> Option<PathBuf> {
        let repo = Cache::from_env().repo(self.repo());
        if let Some(file) = &self.file {
            repo.get(file)
        } else {
            // Whole or not there: a download that was cut short lacks the tokenizer or a shard.
            let config = repo.get("config.json")?;
            repo.get("tokenizer.json")?;
            if repo.get("model.safetensors").is_none() {
                let index = std::fs::read(repo.get("model.safetensors.index.json")?).ok()?;
                let index: serde_json::Value = serde_json::from_slice(&index).ok()?;
                for shard in index["weight_map"].as_object()?.values() {
                    repo.get(shard.as_str()?)?;
                }
            }
            config.parent().map(PathBuf::from)
        }
    }

    fn download(&self) -> Result<PathBuf> {
        let failed = |e: hf_hub::api::sync::ApiError| {
            Error::user(
                format!("`hf:{}` could not be downloaded: {e}", self.repo),
                "check the name and the network, or name local files with --set",
            )
        };
        let api = hf_hub::api::sync::ApiBuilder::from_env().with_progress(false).build().map_err(failed)?;
        let repo = api.repo(self.repo());
        if let Some(file) = &self.file {
            return repo.get(file).map_err(failed);
        }
        let config = repo.get("config.json").map_err(failed)?;
        let info = repo.info().map_err(failed)?;
        let wanted = |name: &str| {
            let small =
                ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"];
            small.contains(&name)
                || name == "chat_template.jinja"
                || name.starts_with("model") && name.contains("safetensors")
        };
        for file in info.siblings.iter().filter(|s| wanted(&s.rfilename)) {
            repo.get(&file.rfilename).map_err(failed)?;
        }
        Ok(config.parent().map(PathBuf::from).unwrap_or_default())
    }
}

/// The local path of a name in a recipe: as it is, from the Hub's cache, or downloaded.
pub fn local(name: &str) -> Result<PathBuf> {
    match HubName::parse(name) {
        None => Ok(PathBuf::from(name)),
        Some(hub) => {
            let hub = hub?;
            hub.cached().map_or_else(|| hub.download(), Ok)
        }
    }
}

/// A task source with its `hf:` names replaced by local paths.
pub fn local_tasks(source: &TaskSource) -> Result<TaskSource> {
    let mut source = source.clone();
    for path in source.paths_mut() {
        *path = local(path)?.to_string_lossy().into_owned();
    }
    Ok(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let parse = |s: &str| HubName::parse(s).unwrap().unwrap();
        assert!(HubName::parse("models/tiny").is_none());
        assert_eq!(parse("hf:a/b"), HubName { repo: "a/b".into(), dataset: false, file: None });
        let data = parse("hf:datasets/openai/gsm8k/main/train.jsonl");
        assert_eq!(data, HubName { repo: "openai/gsm8k".into(), dataset: true, file: Some("main/train.jsonl".into()) });
        for bad in ["hf:", "hf:a", "hf:datasets/a/b", "hf:datasets/a/b/"] {
            assert!(HubName::parse(bad).unwrap().is_err(), "{bad}");
        }
    }
}
