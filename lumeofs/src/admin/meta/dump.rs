//! `lumeofs admin meta dump`: from the leaders into a file.

use crate::admin::{Admin, call, masters};
use crate::output;
use anyhow::Context as _;
use lumeofs_base::{ClusterId, Code, FsError, FsResult};
use lumeofs_master::dump::{DumpWriter, GROUPS, GroupHead, Head};
use lumeofs_proto::auth::Credentials;
use lumeofs_proto::control::dump_part::Kind;
use lumeofs_proto::control::{DumpPart, DumpRequest};
use lumeofs_proto::grpc::error_of;
use serde_json::json;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::timeout;

/// Longest time without a piece.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Attempts to get a group from its leader, which may change.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

type Out = BufWriter<Box<dyn Write>>;

/// What is being written.
struct Dump {
    out: Option<Out>,
    writer: Option<DumpWriter<Out>>,
    bytes: u64,
    rows: u64,
    /// Index of each group's log.
    indices: Vec<(&'static str, u64)>,
}

/// Runs the command.
pub(super) fn run(
    addresses: &[String],
    credentials: &Credentials,
    out: &Path,
    json: bool,
) -> anyhow::Result<()> {
    let to_stdout = out == Path::new("-");
    if to_stdout {
        take(addresses, credentials, Box::new(std::io::stdout()))?;
        return Ok(());
    }
    let temporary = Temporary::create(out)?;
    let file = temporary.file.try_clone()?;
    let dump = take(addresses, credentials, Box::new(file))?;
    temporary.commit(out)?;
    if json {
        let indices = dump.indices.iter();
        let indices = indices.map(|(name, index)| json!({"group": name, "index": index}));
        return output::json(&json!({
            "file": output::json_name(out.as_os_str().as_bytes()), "rows": dump.rows, "bytes": dump.bytes,
            "groups": indices.collect::<Vec<_>>(),
        }));
    }
    let indices = dump.indices.iter();
    let indices: Vec<_> = indices
        .map(|(name, index)| format!("{name} as of log index {index}"))
        .collect();
    output::line(format_args!(
        "{}: {} rows, {}; {}. Keep the secret file with it",
        out.display(),
        dump.rows,
        output::size(dump.bytes),
        indices.join(", ")
    ))
}

/// A file under a name of its own until it is whole.
struct Temporary {
    path: PathBuf,
    file: File,
    committed: bool,
}

impl Temporary {
    fn create(target: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt as _;
        let mut name = target.as_os_str().to_owned();
        name.push(format!(".{}.part", std::process::id()));
        let path = PathBuf::from(name);
        // It tells the names of all files.
        let file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("create {}", path.display()))?;
        Ok(Self {
            path,
            file,
            committed: false,
        })
    }

    fn commit(mut self, target: &Path) -> anyhow::Result<()> {
        let sync = || -> std::io::Result<()> {
            self.file.sync_all()?;
            std::fs::rename(&self.path, target)?;
            let dir = target.parent().filter(|dir| *dir != Path::new(""));
            File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
        };
        sync().with_context(|| format!("write {}", target.display()))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.committed {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn take(
    addresses: &[String],
    credentials: &Credentials,
    out: Box<dyn Write>,
) -> anyhow::Result<Dump> {
    let mut dump = Dump {
        out: Some(BufWriter::with_capacity(1 << 20, out)),
        writer: None,
        bytes: 0,
        rows: 0,
        indices: Vec::new(),
    };
    for group in GROUPS {
        take_group(addresses, credentials, group, &mut dump)?;
    }
    output::status("");
    let writer = dump.writer.take().expect("each group's head made sure");
    writer.end()?.flush()?;
    Ok(dump)
}

fn take_group(
    addresses: &[String],
    credentials: &Credentials,
    group: &'static str,
    dump: &mut Dump,
) -> anyhow::Result<()> {
    let mut tries = 0;
    loop {
        tries += 1;
        let begun = dump.indices.len();
        let asked = masters::survey(addresses, credentials);
        let done = masters::leader(&asked, group).and_then(|leader| {
            call(&leader, credentials, |client| follow(client, group, dump)).and_then(|done| done)
        });
        match done {
            Ok(()) => return Ok(()),
            // What is written cannot be taken back.
            Err(error) if dump.indices.len() > begun || tries == TRIES => {
                return Err(error
                    .during(format_args!("dump of the {group} group"))
                    .into());
            }
            Err(error) => match error.code {
                Code::NotLeader(_) | Code::Unavailable | Code::Timeout => std::thread::sleep(PAUSE),
                _ => return Err(error.into()),
            },
        }
    }
}

/// Takes a group to its end. The outer error is that it did not begin.
async fn follow(
    mut client: Admin,
    group: &'static str,
    dump: &mut Dump,
) -> Result<FsResult<()>, tonic::Status> {
    let request = DumpRequest {
        group: group.to_owned(),
    };
    let mut parts = client.dump(request).await?.into_inner();
    loop {
        let part = match timeout(SILENCE_MAX, parts.message()).await {
            Ok(Ok(Some(part))) => part,
            Ok(Ok(None)) => {
                let text = "the master ended it before its end";
                return Ok(Err(FsError::new(Code::Unavailable, text)));
            }
            Ok(Err(status)) => return Ok(Err(error_of(&status))),
            Err(_) => {
                let text = format!("the master is silent for {SILENCE_MAX:?}");
                return Ok(Err(FsError::new(Code::Timeout, text)));
            }
        };
        match dump.write(group, part) {
            Ok(false) => {}
            Ok(true) => return Ok(Ok(())),
            Err(error) => return Ok(Err(error)),
        }
    }
}

impl Dump {
    /// Writes a part. True if it was the last one of the group.
    fn write(&mut self, name: &'static str, part: DumpPart) -> FsResult<bool> {
        let strange = || FsError::new(Code::Refused, "the master sent parts in a wrong order");
        match part.kind {
            Some(Kind::Head(head)) => {
                if self.writer.is_none() {
                    let out = self.out.take().ok_or_else(strange)?;
                    let cluster = head.cluster_id[..].try_into().map_err(|_| strange())?;
                    let of_file = Head {
                        cluster: ClusterId(cluster),
                        time_ms: head.time_ms,
                        records: head.records,
                        program: env!("CARGO_PKG_VERSION").to_owned(),
                    };
                    self.writer = Some(DumpWriter::begin(out, &of_file)?);
                }
                self.indices.push((name, head.index));
                self.writer
                    .as_mut()
                    .ok_or_else(strange)?
                    .group(&GroupHead {
                        name: name.to_owned(),
                        index: head.index,
                        term: head.term,
                    })?;
            }
            Some(Kind::Rows(piece)) => {
                self.writer.as_mut().ok_or_else(strange)?.rows(&piece)?;
                self.bytes += piece.len() as u64;
                output::status(format_args!("{name}: {}", output::size(self.bytes)));
            }
            Some(Kind::End(end)) => {
                let writer = self.writer.as_mut().ok_or_else(strange)?;
                writer.group_end(end.rows)?;
                self.rows += end.rows;
                return Ok(true);
            }
            // Of a newer master.
            None => return Err(strange()),
        }
        Ok(false)
    }
}
