//! `lumeofs fs trash`: what was deleted and is kept for a while.

use super::session::{Session, names};
use super::show::date;
use crate::output;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::TRASH_ENTRIES_MAX;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId, Timestamp};
use lumeofs_client::TrashPage;
use lumeofs_meta::op::{NewNode, SetAttr, TrashEntry, TrashKey, TrashPolicy};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::time::Duration;

/// Mode of a directory that is made for what is restored: what it was before is not known, so nobody but the owner of the
/// file gets in.
const DIRECTORY_MODE: u16 = 0o700;
/// Files that one command restores: they are all in memory.
const RESTORED_MAX: usize = 1 << 20;

#[derive(clap::Subcommand)]
pub(super) enum Action {
    /// Shows or sets how long deleted files are kept; they are not before it was set
    Policy {
        /// How long, as 30m, 12h, 7d or 4w; "off": what is deleted from now on is freed at once. What is in the trash
        /// already stays until the time is over that was set last
        #[arg(long, value_name = "TIME")]
        keep: Option<String>,
    },
    /// Lists what is in the trash, in the order of deletion
    Ls {
        /// Only what was this file, or below this directory
        path: Option<OsString>,
        /// Lists no more than so many
        #[arg(long, default_value_t = 1000)]
        limit: usize,
        /// Goes on where a list ended that was limited
        #[arg(long, value_name = "PLACE")]
        after: Option<String>,
    },
    /// Brings a file back, with its attributes, where it was. Never overwrites anything
    ///
    /// Directories that are missing are made with mode 0700 and the owner and group of the file.
    Restore {
        /// Its number, as `ls` shows it, or its path: of several files that had it, the one that was deleted last
        what: OsString,
        /// Another path, or a directory to restore it to
        #[arg(long, value_name = "PATH")]
        to: Option<OsString>,
        /// WHAT is a directory: restores all files that were deleted below it; those whose place is taken are left
        #[arg(short, long, conflicts_with = "to")]
        recursive: bool,
    },
    /// Frees what is in the trash
    Empty {
        /// Only what was this file, or below this directory
        path: Option<OsString>,
        /// Only what was deleted longer ago, as 12h or 7d
        #[arg(long, value_name = "TIME")]
        older_than: Option<String>,
    },
}

/// Runs the command.
pub(super) fn run(session: &Session, action: Action, json: bool) -> anyhow::Result<()> {
    match action {
        Action::Policy { keep } => policy(session, keep.as_deref(), json),
        Action::Ls { path, limit, after } => {
            let after = after.as_deref().map(parse_place).transpose()?;
            list(session, &Wanted::new(path, None)?, limit, after, json)
        }
        Action::Restore {
            what,
            to: _,
            recursive: true,
        } => restore_below(session, what.as_bytes(), json),
        Action::Restore { what, to, .. } => {
            let to = to.as_ref().map(|to| to.as_bytes());
            restore(session, what.as_bytes(), to, json)
        }
        Action::Empty { path, older_than } => {
            let wanted = Wanted::new(path, older_than.as_deref())?;
            empty(session, &wanted, json)
        }
    }
}

/// Which entries a command is about.
struct Wanted {
    /// Whole, from the root.
    path: Option<Vec<u8>>,
    /// Those that were deleted by then.
    until_ns: u64,
}

impl Wanted {
    fn new(path: Option<OsString>, older_than: Option<&str>) -> FsResult<Self> {
        let age = older_than.map_or(Ok(Duration::ZERO), parse_time)?;
        let until_ns = match older_than {
            Some(_) => now_ns().saturating_sub(age.as_nanos() as u64),
            None => u64::MAX,
        };
        Ok(Self {
            path: path.map(|path| whole(path.as_bytes())),
            until_ns,
        })
    }

    fn has(&self, entry: &TrashEntry) -> bool {
        let path = self.path.as_ref();
        entry.key.deleted_ns <= self.until_ns && path.is_none_or(|path| is_in(&entry.path, path))
    }
}

/// All entries after a place, page by page, until `take` returns false.
fn each(
    session: &Session,
    mut after: Option<TrashKey>,
    mut take: impl FnMut(TrashPolicy, Vec<TrashEntry>) -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    loop {
        let count_max = TRASH_ENTRIES_MAX as u32;
        let TrashPage {
            policy,
            entries,
            more,
        } = session.client.trash(session.context(), after, count_max)?;
        after = entries.last().map(|entry| entry.key);
        if !take(policy, entries)? || !more || after.is_none() {
            return Ok(());
        }
    }
}

fn policy(session: &Session, keep: Option<&str>, json: bool) -> anyhow::Result<()> {
    match keep {
        None => {}
        Some("off") => session.client.set_trash(session.context(), None)?,
        Some(keep) => {
            let keep_s = parse_time(keep)?.as_secs();
            session.client.set_trash(session.context(), Some(keep_s))?;
        }
    }
    let policy = session.client.trash(session.context(), None, 0)?.policy;
    let (is_on, keep_s) = (policy.is_on, policy.keep_s);
    if json {
        return output::json(&json!({"on": is_on, "keep_s": keep_s}));
    }
    output::line(match (is_on, keep_s) {
        (true, _) => format!("on: deleted files are kept for {}", shown_time(keep_s)),
        (false, 0) => "off".to_owned(),
        (false, _) => format!(
            "off: what is in the trash is kept for {} from its deletion",
            shown_time(keep_s)
        ),
    })
}

fn list(
    session: &Session,
    wanted: &Wanted,
    limit: usize,
    after: Option<TrashKey>,
    json: bool,
) -> anyhow::Result<()> {
    let (mut values, mut rows) = (Vec::new(), Vec::new());
    let (mut last, mut next) = (after, None);
    each(session, after, |policy, entries| {
        for entry in entries {
            if !wanted.has(&entry) {
                continue;
            }
            if values.len() + rows.len() >= limit {
                next = last.map(place);
                return Ok(false);
            }
            last = Some(entry.key);
            if json {
                values.push(value(policy, &entry));
            } else {
                rows.push(row(policy, &entry));
            }
        }
        Ok(true)
    })?;
    if json {
        return output::json(&json!({"entries": values, "next": next}));
    }
    let heading = [
        "ID",
        "SIZE",
        "DELETED (UTC)",
        "BY UID",
        "EXPIRES (UTC)",
        "PATH",
    ];
    output::table(&heading, &rows)?;
    if let Some(next) = next {
        output::note(format_args!("there is more: --after {next}"));
    }
    Ok(())
}

fn value(policy: TrashPolicy, entry: &TrashEntry) -> Value {
    json!({
        "id": entry.key.ino.get(),
        "path": output::json_name(&entry.path),
        "deleted_ns": entry.key.deleted_ns,
        "expires_ns": policy.expires_ns(entry.key),
        "uid": entry.uid,
        "attr": entry.attr,
    })
}

fn row(policy: TrashPolicy, entry: &TrashEntry) -> Vec<String> {
    vec![
        entry.key.ino.get().to_string(),
        entry.attr.size.to_string(),
        date(time(entry.key.deleted_ns)),
        entry.uid.to_string(),
        date(time(policy.expires_ns(entry.key))),
        output::name(&entry.path),
    ]
}

fn restore(session: &Session, what: &[u8], to: Option<&[u8]>, json: bool) -> anyhow::Result<()> {
    let entry = find(session, what)?;
    let shown = output::name(&entry.path);
    let path = match to {
        None if entry.path.starts_with(b"/") => entry.path.clone(),
        None => {
            let text = format!("the path of {shown:?} was too long to be kept: add --to PATH");
            return Err(FsError::new(Code::Invalid, text).into());
        }
        Some(to) => target(session, to, &entry.path)?,
    };
    put_back(session, &entry, &path)?;
    if json {
        return output::json(&json!({
            "id": entry.key.ino.get(),
            "from": output::json_name(&entry.path),
            "path": output::json_name(&path),
        }));
    }
    output::line(format_args!("{shown} -> {}", output::name(&path)))
}

fn restore_below(session: &Session, what: &[u8], json: bool) -> anyhow::Result<()> {
    let wanted = Wanted {
        path: Some(whole(what)),
        until_ns: u64::MAX,
    };
    // In the order of deletion: the last one of a path stays.
    let mut found = BTreeMap::new();
    each(session, None, |_, entries| {
        for entry in entries {
            if wanted.has(&entry) {
                found.insert(entry.path.clone(), entry);
            }
        }
        if found.len() > RESTORED_MAX {
            let text = format!("over {RESTORED_MAX} files: restore the directories below it");
            return Err(FsError::new(Code::TooBig, text).into());
        }
        Ok(true)
    })?;
    if found.is_empty() {
        return Err(not_there(what).into());
    }
    let (mut restored, mut left) = (Vec::new(), Vec::new());
    for (path, entry) in &found {
        match put_back(session, entry, path) {
            Ok(()) => restored.push(path),
            Err(error) if matches!(error.code, Code::Exists | Code::NotDirectory) => {
                left.push(path);
            }
            // It was restored or dropped by somebody else meanwhile.
            Err(error) if error.code == Code::NotFound => {}
            Err(error) => return Err(error.into()),
        }
    }
    let shown = |paths: &[&Vec<u8>]| -> Value {
        let names = paths.iter().map(|path| output::json_name(path));
        names.collect()
    };
    if json {
        output::json(&json!({"restored": shown(&restored), "left": shown(&left)}))?;
    } else {
        output::line(format_args!("{} files restored", restored.len()))?;
    }
    if left.is_empty() {
        return Ok(());
    }
    if !json {
        for path in &left {
            output::note(format_args!(
                "left, since its place is taken: {}",
                output::name(path)
            ));
        }
    }
    let text = format!(
        "{} of {} files, their places are taken",
        left.len(),
        found.len()
    );
    Err(FsError::new(Code::Exists, text).into())
}

fn empty(session: &Session, wanted: &Wanted, json: bool) -> anyhow::Result<()> {
    let (mut files, mut bytes) = (0, 0);
    each(session, None, |_, entries| {
        // They come in the order of deletion.
        let more = entries
            .last()
            .is_some_and(|entry| entry.key.deleted_ns <= wanted.until_ns);
        let entries: Vec<_> = entries
            .into_iter()
            .filter(|entry| wanted.has(entry))
            .collect();
        files += entries.len();
        bytes += entries
            .iter()
            .map(|entry| entry.attr.allocated)
            .sum::<u64>();
        if !entries.is_empty() {
            let keys = entries.iter().map(|entry| entry.key).collect();
            session.client.empty_trash(session.context(), keys)?;
        }
        Ok(more)
    })?;
    if json {
        return output::json(&json!({"files": files, "bytes": bytes}));
    }
    output::line(format_args!("{files} files, {}", output::size(bytes)))
}

/// The entry of a number, or the last one of a path.
fn find(session: &Session, what: &[u8]) -> anyhow::Result<TrashEntry> {
    if let Some(ino) = number(what) {
        let found = session.client.trashed(session.context(), InodeId(ino))?;
        return Ok(found.ok_or_else(|| not_there(what))?);
    }
    let path = whole(what);
    let (mut found, mut below) = (None, 0);
    each(session, None, |_, entries| {
        for entry in entries {
            if entry.path == path {
                found = Some(entry);
            } else {
                below += usize::from(is_in(&entry.path, &path));
            }
        }
        Ok(true)
    })?;
    match (found, below) {
        (Some(entry), _) => Ok(entry),
        (None, 0) => Err(not_there(what).into()),
        (None, _) => {
            let text = format!(
                "{:?} is no file in the trash, {below} files below it are: add -r",
                output::name(what)
            );
            Err(FsError::new(Code::IsDirectory, text).into())
        }
    }
}

/// Restores an entry at a path.
fn put_back(session: &Session, entry: &TrashEntry, path: &[u8]) -> FsResult<()> {
    let (cx, ino) = (session.context(), entry.key.ino);
    // Not those of the entry: a mount that changed them may not have published that when it was listed.
    let attr = session.client.getattr(cx, ino);
    let place = attr.and_then(|attr| parent(session, path, &attr));
    let restored = place.and_then(|(parent, name)| session.client.restore(cx, ino, parent, name));
    match restored {
        Ok(_) => Ok(()),
        Err(error) if error.code == Code::Exists => {
            let text = format!(
                "{:?} exists, and nothing is overwritten: move it away, or add --to PATH",
                output::name(path)
            );
            Err(FsError::new(Code::Exists, text))
        }
        Err(error) => Err(error.during(format_args!("restore {}", output::name(path)))),
    }
}

/// The directory of a path, with those that are missing made, and the last name.
fn parent<'p>(session: &Session, path: &'p [u8], of: &Attr) -> FsResult<(InodeId, &'p [u8])> {
    let all: Vec<_> = names(path).collect();
    let Some((name, above)) = all.split_last() else {
        return Err(FsError::new(Code::Invalid, "the root is no file"));
    };
    let (cx, mut dir) = (session.context(), InodeId::ROOT);
    for name in above {
        dir = match session.client.lookup(cx, dir, name) {
            Ok(attr) => attr.ino,
            Err(error) if error.code == Code::NotFound => make(session, dir, name, of)?,
            Err(error) => return Err(error),
        };
    }
    Ok((dir, name))
}

/// Makes a directory that belongs to the owner of a file.
fn make(session: &Session, parent: InodeId, name: &[u8], of: &Attr) -> FsResult<InodeId> {
    let (cx, node) = (session.context(), NewNode::Directory);
    let made = session
        .client
        .create(cx, parent, name, node, DIRECTORY_MODE, true);
    let ino = match made {
        Ok((attr, _)) => attr.ino,
        // Somebody was faster.
        Err(error) if error.code == Code::Exists => {
            return Ok(session.client.lookup(cx, parent, name)?.ino);
        }
        Err(error) => return Err(error),
    };
    let owner = SetAttr {
        uid: Some(of.uid),
        gid: Some(of.gid),
        ..SetAttr::default()
    };
    session.client.setattr(cx, ino, owner)?;
    Ok(ino)
}

/// Where something goes that had `path` and is to be put at `to`: into it if it is a directory.
fn target(session: &Session, to: &[u8], path: &[u8]) -> FsResult<Vec<u8>> {
    let mut target = whole(to);
    match session.resolve(to) {
        Ok(attr) if attr.kind == FileKind::Directory => {
            let name = names(path).last().unwrap_or_default();
            if target != b"/" {
                target.push(b'/');
            }
            target.extend_from_slice(name);
        }
        Ok(_) => {}
        Err(error) if error.code == Code::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(target)
}

fn not_there(what: &[u8]) -> FsError {
    let text = format!("{:?} is not in the trash", output::name(what));
    FsError::new(Code::NotFound, text)
}

/// Whether a path is `top` or lies below it.
fn is_in(path: &[u8], top: &[u8]) -> bool {
    let rest = path.strip_prefix(top);
    rest.is_some_and(|rest| top == b"/" || rest.is_empty() || rest.starts_with(b"/"))
}

/// A path from the root in the form that entries have.
fn whole(path: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    for name in names(path) {
        whole.push(b'/');
        whole.extend_from_slice(name);
    }
    if whole.is_empty() {
        whole.push(b'/');
    }
    whole
}

/// The number of an inode: paths that are all digits need a `/`.
fn number(what: &[u8]) -> Option<u64> {
    std::str::from_utf8(what).ok()?.parse().ok()
}

/// A place in the list.
fn place(key: TrashKey) -> String {
    format!("{}.{}", key.deleted_ns, key.ino.get())
}

fn parse_place(text: &str) -> FsResult<TrashKey> {
    let parsed = text.split_once('.').and_then(|(deleted, ino)| {
        Some(TrashKey {
            deleted_ns: deleted.parse().ok()?,
            ino: InodeId(ino.parse().ok()?),
        })
    });
    parsed.ok_or_else(|| FsError::new(Code::Invalid, format!("{text:?} is no place in the list")))
}

/// A time as 90s, 30m, 12h, 7d or 4w.
fn parse_time(text: &str) -> FsResult<Duration> {
    let seconds = text
        .char_indices()
        .next_back()
        .and_then(|(at, unit)| {
            let factor = match unit {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 24 * 3600,
                'w' => 7 * 24 * 3600,
                _ => return None,
            };
            text[..at].parse::<u32>().ok()?.checked_mul(factor)
        })
        .map(|seconds| Duration::from_secs(u64::from(seconds)));
    seconds.ok_or_else(|| {
        let text = format!("{text:?}: want a time as 90s, 30m, 12h, 7d or 4w");
        FsError::new(Code::Invalid, text)
    })
}

/// The largest unit that says it exactly.
fn shown_time(seconds: u64) -> String {
    let units = [(24 * 3600, "d"), (3600, "h"), (60, "m")];
    let unit = units
        .into_iter()
        .find(|(factor, _)| seconds.is_multiple_of(*factor));
    match unit {
        Some((factor, unit)) => format!("{}{unit}", seconds / factor),
        None => format!("{seconds}s"),
    }
}

fn time(ns: u64) -> Timestamp {
    Timestamp {
        secs: (ns / 1_000_000_000).cast_signed(),
        nanos: (ns % 1_000_000_000) as u32,
    }
}

fn now_ns() -> u64 {
    let now = SystemClock.wall();
    now.secs.cast_unsigned() * 1_000_000_000 + u64::from(now.nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        let seconds = |text| parse_time(text).map(|time| time.as_secs()).ok();
        let parsed = ["90s", "30m", "12h", "7d", "4w"].map(seconds);
        let expected = [90, 1800, 43_200, 604_800, 2_419_200];
        assert_eq!(parsed, expected.map(Some));
        for bad in ["", "d", "7", "-7d", "1.5d", "7 d", "9999999w", "7ä"] {
            assert_eq!(seconds(bad), None, "{bad}");
        }
        let shown = [90, 1800, 43_200, 604_800, 90_000].map(shown_time);
        assert_eq!(shown, ["90s", "30m", "12h", "7d", "25h"]);
    }

    #[test]
    fn a_path_is_in_itself_and_in_what_is_above() {
        assert!(is_in(b"/a/b", b"/a/b") && is_in(b"/a/b", b"/a") && is_in(b"/a", b"/"));
        assert!(!is_in(b"/ab", b"/a") && !is_in(b"/a", b"/a/b"));
        assert!(!is_in(b".../a", b"/"));
        assert_eq!(whole(b"a//b/"), b"/a/b");
        assert_eq!(whole(b""), b"/");
        assert_eq!(number(b"17"), Some(17));
        assert_eq!(number(b"/17"), None);
    }

    #[test]
    fn a_place_is_read_as_it_was_written() {
        let key = TrashKey {
            deleted_ns: 1_700_000_000_123_456_789,
            ino: InodeId(42),
        };
        assert_eq!(parse_place(&place(key)).unwrap(), key);
        assert!(parse_place("17").is_err());
    }
}
