//! A log to which several mounts append records, each of its own length and with a checksum.

use super::look::pattern;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bytes of a record's head, a text: what it begins with, its writer, its number.
const HEAD: usize = 16;
/// Longest payload. A record is one write.
const PAYLOAD_MAX: u64 = 6000;

/// The bytes of a record: head, payload, checksum.
fn record(writer: u32, number: u32) -> Vec<u8> {
    let seed = (u64::from(writer) << 32) | u64::from(number);
    let length = 1 + crate::chaos::Random::new(!seed).below(PAYLOAD_MAX);
    let head = format!("REC {writer:03x} {number:07x}:");
    let mut bytes = [head.as_bytes(), &pattern(seed, length as usize)].concat();
    bytes.extend(checksum(&bytes).to_le_bytes());
    bytes
}

/// Writer and number of the record that begins here.
fn head(log: &[u8]) -> Option<(u32, u32)> {
    let text = str::from_utf8(log.get(..HEAD)?).ok()?;
    let (writer, number) = text
        .strip_prefix("REC ")?
        .strip_suffix(':')?
        .split_once(' ')?;
    let parse = |text| u32::from_str_radix(text, 16).ok();
    Some((parse(writer)?, parse(number)?))
}

fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| {
        sum.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ u64::from(*byte)
    })
}

/// What lies in a log at some place.
#[derive(Debug, Eq, PartialEq)]
enum Found {
    Record {
        writer: u32,
        number: u32,
        length: usize,
    },
    /// More may come: the log ends here, or has zeros where the rest of a record is to come.
    Unfinished,
    Torn,
}

fn look(log: &[u8]) -> Found {
    let Some((writer, number)) = head(log) else {
        let is_partial = log.len() < HEAD || log[..HEAD].contains(&0);
        return if is_partial {
            Found::Unfinished
        } else {
            Found::Torn
        };
    };
    // Who wrote it is known from its head, and with it every byte that must follow.
    let right = record(writer, number);
    let there = &log[..log.len().min(right.len())];
    if there == right {
        return Found::Record {
            writer,
            number,
            length: right.len(),
        };
    }
    let on_its_way = there
        .iter()
        .zip(&right)
        .all(|(byte, right)| byte == right || *byte == 0);
    if on_its_way {
        Found::Unfinished
    } else {
        Found::Torn
    }
}

/// What a complete log holds.
#[derive(Debug, Default)]
struct Log {
    /// Numbers of the records of each writer, in the order of the log.
    records: BTreeMap<u32, Vec<u32>>,
    /// Places between records where there is none.
    gaps: u32,
}

impl Log {
    /// Reads a log to which nobody appends any more.
    fn read(bytes: &[u8]) -> Self {
        let (mut log, mut at, mut in_gap) = (Self::default(), 0, false);
        while at < bytes.len() {
            if let Found::Record {
                writer,
                number,
                length,
            } = look(&bytes[at..])
            {
                log.records.entry(writer).or_default().push(number);
                at += length;
                in_gap = false;
            } else {
                log.gaps += u32::from(!in_gap);
                in_gap = true;
                at += 1;
            }
        }
        log
    }
}

/// Appends records to the log until `go_on` says no or a call fails. How many were acknowledged, and the error.
/// With `synced` each is synced before the next.
pub fn append_records(
    path: &Path,
    writer: u32,
    synced: bool,
    mut go_on: impl FnMut() -> bool,
) -> (u32, Option<std::io::Error>) {
    let opened = File::options().append(true).create(true).open(path);
    let mut log = match opened {
        Ok(log) => log,
        Err(error) => return (0, Some(error)),
    };
    let mut count = 0;
    while go_on() {
        let mut done = log.write_all(&record(writer, count));
        if synced {
            done = done.and_then(|()| log.sync_data());
        }
        if let Err(error) = done {
            return (count, Some(error));
        }
        count += 1;
    }
    (count, None)
}

/// Follows the log while others append to it: it never gets shorter, and what is there are whole records, but for
/// places that are reserved. Returns how many records it saw.
///
/// # Panics
///
/// If a record is torn, or what was seen once is not there any more.
pub fn tail(path: &Path, mut go_on: impl FnMut() -> bool) -> usize {
    let log = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let log = log.expect("the log can be opened");
    let (mut at, mut seen, mut longest) = (0, 0, 0);
    let mut piece = vec![0; 1 << 16];
    while go_on() {
        let length = log.metadata().expect("fstat works").len();
        assert!(
            length >= longest,
            "the log was {longest} bytes long, now {length}"
        );
        longest = length;
        let count = log.read_at(&mut piece, at).expect("reading works");
        assert!(
            at + count as u64 >= length.min(at + piece.len() as u64),
            "a short read at {at}"
        );
        let mut rest = &piece[..count];
        while !rest.is_empty() {
            match look(rest) {
                Found::Record { length, .. } => {
                    (rest, at, seen) = (&rest[length..], at + length as u64, seen + 1);
                }
                Found::Unfinished => break,
                Found::Torn => panic!("torn at {at}: {:02x?}", &rest[..rest.len().min(64)]),
            }
        }
    }
    seen
}

/// Checks a log to which nobody appends any more: of each writer every acknowledged record once and in order, and nothing
/// else. One writer may have been `killed` during its last append, which may be there, or have left its place.
///
/// # Panics
///
/// If a record is lost, torn, out of order, or there twice.
pub fn check_log(path: &Path, counts: &BTreeMap<u32, u32>, killed: Option<u32>) {
    let bytes = std::fs::read(path).expect("the log can be read");
    let log = Log::read(&bytes);
    assert!(
        log.gaps <= u32::from(killed.is_some()),
        "{} torn records",
        log.gaps
    );
    for (writer, count) in counts {
        let found = log.records.get(writer).map_or(&[][..], Vec::as_slice);
        let right: Vec<_> = (0..*count).collect();
        let one_more: Vec<_> = (0..=*count).collect();
        let is_right = found == right || (killed == Some(*writer) && found == one_more);
        assert!(
            is_right,
            "of writer {writer}: {found:?} instead of 0..{count}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_are_found_with_what_is_between_them() {
        let torn = &record(3, 9)[..100];
        let bytes = [
            &record(1, 0),
            &record(2, 0),
            &[0; 50][..],
            torn,
            &record(1, 1),
        ]
        .concat();
        let log = Log::read(&bytes);
        assert_eq!(log.records, BTreeMap::from([(1, vec![0, 1]), (2, vec![0])]));
        assert_eq!(log.gaps, 1);
    }

    #[test]
    fn a_reserved_place_is_unfinished_and_other_bytes_are_torn() {
        let whole = record(1, 5);
        assert!(matches!(
            look(&whole),
            Found::Record {
                writer: 1,
                number: 5,
                ..
            }
        ));
        for length in (0..20).chain((20..whole.len()).step_by(101)) {
            assert_eq!(look(&whole[..length]), Found::Unfinished);
            let mut reserved = whole[..length].to_vec();
            reserved.resize(whole.len(), 0);
            assert_eq!(look(&reserved), Found::Unfinished, "{length}");
        }
        let mut torn = whole.clone();
        torn[HEAD + 1] = !torn[HEAD + 1];
        assert_eq!(look(&torn), Found::Torn);
        let interleaved = [&whole[..30], &record(2, 1)].concat();
        assert_eq!(look(&interleaved), Found::Torn);
    }
}
