//! What the cluster acknowledged, kept outside of it: in memory and as lines of JSON on a local disk.

use super::content::{Step, compare};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A file of the load.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name within the load's directory.
    pub(super) path: PathBuf,
    /// All that was acknowledged.
    pub(super) steps: Vec<Step>,
    /// What failed: it may have happened in part. Nothing comes after it.
    pub(super) doubt: Option<Step>,
    /// A step is under way.
    changing: bool,
}

impl Entry {
    /// Compares it with what a mount says; `root` is the load's directory there.
    pub(super) fn check(&self, root: &Path) -> Result<(), String> {
        let told = |text: String| Err(format!("{}: {text}", self.path.display()));
        let gone = self.steps.last() == Some(&Step::Unlink);
        let may_be_gone = self.steps.is_empty() || self.doubt == Some(Step::Unlink);
        let mut read = std::fs::read(root.join(&self.path));
        if let (Err(_), Some(Step::Rename { to })) = (&read, &self.doubt) {
            read = std::fs::read(root.join(to));
        }
        match read {
            Ok(_) if gone => told("is there, although its unlink was acknowledged".into()),
            Ok(bytes) => compare(&self.steps, self.doubt.as_ref(), &bytes).or_else(told),
            Err(error) if error.kind() == ErrorKind::NotFound && (gone || may_be_gone) => Ok(()),
            Err(error) => told(error.to_string()),
        }
    }

    /// Names that it may have.
    fn names(&self) -> impl Iterator<Item = &Path> {
        let gone = self.steps.last() == Some(&Step::Unlink);
        let other = match &self.doubt {
            Some(Step::Rename { to }) => Some(to.as_path()),
            _ => None,
        };
        (!gone)
            .then_some(self.path.as_path())
            .into_iter()
            .chain(other)
    }
}

/// All files of a load.
#[derive(Debug)]
pub(super) struct Manifest {
    entries: Mutex<Vec<Entry>>,
    file: Mutex<File>,
}

impl Manifest {
    /// An empty one; `file` is where its lines go.
    pub(super) fn new(file: &Path) -> Self {
        Self {
            entries: Mutex::default(),
            file: Mutex::new(File::create(file).expect("a manifest on the local disk")),
        }
    }

    /// A file that is about to be made; returns its number.
    pub(super) fn add(&self, path: PathBuf) -> usize {
        let mut entries = self.entries.lock().expect("no thread died with it");
        entries.push(Entry {
            path,
            steps: Vec::new(),
            doubt: None,
            changing: true,
        });
        entries.len() - 1
    }

    /// A step of a file begins.
    pub(super) fn begin(&self, number: usize) {
        self.entries.lock().expect("no thread died with it")[number].changing = true;
    }

    /// It was acknowledged (`sure`), or failed.
    pub(super) fn end(&self, number: usize, step: Step, sure: bool) {
        let line = {
            let mut entries = self.entries.lock().expect("no thread died with it");
            let entry = &mut entries[number];
            let line = json!({"file": number, "path": entry.path.to_str(), "sure": sure, "step": value(&step)});
            if !sure {
                entry.doubt = Some(step);
            } else {
                if let Step::Rename { to } = &step {
                    entry.path = to.clone();
                }
                entry.steps.push(step);
            }
            entry.changing = false;
            line
        };
        let mut file = self.file.lock().expect("no thread died with it");
        writeln!(file, "{line}").expect("the local disk takes the manifest");
    }

    /// A file as it is now.
    pub(super) fn entry(&self, number: usize) -> Entry {
        self.entries.lock().expect("no thread died with it")[number].clone()
    }

    /// Number of files.
    pub(super) fn len(&self) -> usize {
        self.entries.lock().expect("no thread died with it").len()
    }

    /// Checks a file while the load runs; `None` if it was changed meanwhile.
    pub(super) fn check_at_rest(&self, number: usize, root: &Path) -> Option<Result<(), String>> {
        let before = self.entry(number);
        if before.changing {
            return None;
        }
        let result = before.check(root);
        let after = self.entry(number);
        let same = !after.changing && after.steps.len() == before.steps.len();
        (same && after.doubt == before.doubt).then_some(result)
    }

    /// Checks all files, and that there are no others, once the load has ended; what is wrong, and the number of bytes.
    pub(super) fn check_all(&self, root: &Path) -> (Vec<String>, u64) {
        let entries = self.entries.lock().expect("no thread died with it");
        let mut wrong: Vec<_> = entries
            .iter()
            .filter_map(|entry| entry.check(root).err())
            .collect();
        let known: BTreeSet<_> = entries.iter().flat_map(Entry::names).collect();
        let mut bytes = 0;
        for directory in known
            .iter()
            .filter_map(|path| path.parent())
            .collect::<BTreeSet<_>>()
        {
            match std::fs::read_dir(root.join(directory)) {
                Ok(names) => {
                    for name in names.flatten() {
                        bytes += name.metadata().map_or(0, |meta| meta.len());
                        let path = directory.join(name.file_name());
                        if !known.contains(path.as_path()) {
                            wrong.push(format!("{} was never made, or is gone", path.display()));
                        }
                    }
                }
                Err(error) => wrong.push(format!("{}: {error}", directory.display())),
            }
        }
        (wrong, bytes)
    }
}

fn value(step: &Step) -> Value {
    match step {
        Step::Write { offset, len, seed } => {
            json!({"write": {"offset": offset, "len": len, "seed": seed}})
        }
        Step::Resize { len } => json!({"resize": len}),
        Step::Rename { to } => json!({"rename": to.to_str()}),
        Step::Unlink => json!("unlink"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::content::content;
    use super::*;
    use crate::temporary;

    const STEP: Step = Step::Write {
        offset: 0,
        len: 5000,
        seed: 3,
    };

    #[test]
    fn lost_changed_and_revived_files_are_found() {
        let directory = temporary();
        let root = directory.path();
        std::fs::create_dir(root.join("w")).unwrap();
        let manifest = Manifest::new(&root.join("lines"));
        for name in ["kept", "lost", "changed", "unlinked"] {
            let number = manifest.add(Path::new("w").join(name));
            std::fs::write(root.join("w").join(name), content(&[STEP])).unwrap();
            manifest.end(number, STEP, true);
        }
        assert_eq!(manifest.check_all(root), (vec![], 20000));
        std::fs::remove_file(root.join("w/lost")).unwrap();
        std::fs::write(root.join("w/changed"), "other").unwrap();
        std::fs::write(root.join("w/stranger"), "").unwrap();
        manifest.end(3, Step::Unlink, true);
        let (wrong, _) = manifest.check_all(root);
        let named = |name: &str| wrong.iter().filter(|text| text.contains(name)).count();
        let counts = ["kept", "lost", "changed", "unlinked", "stranger"].map(named);
        // The unlinked one is there still: as a file, and as a name.
        assert_eq!(counts, [0, 1, 1, 2, 1], "{wrong:#?}");
    }

    #[test]
    fn a_step_that_failed_may_have_happened_or_not() {
        let directory = temporary();
        let root = directory.path();
        let manifest = Manifest::new(&root.join("lines"));
        let number = manifest.add("w/file".into());
        manifest.end(number, STEP, false);
        let check = || manifest.entry(number).check(root);
        assert_eq!(check(), Ok(()), "it need not be there");
        std::fs::create_dir(root.join("w")).unwrap();
        std::fs::write(root.join("w/file"), &content(&[STEP])[..4096]).unwrap();
        assert_eq!(check(), Ok(()));
        std::fs::write(root.join("w/file"), "other").unwrap();
        assert!(check().is_err());
    }
}
