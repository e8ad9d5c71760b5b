//! What an answer to a query shows, and what a holder learns from it.

use crate::history;
use lumeofs_base::{Attr, Code, FileKind, InodeId};
use lumeofs_lease::Learned;
use lumeofs_meta::op::{Outcome, Query, Reply};
use lumeofs_meta::tables::MemoryTables;

/// The inodes of which something is shown.
pub(crate) fn shown(
    tables: &MemoryTables,
    query: &Query,
    outcome: &Outcome,
) -> Vec<(InodeId, FileKind)> {
    let of = |attr: &Attr| (attr.ino, attr.kind);
    let known = |ino: InodeId| history::attr(tables, ino).as_ref().map(of);
    match (query, outcome) {
        (Query::Lookup { parent, .. }, Ok(Reply::Attr(attr))) => {
            let mut shown = vec![(*parent, FileKind::Directory)];
            shown.extend((attr.ino != *parent).then(|| of(attr)));
            shown
        }
        (Query::Lookup { parent: ino, .. }, Err(_)) | (Query::ReadDir { ino, .. }, _) => {
            vec![(*ino, FileKind::Directory)]
        }
        (Query::GetAttr { ino } | Query::GetXattr { ino, .. }, _) => {
            known(*ino).into_iter().collect()
        }
        _ => panic!("{query:?} is not asked here"),
    }
}

/// What is new for a holder.
pub(crate) fn learned<'a>(query: &'a Query, outcome: &'a Outcome) -> Option<Learned<'a>> {
    let is = |code: Code| matches!(outcome, Err(error) if error.code == code);
    Some(match (query, outcome) {
        (Query::Lookup { parent, name }, Ok(Reply::Attr(attr))) => Learned::Name {
            parent: *parent,
            name,
            attr: Some(attr),
        },
        (Query::Lookup { parent, name }, Err(_)) if is(Code::NotFound) => Learned::Name {
            parent: *parent,
            name,
            attr: None,
        },
        (Query::GetAttr { .. }, Ok(Reply::Attr(attr))) => Learned::Attr(attr),
        (
            Query::ReadDir { ino, cookie, .. },
            Ok(Reply::Entries {
                entries,
                more,
                inodes,
            }),
        ) => Learned::Entries {
            ino: *ino,
            after: *cookie,
            entries,
            more: *more,
            inodes,
        },
        (Query::GetXattr { ino, name }, Ok(Reply::Bytes(value))) => {
            Learned::Xattr(*ino, name, Some(value))
        }
        (Query::GetXattr { ino, name }, Err(_)) if is(Code::NoData) => {
            Learned::Xattr(*ino, name, None)
        }
        _ => return None,
    })
}
