//! Memory of this process, for measurements.

use tempfile::TempDir;

/// Bytes of the largest resident set since the last [`reset_peak`].
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.unwrap().trim().strip_suffix(" kB").unwrap();
    kib.parse::<u64>().unwrap() << 10
}

/// Begins anew from what is resident now.
pub(crate) fn reset_peak() {
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
}

/// For people.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// A directory with room for measurements.
pub(crate) fn directory() -> TempDir {
    let base = std::env::var_os("LUMEOFS_TEST_DIR").unwrap_or_else(|| "/var/tmp".into());
    TempDir::new_in(base).unwrap()
}
