//! Copying files in and out, with progress for people.

use super::session::{Session, with_umask};
use crate::output;
use lumeofs_base::clock::{Clock as _, SystemClock};
use lumeofs_base::limits::IO_BYTES_MAX;
use lumeofs_base::{Code, FileKind, FsError};
use lumeofs_client::WriteMode;
use lumeofs_meta::op::{NewNode, SetAttr};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::time::Duration;

/// Bytes of one call: several requests, which the client has under way at the same time.
const STEP_BYTES: usize = 8 * IO_BYTES_MAX;
/// Between two lines of progress.
const TELL_EVERY: Duration = Duration::from_millis(500);

/// Copies a local file, or standard input for `-`, to `path`, or into it if it is a directory. Durable on
/// return. Returns the number of bytes. What is there is not touched before the source could be read.
pub(super) fn put(session: &Session, local: &Path, path: &[u8]) -> anyhow::Result<u64> {
    let shown = local.display();
    let failed = |what: &str, error: std::io::Error| {
        let context = format!("{what} {shown}");
        anyhow::Error::from(error).context(context)
    };
    let mut total = None;
    let mut source: Box<dyn Read> = if local.as_os_str() == "-" {
        Box::new(std::io::stdin())
    } else {
        let file = File::open(local).map_err(|error| failed("open", error))?;
        let about = file.metadata().map_err(|error| failed("stat", error))?;
        total = about.is_file().then_some(about.len());
        Box::new(file)
    };
    let mut buffer = vec![0; STEP_BYTES];
    let mut count = fill(&mut source, &mut buffer).map_err(|error| failed("read", error))?;
    let name = local.file_name().map_or(&b""[..], OsStr::as_bytes);
    let written = |error: FsError| error.during(format_args!("write {}", output::name(path)));
    let (parent, name) = session.target(path, name).map_err(written)?;
    let cx = session.context();
    let client = &session.client;
    let (attr, created) = client
        .create(cx, parent, name, NewNode::Regular, with_umask(0o666), false)
        .map_err(written)?;
    if !created {
        let empty = SetAttr {
            size: Some(0),
            ..SetAttr::default()
        };
        client.setattr(cx, attr.ino, empty).map_err(written)?;
    }
    let mut progress = Progress::new(total);
    while count > 0 {
        client
            .write(
                cx,
                attr.ino,
                progress.done,
                &buffer[..count],
                WriteMode::default(),
            )
            .map_err(written)?;
        progress.add(count);
        count = fill(&mut source, &mut buffer).map_err(|error| failed("read", error))?;
    }
    client.fsync(cx, attr.ino, false).map_err(written)?;
    client.release(attr.ino);
    Ok(progress.done)
}

/// Copies the file at `path` to what `open` opens once the file is known to be there. Returns the number of
/// bytes.
pub(super) fn get<W: Write>(
    session: &Session,
    path: &[u8],
    open: impl FnOnce() -> anyhow::Result<W>,
) -> anyhow::Result<u64> {
    let attr = session.resolve(path)?;
    if attr.kind != FileKind::Regular {
        let text = format!("{} is no regular file", output::name(path));
        return Err(FsError::new(Code::Invalid, text).into());
    }
    let cx = session.context();
    let read = |error: FsError| error.during(format_args!("read {}", output::name(path)));
    session.client.open(cx, attr.ino, false).map_err(read)?;
    let mut out = open()?;
    let mut buffer = vec![0; STEP_BYTES];
    let mut progress = Progress::new(Some(attr.size));
    loop {
        let count = session
            .client
            .read(cx, attr.ino, progress.done, &mut buffer)
            .map_err(read)?;
        if count == 0 {
            break;
        }
        out.write_all(&buffer[..count])?;
        progress.add(count);
    }
    out.flush()?;
    session.client.release(attr.ino);
    Ok(progress.done)
}

/// Reads until the buffer is full or the source at its end.
fn fill(source: &mut dyn Read, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match source.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// How far a copy is, on one line of a terminal.
struct Progress {
    done: u64,
    total: Option<u64>,
    begun: Duration,
    told: Duration,
    is_shown: bool,
}

impl Progress {
    fn new(total: Option<u64>) -> Self {
        let now = SystemClock.monotonic();
        Self {
            done: 0,
            total,
            begun: now,
            told: now,
            is_shown: false,
        }
    }

    fn add(&mut self, count: usize) {
        self.done += count as u64;
        let now = SystemClock.monotonic();
        if now < self.told + TELL_EVERY {
            return;
        }
        self.told = now;
        self.is_shown = true;
        let rate = self.done as f64 / (now - self.begun).as_secs_f64();
        let of = self.total.map_or(String::new(), |total| {
            format!(" of {}", output::size(total))
        });
        output::status(format_args!(
            "{}{of}, {}/s",
            output::size(self.done),
            output::size(rate as u64)
        ));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.is_shown {
            output::status("");
        }
    }
}
