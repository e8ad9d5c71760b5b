//! `lumeofs fs`: files without a mount, through the SDK.

use crate::access::Access;
use crate::output;
use anyhow::Context as _;
use lumeofs_base::limits::IO_BYTES_MAX;
use lumeofs_base::{Attr, Code, FileKind, FsError, FsResult, InodeId};
use lumeofs_client::{Client, Context};
use lumeofs_meta::op::{Caller, NewNode, RenameMode, SetAttr};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Options of `lumeofs fs`.
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    access: Access,
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Lists a directory
    Ls {
        /// Path from the root of the filesystem
        #[arg(default_value = "/")]
        path: OsString,
    },
    /// Shows attributes
    Stat {
        /// Path from the root of the filesystem
        path: OsString,
    },
    /// Copies a local file in (- = standard input)
    Put {
        /// Local file
        local: PathBuf,
        /// Path in the filesystem; an existing file is replaced
        path: OsString,
    },
    /// Copies a file out (- = standard output)
    Get {
        /// Path in the filesystem
        path: OsString,
        /// Local file; replaced if it exists
        local: PathBuf,
    },
    /// Prints a file
    Cat {
        /// Path in the filesystem
        path: OsString,
    },
    /// Removes a file, or a directory with -r
    Rm {
        /// Path in the filesystem
        path: OsString,
        /// Also a directory with all below it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Makes a directory
    Mkdir {
        /// Path in the filesystem
        path: OsString,
        /// Also its missing parents; no error if it exists
        #[arg(short, long)]
        parents: bool,
    },
    /// Renames; an existing target is replaced
    Mv {
        /// Path in the filesystem
        from: OsString,
        /// New path
        to: OsString,
    },
}

/// A session of one command, with the rights of who runs it.
pub(crate) struct Session {
    /// The client.
    pub(crate) client: Arc<Client>,
    caller: Caller,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.client.close();
    }
}

impl Session {
    /// Connects.
    pub(crate) fn open(access: &Access) -> anyhow::Result<Self> {
        let caller = Caller {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            groups: rustix::process::getgroups()?
                .into_iter()
                .map(rustix::fs::Gid::as_raw)
                .collect(),
            trusted: false,
        };
        Ok(Self {
            client: access.connect()?,
            caller,
        })
    }

    /// Who calls.
    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            caller: &self.caller,
            interrupted: &|| false,
        }
    }

    /// The object of a path from the root. Symlinks are not followed.
    pub(crate) fn resolve(&self, path: &[u8]) -> FsResult<Attr> {
        let mut attr = self.client.getattr(self.context(), InodeId::ROOT)?;
        for name in names(path) {
            let found = self.client.lookup(self.context(), attr.ino, name);
            attr = found.map_err(|error| error.during(output::name(path)))?;
        }
        Ok(attr)
    }

    fn resolve_parent<'p>(&self, path: &'p [u8]) -> FsResult<(InodeId, &'p [u8])> {
        let Some(name) = names(path).last() else {
            let text = format!("{:?} names no object in a directory", output::name(path));
            return Err(FsError::new(Code::Invalid, text));
        };
        let end = name.as_ptr() as usize - path.as_ptr() as usize;
        Ok((self.resolve(&path[..end])?.ino, name))
    }

    fn entries(&self, ino: InodeId) -> FsResult<Vec<(Vec<u8>, InodeId)>> {
        let mut all = Vec::new();
        let (mut cookie, mut more) = (0, true);
        while more {
            let (entries, further) = self.client.readdir(self.context(), ino, cookie, 1000)?;
            more = further && !entries.is_empty();
            for entry in entries {
                cookie = entry.cookie;
                all.push((entry.name, entry.ino));
            }
        }
        all.sort();
        Ok(all)
    }

    fn put(&self, local: &std::path::Path, path: &[u8]) -> anyhow::Result<u64> {
        let mut source: Box<dyn std::io::Read> = if local.as_os_str() == "-" {
            Box::new(std::io::stdin())
        } else {
            Box::new(std::fs::File::open(local).map_err(|error| {
                anyhow::Error::from(error).context(format!("open {}", local.display()))
            })?)
        };
        let (parent, name) = self.resolve_parent(path)?;
        let cx = self.context();
        let (attr, created) =
            self.client
                .create(cx, parent, name, NewNode::Regular, 0o644, false)?;
        if !created {
            self.client.setattr(
                cx,
                attr.ino,
                SetAttr {
                    size: Some(0),
                    ..SetAttr::default()
                },
            )?;
        }
        let mut buffer = vec![0; IO_BYTES_MAX];
        let mut offset = 0;
        loop {
            let mut filled = 0;
            while filled < buffer.len() {
                match source.read(&mut buffer[filled..])? {
                    0 => break,
                    count => filled += count,
                }
            }
            if filled == 0 {
                break;
            }
            self.client
                .write(cx, attr.ino, offset, &buffer[..filled], false, false, false)?;
            offset += filled as u64;
        }
        self.client.fsync(cx, attr.ino, false)?;
        self.client.release(attr.ino);
        Ok(offset)
    }

    fn get(&self, path: &[u8], out: &mut dyn std::io::Write) -> anyhow::Result<u64> {
        let attr = self.resolve(path)?;
        if attr.kind != FileKind::Regular {
            let text = format!("{} is no regular file", output::name(path));
            return Err(FsError::new(Code::Invalid, text).into());
        }
        let cx = self.context();
        self.client.open(cx, attr.ino, false)?;
        let mut buffer = vec![0; IO_BYTES_MAX];
        let mut offset = 0;
        loop {
            let count = self.client.read(cx, attr.ino, offset, &mut buffer)?;
            if count == 0 {
                break;
            }
            out.write_all(&buffer[..count])?;
            offset += count as u64;
        }
        out.flush()?;
        self.client.release(attr.ino);
        Ok(offset)
    }

    fn remove(&self, parent: InodeId, name: &[u8], recursive: bool) -> FsResult<()> {
        let cx = self.context();
        let attr = self.client.lookup(cx, parent, name)?;
        if attr.kind != FileKind::Directory {
            return self.client.unlink(cx, parent, name);
        }
        if !recursive {
            let text = format!("{:?} is a directory: add -r", output::name(name));
            return Err(FsError::new(Code::IsDirectory, text));
        }
        for (entry, _) in self.entries(attr.ino)? {
            self.remove(attr.ino, &entry, true)?;
        }
        self.client.rmdir(cx, parent, name)
    }

    fn mkdir(&self, path: &[u8], parents: bool) -> FsResult<()> {
        let cx = self.context();
        if !parents {
            let (parent, name) = self.resolve_parent(path)?;
            return self
                .client
                .create(cx, parent, name, NewNode::Directory, 0o755, true)
                .map(drop);
        }
        let mut parent = InodeId::ROOT;
        for name in names(path) {
            let made = self
                .client
                .create(cx, parent, name, NewNode::Directory, 0o755, true);
            parent = match made {
                Ok((attr, _)) => attr.ino,
                Err(error) if error.code == Code::Exists => {
                    self.client.lookup(cx, parent, name)?.ino
                }
                Err(error) => return Err(error),
            };
        }
        Ok(())
    }
}

/// The names of a path.
fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
}

/// Runs the command.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let session = Session::open(&args.access)?;
    let json = args.access.json;
    let done = |value: Value| if json { output::json(&value) } else { Ok(()) };
    match args.action {
        Action::Ls { path } => list(&session, path.as_bytes(), json),
        Action::Stat { path } => {
            let attr = session.resolve(path.as_bytes())?;
            if json {
                output::json(&attr)
            } else {
                show(path.as_bytes(), &attr)
            }
        }
        Action::Put { local, path } => {
            let bytes = session.put(&local, path.as_bytes())?;
            done(json!({"path": output::name(path.as_bytes()), "bytes": bytes}))
        }
        Action::Get { path, local } if local.as_os_str() == "-" => session
            .get(path.as_bytes(), &mut std::io::stdout().lock())
            .map(drop),
        Action::Get { path, local } => {
            let mut file = std::fs::File::create(&local)
                .with_context(|| format!("create {}", local.display()))?;
            let bytes = session.get(path.as_bytes(), &mut file)?;
            done(json!({"path": output::name(path.as_bytes()), "bytes": bytes}))
        }
        Action::Cat { path } => session
            .get(path.as_bytes(), &mut std::io::stdout().lock())
            .map(drop),
        Action::Rm { path, recursive } => {
            let shown = output::name(path.as_bytes());
            let (parent, name) = session.resolve_parent(path.as_bytes())?;
            session
                .remove(parent, name, recursive)
                .map_err(|error| error.during(&shown))?;
            done(json!({"removed": shown}))
        }
        Action::Mkdir { path, parents } => {
            let shown = output::name(path.as_bytes());
            session
                .mkdir(path.as_bytes(), parents)
                .map_err(|error| error.during(&shown))?;
            done(json!({"path": shown}))
        }
        Action::Mv { from, to } => {
            let (parent, name) = session.resolve_parent(from.as_bytes())?;
            let (new_parent, new_name) = session.resolve_parent(to.as_bytes())?;
            let cx = session.context();
            session
                .client
                .rename(cx, parent, name, new_parent, new_name, RenameMode::Replace)?;
            let (from, to) = (output::name(from.as_bytes()), output::name(to.as_bytes()));
            done(json!({"from": from, "to": to}))
        }
    }
}

fn list(session: &Session, path: &[u8], json: bool) -> anyhow::Result<()> {
    let attr = session.resolve(path)?;
    let entries = if attr.kind == FileKind::Directory {
        session.entries(attr.ino)?
    } else {
        vec![(path.to_vec(), attr.ino)]
    };
    let mut values = Vec::new();
    let mut rows = Vec::new();
    for (name, ino) in entries {
        // It may have been removed since the directory was read.
        let Ok(attr) = session.client.getattr(session.context(), ino) else {
            continue;
        };
        let name = output::name(&name);
        rows.push(vec![
            format!("{:?}", attr.kind),
            format!("{:04o}", attr.mode),
            attr.uid.to_string(),
            attr.gid.to_string(),
            attr.size.to_string(),
            attr.mtime.secs.to_string(),
            name.clone(),
        ]);
        values.push(json!({"name": name, "attr": attr}));
    }
    if json {
        return output::json(&values);
    }
    output::table(
        &["KIND", "MODE", "UID", "GID", "SIZE", "MTIME", "NAME"],
        &rows,
    )
}

fn show(path: &[u8], attr: &Attr) -> anyhow::Result<()> {
    let mut text = output::name(path);
    write!(
        text,
        "\n  inode {}  {:?}  mode {:04o}  links {}",
        attr.ino.get(),
        attr.kind,
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
        ("birth", attr.btime),
    ];
    for (name, time) in times {
        write!(text, "\n  {name} {}.{:09}", time.secs, time.nanos)?;
    }
    output::line(text)
}
