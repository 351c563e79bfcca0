//! The machine, and what a run records about it in `env.json`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use temper_tensor::Cpu;

use crate::args::Threads;
use crate::failure::user;

/// The device, after a look at whether it can be used as asked.
pub(crate) fn device(threads: Threads) -> anyhow::Result<Cpu> {
    temper_tensor::isa::requested().map_err(temper_train::Error::from)?;
    if let Some(n) = threads.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n.into())
            .build_global()
            .map_err(|e| user(format!("cannot start {n} threads: {e}"), "use fewer with --threads"))?;
    }
    Ok(Cpu::new())
}

/// What `env.json` says: everything besides the recipe that one needs to repeat a run or to judge its times.
pub(crate) fn record(seed: u64) -> serde_json::Value {
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "commit": env!("TEMPER_COMMIT"),
        "command": command_line(std::env::args_os(), &std::env::current_dir().unwrap_or_default()),
        "seed": seed,
        "machine": cpu_model(),
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "threads": rayon::current_num_threads(),
        "isa": temper_tensor::isa().name(),
        "f32": temper_tensor::f32_products(),
        "bf16": temper_tensor::dot().name(),
        "memory_bytes": proc_kib("/proc/meminfo", "MemTotal:").map(|kib| kib * 1024),
        "os": format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

/// Most memory that this process has had, bytes, where the system tells.
pub(crate) fn peak_memory() -> Option<u64> {
    proc_kib("/proc/self/status", "VmHWM:").map(|kib| kib * 1024)
}

fn cpu_model() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    model.map_or_else(|| std::env::consts::ARCH.to_owned(), |(_, name)| name.trim().to_owned())
}

fn proc_kib(path: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key))?.split_whitespace().next()?.parse().ok()
}

/// The command as typed, with paths below the current directory made relative to it: a run directory is passed around,
/// and where it was made is nobody's business.
fn command_line(args: impl Iterator<Item = OsString>, here: &Path) -> String {
    let words = args.skip(1).map(|arg| quoted(&relative(&arg.to_string_lossy(), here)));
    std::iter::once("temper".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// The value of `a=b` is looked at too.
fn relative(arg: &str, here: &Path) -> String {
    let (head, path) = arg.split_once('=').map_or(("", arg), |(key, value)| (&arg[..=key.len()], value));
    let path = match Path::new(path).strip_prefix(here) {
        Ok(rest) if rest == Path::new("") => PathBuf::from("."),
        Ok(rest) => rest.to_owned(),
        Err(_) => PathBuf::from(path),
    };
    format!("{head}{}", path.display())
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_can_be_typed_again_and_tells_no_places() {
        let args = [
            "/opt/bin/temper",
            "run",
            "/home/a/w/recipes/x.toml",
            "--set",
            "model.policy.path=/home/a/w/m",
            "--set",
            "name=it's",
        ];
        let text = command_line(args.iter().map(OsString::from), Path::new("/home/a/w"));
        assert_eq!(text, r"temper run recipes/x.toml --set model.policy.path=m --set 'name=it'\''s'");
    }
}
