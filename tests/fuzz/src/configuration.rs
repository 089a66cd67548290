//! Reading any configuration: findings and fields name lines that exist.

use std::path::Path;

use agent::config::Config;

/// Reads the text that the input is, as a configuration.
///
/// # Panics
/// Where a finding points nowhere.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if text.len() > 64 * 1024 {
        return;
    }
    let (config, findings) = Config::read(Path::new("millrace.yaml"), text);
    let lines = text.lines().count().max(1) as u32;
    for finding in &findings {
        assert!(finding.line <= lines, "{finding} in {lines} lines");
        assert!(!finding.message.is_empty());
    }
    for field in ["interfaces", "limits.flows", "pools[0].addresses[0]"] {
        assert!((1..=lines).contains(&config.line(field)), "{field}");
    }
}
