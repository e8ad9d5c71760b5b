//! What is installed where.

use lumeofs_base::{Code, FsError};
use std::path::{Path, PathBuf};

/// Where mount(8) looks for the helper of a type.
const HELPER: &str = concat!("/sbin/", "mount.fuse.lumeofs");
/// Configuration, which belongs to the administrator.
const CONFIGURATION: &str = "/etc/lumeofs";

const UNITS: [(&str, &str); 2] = [
    (
        "lumeofs-master.service",
        include_str!("files/lumeofs-master.service"),
    ),
    (
        "lumeofs-datanode@.service",
        include_str!("files/lumeofs-datanode@.service"),
    ),
];
const EXAMPLES: [(&str, &str); 2] = [
    ("master.conf", include_str!("files/master.conf")),
    ("datanode-1.conf", include_str!("files/datanode-1.conf")),
];

/// What is installed: its path as the installed system sees it, and what it is.
pub(super) struct Item {
    pub(super) path: PathBuf,
    pub(super) what: What,
}

/// What a path becomes.
pub(super) enum What {
    /// A file that setup owns: replaced unless somebody changed it.
    File { content: Vec<u8>, mode: u32 },
    /// This program: replaced whatever is there.
    Program(Vec<u8>),
    /// A symbolic link to this path.
    Link(PathBuf),
}

/// Paths for a prefix.
pub(super) struct Layout {
    /// The program.
    pub(super) binary: PathBuf,
    /// The list of what was installed.
    pub(super) list: PathBuf,
    units: PathBuf,
}

impl Layout {
    pub(super) fn new(prefix: &Path) -> Result<Self, FsError> {
        if !prefix.is_absolute() {
            let text = format!("--prefix {}: want an absolute path", prefix.display());
            return Err(FsError::new(Code::Invalid, text));
        }
        let searched = [Path::new("/usr"), Path::new("/usr/local")].contains(&prefix);
        Ok(Self {
            binary: prefix.join("bin/lumeofs"),
            list: prefix.join("lib/lumeofs/installed.json"),
            units: match searched {
                true => prefix.join("lib/systemd/system"),
                false => "/etc/systemd/system".into(),
            },
        })
    }

    /// All that is installed, the program first: the others name it.
    pub(super) fn items(&self, program: Vec<u8>) -> Vec<Item> {
        let mut items = vec![
            Item {
                path: self.binary.clone(),
                what: What::Program(program),
            },
            Item {
                path: HELPER.into(),
                what: What::Link(self.binary.clone()),
            },
        ];
        items.extend(self.units().map(|(path, text)| file(path, &text)));
        items.extend(EXAMPLES.map(|(name, text)| file(Path::new(CONFIGURATION).join(name), text)));
        items
    }

    /// The systemd units.
    pub(super) fn units(&self) -> impl Iterator<Item = (PathBuf, String)> {
        let binary = self.binary.display().to_string();
        UNITS
            .into_iter()
            .map(move |(name, text)| (self.units.join(name), text.replace("@BINARY@", &binary)))
    }
}

/// The examples of configuration.
#[cfg(test)]
pub(super) fn examples() -> [(&'static str, &'static str); 2] {
    EXAMPLES
}

fn file(path: PathBuf, text: &str) -> Item {
    let content = text.as_bytes().to_vec();
    Item {
        path,
        what: What::File {
            content,
            mode: 0o644,
        },
    }
}
