//! Whether a model can fit in this machine at all, asked before its weights are allocated.

use crate::config::Config;
use crate::error::{Error, Result};

/// The weights alone, in f32, must fit in physical memory.
pub(crate) fn check(config: &Config) -> Result<()> {
    let parameters = config.parameter_count();
    let needed = parameters.saturating_mul(4);
    match physical() {
        Some(available) if needed > available => Err(Error::TooLarge { parameters, needed, available }),
        _ => Ok(()),
    }
}

/// Bytes of physical memory, where the system says.
fn physical() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_config_may_still_be_too_large_for_the_machine() {
        let mut config = Config::llama(1 << 24, 1 << 14, 1 << 12, 1 << 7);
        config.intermediate_size = 1 << 20;
        config.validate().unwrap();
        let message = check(&config).unwrap_err().to_string();
        assert!(message.contains("bytes of memory"), "{message}");
        check(&Config::llama(97, 64, 2, 4)).unwrap();
    }
}
