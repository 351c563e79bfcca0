//! Tells the binary which commit it was built from, where git knows (the build never fails because of it), and puts the
//! recipes into it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    commit();
    recipes();
}

fn commit() {
    let commit = git(&["rev-parse", "--short=12", "HEAD"]).map_or_else(
        || "unknown".to_owned(),
        |commit| {
            let changed = git(&["status", "--porcelain", "--untracked-files=no", "--", "..", "../../Cargo.toml"]);
            if changed.is_some_and(|files| !files.is_empty()) { format!("{commit}-changed") } else { commit }
        },
    );
    println!("cargo:rustc-env=TEMPER_COMMIT={commit}");
    // A new commit, another branch, or a changed source: each can change the answer.
    println!("cargo:rerun-if-changed=..");
    let head = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "packed-refs"].into_iter().map(str::to_owned).chain(head) {
        if let Some(path) = git(&["rev-parse", "--git-path", &name]).filter(|p| std::path::Path::new(p).exists()) {
            println!("cargo:rerun-if-changed={path}");
        }
    }
}

/// Writes `recipes.rs`: a static table of (file name, text) of every recipe.
fn recipes() {
    // As cargo says now: this program may have been compiled for another copy of the source.
    let package = std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo");
    let folder = Path::new(&package).join("../../recipes");
    println!("cargo:rerun-if-changed={}", folder.display());
    let entries = std::fs::read_dir(&folder).expect("the folder of recipes is part of the source");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "toml"));
    files.sort();
    let mut text = String::from("static RECIPES: &[(&str, &str)] = &[\n");
    for path in files {
        let name = path.file_name().and_then(|n| n.to_str()).expect("recipes have plain names");
        writeln!(text, "    ({name:?}, include_str!({:?})),", path.display().to_string()).expect("a string grows");
    }
    text += "];\n";
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("set by cargo")).join("recipes.rs");
    std::fs::write(out, text).expect("the build's own folder can be written");
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
