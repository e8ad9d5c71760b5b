//! The two halves of a connection, plain or TLS: what is different between them ends here.

use crate::tls::records::{Opened, Opener, PLAIN_BYTES_MAX, RECORD_BYTES_MAX, Sealer, record_len};
use rustls::crypto::cipher::OutboundChunks;
use std::io::{self, IoSlice, Read as _, Write as _};
use std::net::TcpStream;

/// Records that are sealed before they are sent together: so much of a frame is copied at a time.
const RECORDS_AT_ONCE: usize = 8;
/// Most ciphertext that is read ahead.
const READ_AHEAD_BYTES_MAX: usize = 128 << 10;

/// What a [`super::FrameSender`] writes to.
pub(super) enum Outgoing {
    Plain(TcpStream),
    Tls(TcpStream, Box<Sealer>),
}

/// What a [`super::FrameReceiver`] reads from.
pub(super) enum Incoming {
    Plain(TcpStream),
    Tls(TcpStream, Box<Encrypted>),
}

impl Outgoing {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) | Self::Tls(socket, _) => socket,
        }
    }

    /// Writes a frame: what precedes its payload, and the payload's parts.
    pub(super) fn write(&mut self, head: &[u8], payload: &[&[u8]]) -> io::Result<()> {
        let parts = std::iter::once(head).chain(payload.iter().copied());
        match self {
            Self::Plain(socket) => write_all(socket, parts),
            Self::Tls(socket, sealer) => {
                let parts: Vec<_> = parts.collect();
                let mut rest = OutboundChunks::new(&parts);
                let mut records = Vec::with_capacity(RECORDS_AT_ONCE + 1);
                while !rest.is_empty() {
                    while !rest.is_empty() && records.len() < RECORDS_AT_ONCE {
                        let (now, later) = rest.split_at(PLAIN_BYTES_MAX);
                        sealer.seal(now, &mut records)?;
                        rest = later;
                    }
                    write_all(socket, records.iter().map(Vec::as_slice))?;
                    records.clear();
                }
                Ok(())
            }
        }
    }
}

fn write_all<'a>(socket: &mut TcpStream, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut slices: Vec<_> = parts.map(IoSlice::new).collect();
    let mut rest = &mut slices[..];
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match socket.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => IoSlice::advance_slices(&mut rest, count),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Incoming {
    pub(super) fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) | Self::Tls(socket, _) => socket,
        }
    }

    /// As [`io::Read::read`]. After a time-out it can be called again.
    pub(super) fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(out),
            Self::Tls(socket, encrypted) => encrypted.read(socket, out),
        }
    }
}

/// The receiving side of TLS.
pub(super) struct Encrypted {
    opener: Opener,
    ahead: Ahead,
    /// Opened, but not asked for yet: less than a record, or what came along with the handshake.
    plain: Vec<u8>,
    plain_start: usize,
    ended: bool,
}

impl Encrypted {
    /// `ahead` and `plain` are what was read and what was opened beyond the handshake.
    pub(super) fn new(opener: Opener, ahead: Ahead, plain: Vec<u8>) -> Self {
        Self {
            opener,
            ahead,
            plain,
            plain_start: 0,
            ended: false,
        }
    }

    fn read(&mut self, socket: &mut TcpStream, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            let opened = self.take_opened(out);
            if opened > 0 {
                return Ok(opened);
            }
            let opened = self.open(out)?;
            if opened > 0 || self.ended {
                return Ok(opened);
            }
            if self.ahead.read(socket)? == 0 {
                return Ok(0);
            }
        }
    }

    fn take_opened(&mut self, out: &mut [u8]) -> usize {
        let left = &self.plain[self.plain_start..];
        let count = left.len().min(out.len());
        out[..count].copy_from_slice(&left[..count]);
        self.plain_start += count;
        count
    }

    /// Opens records that are there whole: all that surely fit into `out`, at least one.
    fn open(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while !self.ended && (done == 0 || out.len() - done >= PLAIN_BYTES_MAX) {
            let Some(record) = self.ahead.next_record()? else {
                break;
            };
            match self.opener.open(record)? {
                Opened::Data(data) => {
                    let count = data.len().min(out.len() - done);
                    out[done..done + count].copy_from_slice(&data[..count]);
                    done += count;
                    self.plain.clear();
                    self.plain.extend_from_slice(&data[count..]);
                    self.plain_start = 0;
                }
                Opened::Nothing => {}
                Opened::End => self.ended = true,
            }
        }
        Ok(done)
    }
}

/// Ciphertext that was read from the socket and not used yet.
pub(super) struct Ahead {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Ahead {
    pub(super) fn new() -> Self {
        Self {
            bytes: vec![0; RECORD_BYTES_MAX],
            start: 0,
            end: 0,
        }
    }

    pub(super) fn filled(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.end]
    }

    pub(super) fn discard(&mut self, count: usize) {
        self.start += count;
    }

    fn next_record(&mut self) -> io::Result<Option<&mut [u8]>> {
        let there = &self.bytes[self.start..self.end];
        match record_len(there)? {
            Some(len) if len <= there.len() => {
                let start = self.start;
                self.start += len;
                Ok(Some(&mut self.bytes[start..start + len]))
            }
            _ => Ok(None),
        }
    }

    /// Reads more. Grows while the socket has more than fits: an idle connection keeps one record's room.
    pub(super) fn read(&mut self, socket: &mut TcpStream) -> io::Result<usize> {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end == self.bytes.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a TLS message is too long",
            ));
        }
        let count = socket.read(&mut self.bytes[self.end..])?;
        self.end += count;
        if self.end == self.bytes.len() && self.end < READ_AHEAD_BYTES_MAX {
            let len = (self.end * 2).min(READ_AHEAD_BYTES_MAX);
            self.bytes.resize(len, 0);
        }
        Ok(count)
    }
}
