//! What commands print: JSON for programs, tables for people.
//!
//! Nothing here panics: standard output may be a full disk, or a pipe whose reader has enough.

use serde::Serialize;
use std::io::{ErrorKind, IsTerminal as _, Write as _};

/// Prints a line: `line(format_args!(…))`.
pub(crate) fn line(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout(), "{text}")?)
}

/// Tells people what is going on, on standard error, if there is anybody.
pub(crate) fn note(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Replaces the last line of standard error if that is a terminal.
pub(crate) fn status(text: impl std::fmt::Display) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{text}");
    }
}

/// Clears the terminal, if standard output is one.
pub(crate) fn clear() -> anyhow::Result<()> {
    let mut out = std::io::stdout();
    if out.is_terminal() {
        write!(out, "\x1b[H\x1b[2J")?;
    }
    Ok(())
}

/// Whether an error only says that nobody reads on, as behind `| head`: nothing to complain about.
pub(crate) fn is_closed(error: &anyhow::Error) -> bool {
    let broken = |error: &std::io::Error| error.kind() == ErrorKind::BrokenPipe;
    error
        .chain()
        .any(|cause| cause.downcast_ref().is_some_and(broken))
}

/// A name for people: names are bytes, and none of them may move a terminal's cursor.
pub(crate) fn name(bytes: &[u8]) -> String {
    let mut shown = String::new();
    for part in bytes.utf8_chunks() {
        for letter in part.valid().chars() {
            if letter.is_control() || letter == '\\' {
                shown.extend(letter.escape_default());
            } else {
                shown.push(letter);
            }
        }
        for byte in part.invalid() {
            shown.push_str(&format!("\\x{byte:02x}"));
        }
    }
    shown
}

/// A name for programs: a string, or the list of its bytes if they are not UTF-8.
pub(crate) fn json_name(bytes: &[u8]) -> serde_json::Value {
    std::str::from_utf8(bytes).map_or_else(|_| bytes.into(), Into::into)
}

/// Prints a value as JSON.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    line(serde_json::to_string_pretty(value)?)
}

/// Prints rows with aligned columns under a heading.
pub(crate) fn table(heading: &[&str], rows: &[Vec<String>]) -> anyhow::Result<()> {
    let mut widths: Vec<usize> = heading.iter().map(|cell| cell.len()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let print = |cells: Vec<&str>| {
        let padded: Vec<_> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        line(padded.join("  ").trim_end())
    };
    print(heading.to_vec())?;
    rows.iter()
        .try_for_each(|row| print(row.iter().map(String::as_str).collect()))
}

/// Bytes for people: 1536 -> "1.5 KiB".
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_without_what_a_terminal_obeys() {
        assert_eq!(name("Übung 1".as_bytes()), "Übung 1");
        assert_eq!(name(b"a\nb\x1b[2J\\\xff"), r"a\nb\u{1b}[2J\\\xff");
        assert_eq!(json_name(b"a\nb\\"), "a\nb\\");
        assert_eq!(json_name(b"a\xff"), serde_json::json!([97, 255]));
    }
}
