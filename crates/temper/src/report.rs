//! The report of a run: one static HTML file, made from the run directory alone.
//!
//! It loads nothing and runs nothing (styles and plots are inline, and its content policy forbids the rest), so it can be
//! read offline and mailed around. Whatever is missing or cut short in the run directory is said at the top of the page.

mod chart;
mod curves;
mod html;
mod retention;
mod run;
mod samples;

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::Value;

use html::{concat, count, escape};
use run::Run;

/// Write `report.html` into the run directory, whole or not at all, and return its path.
///
/// # Errors
/// The directory holds none of a run's files, or the report cannot be written. A file that is missing, unreadable or cut
/// short is not an error.
pub(crate) fn write(run_dir: &Path) -> anyhow::Result<PathBuf> {
    let run = Run::read(run_dir)?;
    let path = run_dir.join("report.html");
    temper_format::atomic::write(&path, page(&run).as_bytes())
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    Ok(path)
}

fn page(run: &Run) -> String {
    let sections = [
        header(run),
        notices(run),
        retention::section(run),
        curves::section(run),
        samples::section(run),
        recipe(run),
        environment(run),
    ];
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <title>{name} - Temper report</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
        name = escape(&run.name),
        style = include_str!("report/style.css"),
        body = sections.concat(),
    )
}

fn header(run: &Run) -> String {
    let steps: usize = run.stages.iter().map(|s| s.steps.len()).sum();
    let mut facts = vec![];
    if !run.stages.is_empty() {
        let names: Vec<&str> = run.stages.iter().map(|s| s.name.as_str()).collect();
        facts.push(format!("{} ({})", names.join(" \u{2192} "), count(steps as f64, "step")));
    }
    let wall_s: f64 = run.stages.iter().filter_map(run::Stage::wall_s).sum();
    if wall_s > 0.0 {
        facts.push(html::duration(wall_s));
    }
    facts.extend(run.env.iter().flat_map(env_facts));
    format!(
        "<header>\n<p class=\"kind\">Temper run report</p>\n<h1>{}</h1>\n<p class=\"facts\">{}</p>\n</header>\n",
        escape(&run.name),
        concat(facts.iter().map(|f| format!("<span>{}</span>", escape(f)))),
    )
}

/// The handful of facts that identify a run, where `env.json` has them.
fn env_facts(env: &Value) -> Vec<String> {
    let shown = [
        ("version", "temper "),
        ("commit", "commit "),
        ("machine", ""),
        ("isa", ""),
        ("threads", "threads "),
        ("seed", "seed "),
    ];
    let short = |key: &str, text: String| if key == "commit" { text.chars().take(12).collect() } else { text };
    shown
        .into_iter()
        .filter_map(|(key, label)| Some(format!("{label}{}", short(key, html::scalar(env.get(key)?)?))))
        .collect()
}

fn notices(run: &Run) -> String {
    if run.notices.is_empty() {
        return String::new();
    }
    let items = concat(run.notices.iter().map(|n| format!("<li>{}</li>", escape(n))));
    format!(
        "<aside class=\"notices\" aria-label=\"What is missing\">\n<p>Not everything is here:</p>\n<ul>{items}</ul>\n</aside>\n"
    )
}

fn recipe(run: &Run) -> String {
    run.recipe.as_ref().map_or_else(String::new, |text| {
        format!(
            "<section>\n<h2>Recipe</h2>\n<details><summary>recipe.toml, every default spelled out</summary>\
             <pre class=\"code\" tabindex=\"0\">{}</pre></details>\n</section>\n",
            escape(text)
        )
    })
}

fn environment(run: &Run) -> String {
    let Some(env) = &run.env else { return String::new() };
    let mut rows = vec![];
    flatten("", env, &mut rows);
    let row =
        |(k, v): &(String, String)| format!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escape(k), escape(v));
    let rows = concat(rows.iter().map(row));
    format!(
        "<section>\n<h2>Environment</h2>\n<details><summary>env.json: version, machine, seed</summary>\
         <table class=\"plain\"><tbody>{rows}</tbody></table></details>\n</section>\n"
    )
}

/// Leaves of a JSON value with their dotted paths.
fn flatten(path: &str, value: &Value, rows: &mut Vec<(String, String)>) {
    let below = |key: &str| if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
    match value {
        Value::Object(map) => map.iter().for_each(|(key, v)| flatten(&below(key), v, rows)),
        other => rows.push((path.to_owned(), html::scalar(other).unwrap_or_else(|| other.to_string()))),
    }
}

#[cfg(test)]
mod tests;
