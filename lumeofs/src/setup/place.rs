//! Files that come and go below a root.
//!
//! A file is replaced as a whole, by a rename: a program that runs keeps its old file, and who looks meanwhile finds the
//! old one or the new one.

use super::below;
use super::files::{Item, What};
use super::list::{Entry, List};
use anyhow::{Context as _, bail};
use lumeofs_base::checksum::crc32c;
use serde::Serialize;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// What happened to a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Done {
    Installed,
    Replaced,
    /// It was as it should be.
    Unchanged,
    /// Somebody changed it: it stays.
    Kept,
    Removed,
    /// It was gone already.
    Gone,
}

impl Done {
    /// For people.
    pub(super) const fn text(self, dry_run: bool) -> &'static str {
        match (self, dry_run) {
            (Self::Installed, false) => "installed",
            (Self::Installed, true) => "would install",
            (Self::Replaced, false) => "replaced",
            (Self::Replaced, true) => "would replace",
            (Self::Unchanged, _) => "unchanged",
            (Self::Kept, _) => "kept (yours)",
            (Self::Removed, false) => "removed",
            (Self::Removed, true) => "would remove",
            (Self::Gone, _) => "gone already",
        }
    }
}

/// A root directory to install below.
pub(super) struct Place {
    root: PathBuf,
    dry_run: bool,
}

impl Place {
    pub(super) fn new(root: PathBuf, dry_run: bool) -> Self {
        Self { root, dry_run }
    }

    /// Installs one thing and lists it.
    pub(super) fn install(&mut self, item: &Item, list: &mut List) -> anyhow::Result<Done> {
        let path = &item.path;
        self.make_directory(path.parent().unwrap_or(path), list)?;
        let there = self.real(path)?;
        match &item.what {
            What::Link(to) => self.install_link(path, &there, to, list),
            What::Program(content) => self.install_file(path, &there, content, 0o755, true, list),
            What::File { content, mode } => {
                self.install_file(path, &there, content, *mode, false, list)
            }
        }
    }

    fn install_file(
        &self,
        path: &Path,
        there: &Path,
        content: &[u8],
        mode: u32,
        always: bool,
        list: &mut List,
    ) -> anyhow::Result<Done> {
        let found = read(there)?;
        let done = match found.as_deref() {
            Some(found) if found == content => Done::Unchanged,
            Some(found) if always || list.get(path) == Some(&Entry::File(crc32c(found))) => {
                Done::Replaced
            }
            // The list still has what was installed; this is something else.
            Some(_) => return Ok(Done::Kept),
            None => Done::Installed,
        };
        if done != Done::Unchanged && !self.dry_run {
            write(there, content, mode)?;
        }
        list.insert(path, Entry::File(crc32c(content)));
        Ok(done)
    }

    fn install_link(
        &self,
        path: &Path,
        there: &Path,
        to: &Path,
        list: &mut List,
    ) -> anyhow::Result<Done> {
        let done = match fs::symlink_metadata(there) {
            Err(error) if error.kind() == ErrorKind::NotFound => Done::Installed,
            Err(error) => return Err(error).with_context(|| there.display().to_string()),
            Ok(_) => match fs::read_link(there) {
                Ok(found) if found == to => Done::Unchanged,
                Ok(found) if list.get(path) == Some(&Entry::Link(found.clone())) => Done::Replaced,
                // Of a setup with another prefix.
                Ok(found) if found.file_name() == to.file_name() => Done::Replaced,
                _ => bail!(
                    "{} is there already and not from `lumeofs setup`: move it away",
                    there.display()
                ),
            },
        };
        if done != Done::Unchanged && !self.dry_run {
            let new = beside(there);
            let _ = fs::remove_file(&new);
            symlink(to, &new)
                .and_then(|()| fs::rename(&new, there))
                .with_context(|| format!("create {}", there.display()))?;
        }
        list.insert(path, Entry::Link(to.to_owned()));
        Ok(done)
    }

    /// Removes one thing if it still is what was installed. Directories go at the end, with the list.
    pub(super) fn remove(&self, path: &Path, entry: &Entry) -> anyhow::Result<Option<Done>> {
        let there = self.real(path)?;
        let unchanged = match entry {
            Entry::File(checksum) => read(&there)?.map(|found| crc32c(&found) == *checksum),
            Entry::Link(to) => match fs::read_link(&there) {
                Err(error) if error.kind() == ErrorKind::NotFound => None,
                found => Some(found.is_ok_and(|found| found == *to)),
            },
            Entry::Directory => return Ok(None),
        };
        if unchanged == Some(true) && !self.dry_run {
            fs::remove_file(&there).with_context(|| format!("remove {}", there.display()))?;
        }
        Ok(Some(match unchanged {
            None => Done::Gone,
            Some(true) => Done::Removed,
            Some(false) => Done::Kept,
        }))
    }

    /// Removes a directory unless something is in it; whether it is gone.
    fn remove_directory(&self, path: &Path) -> anyhow::Result<bool> {
        let there = self.real(path)?;
        match fs::remove_dir(&there) {
            Ok(()) => Ok(true),
            Err(error) => match error.kind() {
                ErrorKind::NotFound => Ok(true),
                // Something of somebody else is in it, or it is no directory any more.
                ErrorKind::DirectoryNotEmpty | ErrorKind::NotADirectory => Ok(false),
                _ => Err(error).with_context(|| format!("remove {}", there.display())),
            },
        }
    }

    /// Writes the list.
    pub(super) fn save_list(&mut self, path: &Path, list: &mut List) -> anyhow::Result<()> {
        if self.dry_run {
            return Ok(());
        }
        self.make_directory(path.parent().unwrap_or(path), list)?;
        write(&self.real(path)?, &list.to_text(), 0o644)
    }

    /// Removes the list and the directories that are empty then, or writes what is left: what was kept stays known.
    pub(super) fn remove_list(&mut self, path: &Path, list: &mut List) -> anyhow::Result<()> {
        if self.dry_run {
            return Ok(());
        }
        let there = self.real(path)?;
        match fs::remove_file(&there) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", there.display()));
            }
            _ => {}
        }
        for (path, entry) in list.entries() {
            if entry == Entry::Directory && self.remove_directory(&path)? {
                list.forget(&path);
            }
        }
        if list.is_empty() {
            return Ok(());
        }
        self.save_list(path, list)
    }

    /// Creates a directory and those above it that are missing, and lists them.
    fn make_directory(&mut self, path: &Path, list: &mut List) -> anyhow::Result<()> {
        if below(&self.root, path).is_dir() {
            return Ok(());
        }
        let Some(parent) = path.parent() else {
            // The root itself: no part of what is installed.
            if self.dry_run {
                return Ok(());
            }
            return fs::create_dir_all(&self.root)
                .with_context(|| format!("create {}", self.root.display()));
        };
        self.make_directory(parent, list)?;
        if !self.dry_run {
            let there = self.real(path)?;
            fs::create_dir(&there).with_context(|| format!("create {}", there.display()))?;
        }
        list.insert(path, Entry::Directory);
        Ok(())
    }

    /// Where a path of the installed system is. Fails if links on the way lead out of the root.
    fn real(&self, path: &Path) -> anyhow::Result<PathBuf> {
        let there = below(&self.root, path);
        let Some(parent) = there.parent() else {
            return Ok(there);
        };
        match (fs::canonicalize(&self.root), fs::canonicalize(parent)) {
            (Ok(root), Ok(parent)) if !parent.starts_with(&root) => bail!(
                "{} leads out of {}, to {}",
                there.display(),
                root.display(),
                parent.display()
            ),
            // What is missing is told by whoever needs it.
            _ => Ok(there),
        }
    }
}

/// The content of a file, if there is one.
fn read(file: &Path) -> anyhow::Result<Option<Vec<u8>>> {
    match fs::read(file) {
        Ok(content) => Ok(Some(content)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("read {}", file.display())),
    }
}

/// Writes a file as a whole and to the disk.
fn write(file: &Path, content: &[u8], mode: u32) -> anyhow::Result<()> {
    let new = beside(file);
    let written = || -> io::Result<()> {
        let _ = fs::remove_file(&new);
        let mut options = fs::File::options();
        let mut out = options.write(true).create_new(true).mode(mode).open(&new)?;
        // Whatever the umask is.
        out.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        out.write_all(content)?;
        out.sync_all()?;
        fs::rename(&new, file)
    };
    written().with_context(|| {
        let _ = fs::remove_file(&new);
        format!("write {}", file.display())
    })
}

/// A name beside a file, for what becomes it.
fn beside(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".lumeofs-new");
    file.with_file_name(name)
}
