//! How much memory there is, and whether a model can fit at all, asked before its weights are allocated.

use crate::config::Config;
use crate::error::{Error, Result};

/// The weights alone, which need so many bytes, must fit in physical memory.
pub(crate) fn check(config: &Config, needed: u64) -> Result<()> {
    let parameters = config.parameter_count();
    match available() {
        Some(available) if needed > available => Err(Error::TooLarge { parameters, needed, available }),
        _ => Ok(()),
    }
}

/// Bytes that this process may have, where the system says: physical memory, or less in a container.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let physical = line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
    let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
    let limit = |path: &&str| std::fs::read_to_string(path).ok()?.trim().parse().ok();
    Some(limits.iter().filter_map(limit).fold(physical, u64::min))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_config_may_still_be_too_large_for_the_machine() {
        let mut config = Config::llama(1 << 24, 1 << 14, 1 << 12, 1 << 7);
        config.intermediate_size = 1 << 20;
        config.validate().unwrap();
        let message = check(&config, config.parameter_count().saturating_mul(4)).unwrap_err().to_string();
        assert!(message.contains("bytes of memory"), "{message}");
        check(&Config::llama(97, 64, 2, 4), 4 << 20).unwrap();
    }
}
