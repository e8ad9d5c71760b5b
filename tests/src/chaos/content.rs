//! What a file must hold: a function of the steps that made it, so that every byte of it can be verified.

use super::Random;
use std::path::PathBuf;

/// One change of a file.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Bytes of this seed at an offset; the first step of each file, with offset 0.
    Write { offset: u64, len: u64, seed: u64 },
    /// `ftruncate`.
    Resize { len: u64 },
    /// `rename` to this path within the load's directory.
    Rename { to: PathBuf },
    /// `unlink`.
    Unlink,
}

/// The bytes of a write.
pub(super) fn bytes(seed: u64, len: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let words = std::iter::repeat_with(|| random.number().to_le_bytes());
    let mut all: Vec<u8> = words.take(len.div_ceil(8) as usize).flatten().collect();
    all.truncate(len as usize);
    all
}

/// The file after these steps.
pub(super) fn content<'a>(steps: impl IntoIterator<Item = &'a Step>) -> Vec<u8> {
    let mut file = Vec::new();
    for step in steps {
        match step {
            Step::Write { offset, len, seed } => {
                let end = (offset + len) as usize;
                file.resize(file.len().max(end), 0);
                file[*offset as usize..end].copy_from_slice(&bytes(*seed, *len));
            }
            Step::Resize { len } => file.resize(*len as usize, 0),
            Step::Rename { .. } | Step::Unlink => {}
        }
    }
    file
}

/// Compares what was read with what the steps made. `doubt` is a step whose outcome is not known: each byte may be as
/// before or as after it, and what would have grown the file may have left zeros.
pub(super) fn compare(steps: &[Step], doubt: Option<&Step>, read: &[u8]) -> Result<(), String> {
    let old = content(steps);
    let new = doubt.map_or_else(|| old.clone(), |step| content(steps.iter().chain([step])));
    let lengths = old.len().min(new.len())..=old.len().max(new.len());
    if !lengths.contains(&read.len()) {
        return Err(format!("{} bytes, not {lengths:?}", read.len()));
    }
    for (at, byte) in read.iter().enumerate() {
        let (old, new) = (old.get(at), new.get(at));
        let left = old.is_none() && *byte == 0;
        if old != Some(byte) && new != Some(byte) && !left {
            let want = old.or(new);
            return Err(format!("byte {at} is {byte:#04x}, not {want:#04x?}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: Step = Step::Write {
        offset: 0,
        len: 10,
        seed: 1,
    };
    const APPEND: Step = Step::Write {
        offset: 10,
        len: 5,
        seed: 2,
    };

    #[test]
    fn steps_make_a_file() {
        let file = content(&[BEGIN, APPEND, Step::Resize { len: 12 }]);
        assert_eq!(file, [&bytes(1, 10)[..], &bytes(2, 5)[..2]].concat());
    }

    #[test]
    fn a_byte_that_differs_is_found() {
        let mut file = content(&[BEGIN]);
        assert_eq!(compare(&[BEGIN], None, &file), Ok(()));
        file[7] ^= 1;
        let found = compare(&[BEGIN], None, &file).unwrap_err();
        assert!(found.starts_with("byte 7"), "{found}");
        assert!(compare(&[BEGIN], None, &file[..9]).is_err());
    }

    #[test]
    fn a_doubtful_append_may_be_there_in_part_but_nothing_else_may() {
        let check = |file: &[u8]| compare(&[BEGIN], Some(&APPEND), file);
        let both = content(&[BEGIN, APPEND]);
        for len in 10..=15 {
            assert_eq!(check(&both[..len]), Ok(()));
        }
        assert!(check(&both[..9]).is_err(), "what was acknowledged is short");
        let mut zeros = both.clone();
        zeros[10..].fill(0);
        assert_eq!(check(&zeros), Ok(()));
        zeros[3] ^= 1;
        assert!(check(&zeros).is_err());
        let mut other = both;
        other[12] ^= 1;
        assert!(check(&other).is_err());
    }
}
