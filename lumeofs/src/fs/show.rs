//! Attributes and listings for people and programs.

use super::session::Session;
use crate::output;
use lumeofs_base::{Attr, Code, FileKind, Timestamp};
use serde_json::json;
use std::fmt::Write as _;
use time::OffsetDateTime;

/// Prints a directory's entries, or a file's line.
pub(super) fn list(session: &Session, path: &[u8], json: bool) -> anyhow::Result<()> {
    let attr = session.resolve(path)?;
    let entries = if attr.kind == FileKind::Directory {
        session.entries(attr.ino)?
    } else {
        vec![(path.to_vec(), attr.ino)]
    };
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for (name, ino) in entries {
        let attr = match session.client.getattr(session.context(), ino) {
            Ok(attr) => attr,
            // Removed since the directory was read.
            Err(error) if matches!(error.code, Code::NotFound | Code::Stale) => continue,
            Err(error) => return Err(error.during(output::name(&name)).into()),
        };
        rows.push(vec![
            mode(&attr),
            attr.nlink.to_string(),
            attr.uid.to_string(),
            attr.gid.to_string(),
            attr.size.to_string(),
            date(attr.mtime),
            output::name(&name),
        ]);
        values.push(json!({"name": output::json_name(&name), "attr": attr}));
    }
    if json {
        return output::json(&values);
    }
    output::table(
        &[
            "MODE",
            "LINKS",
            "UID",
            "GID",
            "SIZE",
            "MODIFIED (UTC)",
            "NAME",
        ],
        &rows,
    )
}

/// Prints all attributes.
pub(super) fn attributes(path: &[u8], attr: &Attr, json: bool) -> anyhow::Result<()> {
    if json {
        return output::json(attr);
    }
    let mut text = output::name(path);
    write!(
        text,
        "\n  inode {}  mode {} ({:04o})  links {}",
        attr.ino.get(),
        mode(attr),
        attr.mode,
        attr.nlink
    )?;
    write!(
        text,
        "\n  owner {}:{}  size {}  allocated {}",
        attr.uid, attr.gid, attr.size, attr.allocated
    )?;
    let times = [
        ("access", attr.atime),
        ("modify", attr.mtime),
        ("change", attr.ctime),
        ("birth ", attr.btime),
    ];
    for (name, time) in times {
        write!(text, "\n  {name} {}.{:09} UTC", date(time), time.nanos)?;
    }
    output::line(text)
}

/// As ls(1) shows it: `drwxr-xr-x`.
fn mode(attr: &Attr) -> String {
    let kind = match attr.kind {
        FileKind::Regular => '-',
        FileKind::Directory => 'd',
        FileKind::Symlink => 'l',
        FileKind::Fifo => 'p',
        FileKind::Socket => 's',
        FileKind::CharDevice => 'c',
        FileKind::BlockDevice => 'b',
    };
    let special = [(0o4000, 's'), (0o2000, 's'), (0o1000, 't')];
    let mut shown = String::from(kind);
    for (class, (bit, letter)) in special.into_iter().enumerate() {
        let bits = attr.mode >> (6 - 3 * class);
        let execute = match (attr.mode & bit != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        };
        shown.push(if bits & 4 != 0 { 'r' } else { '-' });
        shown.push(if bits & 2 != 0 { 'w' } else { '-' });
        shown.push(execute);
    }
    shown
}

/// A time to the second; as seconds since 1970 where the calendar ends.
pub(crate) fn date(time: Timestamp) -> String {
    let Ok(date) = OffsetDateTime::from_unix_timestamp(time.secs) else {
        return format!("@{}", time.secs);
    };
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        date.year(),
        u8::from(date.month()),
        date.day(),
        date.hour(),
        date.minute(),
        date.second()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_before_1970_and_past_the_calendar_have_a_form() {
        let at = |secs| date(Timestamp { secs, nanos: 0 });
        assert_eq!(at(0), "1970-01-01 00:00:00");
        assert_eq!(at(-1), "1969-12-31 23:59:59");
        assert_eq!(at(1_000_000_000), "2001-09-09 01:46:40");
        assert_eq!(at(i64::MAX), format!("@{}", i64::MAX));
    }
}
