//! Frames over blocking sockets: for threads that own their connection.
//!
//! A connection is two halves, [`FrameSender`] and [`FrameReceiver`], which different threads may own. Whether
//! it is plain TCP or TLS is decided when it is made.

mod handshake;
mod stream;

use crate::auth::{Identity, Peer};
use crate::frame::{FIXED_BYTES, FLAG_FAILURE, FLAG_REPLY, Fixed, Op};
use crate::hello::{Failure, Hello, Proof};
use crate::status::{from_failure, to_failure};
use crate::tls;
use lumeofs_base::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use prost::Message;
use std::io;
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::Duration;
use stream::{Incoming, Outgoing};

/// A received frame.
#[derive(Debug)]
pub struct Frame {
    /// The fixed header.
    pub fixed: Fixed,
    /// The typed header's bytes.
    pub header: Vec<u8>,
    /// The payload; empty if there is none.
    pub payload: AlignedBuf,
}

impl Frame {
    /// Decodes the typed header; a failure reply becomes its error.
    pub fn decode<M: Message + Default>(&self) -> FsResult<M> {
        if self.fixed.flags & FLAG_FAILURE != 0 {
            let failure = Failure::decode(&self.header[..]).unwrap_or_default();
            return Err(from_failure(&failure));
        }
        M::decode(&self.header[..]).map_err(|error| {
            FsError::new(Code::Refused, format!("{:?} frame: {error}", self.fixed.op))
        })
    }
}

/// The sending half.
pub struct FrameSender {
    stream: Outgoing,
}

/// The receiving half, with a small buffer so that a short frame costs one system call. TLS has its own.
pub struct FrameReceiver {
    stream: Incoming,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl std::fmt::Debug for FrameSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameSender({:?})", self.stream.socket())
    }
}

impl std::fmt::Debug for FrameReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FrameReceiver({:?})", self.stream.socket())
    }
}

/// Ends a connection from another thread: both halves fail at once.
#[derive(Debug)]
pub struct Closer(TcpStream);

impl Closer {
    /// Ends the connection.
    pub fn close(&self) {
        // The peer may have closed it already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// Both halves of an authenticated connection.
#[derive(Debug)]
pub struct Conn {
    /// Sends.
    pub sender: FrameSender,
    /// Receives.
    pub receiver: FrameReceiver,
    /// Who is at the other end.
    pub peer: Peer,
}

impl FrameSender {
    /// Sends a request. `deadline_ms` 0 = without limit.
    pub fn request(
        &mut self,
        op: Op,
        flags: u16,
        deadline_ms: u32,
        request: u64,
        header: &impl Message,
        payload: &[&[u8]],
    ) -> io::Result<()> {
        let head = Fixed::encode(
            op,
            flags,
            deadline_ms,
            request,
            &header.encode_to_vec(),
            payload,
        );
        self.write(&head, payload)
    }

    /// Sends the reply to `asked`.
    pub fn reply(
        &mut self,
        asked: &Fixed,
        flags: u16,
        header: &impl Message,
        payload: &[&[u8]],
    ) -> io::Result<()> {
        let head = Fixed::encode(
            asked.op,
            FLAG_REPLY | flags,
            0,
            asked.request,
            &header.encode_to_vec(),
            payload,
        );
        self.write(&head, payload)
    }

    /// Sends an error as the reply to `asked`.
    pub fn fail(&mut self, asked: &Fixed, error: &FsError) -> io::Result<()> {
        self.reply(asked, FLAG_FAILURE, &to_failure(error), &[])
    }

    fn write(&mut self, head: &[u8], payload: &[&[u8]]) -> io::Result<()> {
        self.stream.write(head, payload)
    }
}

impl FrameReceiver {
    /// Waits for the next frame. A frame that is malformed is `InvalidData`: close the connection.
    pub fn receive(&mut self) -> io::Result<Frame> {
        self.receive_while(&mut || Ok(()))
    }

    /// As [`FrameReceiver::receive`], calling `waiting` whenever the read time-out of the connection
    /// passes without data; its error ends the wait. The connection cannot be used after that.
    pub fn receive_while(
        &mut self,
        waiting: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<Frame> {
        let mut head = [0; FIXED_BYTES];
        self.fill(&mut head, waiting)?;
        let fixed = Fixed::decode(&head).map_err(invalid)?;
        let mut header = vec![0; fixed.header_len as usize];
        self.fill(&mut header, waiting)?;
        fixed.check_header(&head, &header).map_err(invalid)?;
        let mut payload = AlignedBuf::scratch(fixed.payload_len as usize);
        self.fill(&mut payload, waiting)?;
        fixed.check_payload(&payload).map_err(invalid)?;
        Ok(Frame {
            fixed,
            header,
            payload,
        })
    }

    /// How long a read waits before `waiting` is called; `None` = for ever.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) -> io::Result<()> {
        self.stream.socket().set_read_timeout(timeout)
    }

    fn fill(
        &mut self,
        mut out: &mut [u8],
        waiting: &mut dyn FnMut() -> io::Result<()>,
    ) -> io::Result<()> {
        while !out.is_empty() {
            if self.start < self.end {
                let count = out.len().min(self.end - self.start);
                out[..count].copy_from_slice(&self.buffer[self.start..self.start + count]);
                self.start += count;
                out = &mut out[count..];
                continue;
            }
            let direct = out.len() >= self.buffer.len();
            let target = if direct {
                &mut *out
            } else {
                &mut self.buffer[..]
            };
            match self.stream.read(target) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) if direct => out = &mut out[count..],
                Ok(count) => (self.start, self.end) = (0, count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    waiting()?;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Conn {
    /// Connects to `address` (`host:port`) and authenticates both sides.
    ///
    /// # Errors
    /// `Unavailable` or `Timeout` if nobody answers, `Refused` if the other side is of another
    /// cluster, secret or wire version, disagrees about TLS, or is no LumeoFS server.
    pub fn connect(address: &str, identity: &Identity) -> FsResult<Self> {
        let failed =
            |error: io::Error| FsError::from_net(&error, format_args!("connect to {address}"));
        let no_host = || FsError::new(Code::Invalid, format!("address {address:?} means no host"));
        let mut connected = Err(no_host());
        for target in address.to_socket_addrs().map_err(failed)? {
            connected = TcpStream::connect_timeout(&target, CONNECT_TIMEOUT).map_err(failed);
            if connected.is_ok() {
                break;
            }
        }
        let stream = connected?;
        Self::client(stream, identity)
            .map_err(|error| error.during(format_args!("connect to {address}")))
    }

    fn client(stream: TcpStream, identity: &Identity) -> FsResult<Self> {
        prepare(&stream).map_err(net)?;
        let (mut sender, mut receiver) = match identity.credentials.tls() {
            Some(tls) => halves(handshake::connect(stream, tls)?),
            None => halves(plain(stream).map_err(net)?),
        };
        let mut late = || Err(io::ErrorKind::TimedOut.into());
        let mine = identity.hello();
        sender
            .request(Op::Hello, 0, 0, 0, &mine, &[])
            .map_err(net)?;
        let server: Hello = receiver.receive_while(&mut late).map_err(net)?.decode()?;
        let (peer, proof) = identity.confirm(&mine, &server)?;
        let proof = Proof {
            proof: proof.to_vec().into(),
        };
        sender
            .request(Op::Proof, 0, 0, 0, &proof, &[])
            .map_err(net)?;
        receiver
            .receive_while(&mut late)
            .map_err(net)?
            .decode::<Proof>()?;
        receiver.set_timeout(None).map_err(net)?;
        Ok(Self {
            sender,
            receiver,
            peer,
        })
    }

    /// Server side of the handshake. The reason of a refusal is sent to the other side.
    pub fn accept(stream: TcpStream, identity: &Identity) -> FsResult<Self> {
        prepare(&stream).map_err(net)?;
        let tls = identity.credentials.tls();
        let encrypted = match tls {
            Some(tls) if opens_with_tls(&stream).map_err(net)? => Some(tls),
            _ => None,
        };
        let (mut sender, mut receiver) = match encrypted {
            Some(tls) => halves(handshake::accept(stream, tls)?),
            None => halves(plain(stream).map_err(net)?),
        };
        let mut late = || Err(io::ErrorKind::TimedOut.into());
        let asked = receiver.receive_while(&mut late).map_err(net);
        let asked = match asked {
            Err(error) if error.code == Code::Refused => {
                return refuse(&mut sender, &Fixed::unreadable(), Err(error));
            }
            asked => asked?,
        };
        if tls.is_some() && encrypted.is_none() {
            return refuse(&mut sender, &asked.fixed, Err(tls::plain_refused()));
        }
        let client: Hello = asked.decode()?;
        let mine = refuse(&mut sender, &asked.fixed, identity.answer(&client))?;
        sender.reply(&asked.fixed, 0, &mine, &[]).map_err(net)?;
        let asked = receiver.receive_while(&mut late).map_err(net)?;
        let proof: Proof = asked.decode()?;
        let peer = identity.accept(&client, &mine, &proof.proof);
        let peer = refuse(&mut sender, &asked.fixed, peer)?;
        sender
            .reply(&asked.fixed, 0, &Proof::default(), &[])
            .map_err(net)?;
        receiver.set_timeout(None).map_err(net)?;
        Ok(Self {
            sender,
            receiver,
            peer,
        })
    }

    /// A handle with which another thread can end the connection.
    pub fn closer(&self) -> io::Result<Closer> {
        Ok(Closer(self.sender.stream.socket().try_clone()?))
    }
}

fn refuse<T>(sender: &mut FrameSender, asked: &Fixed, result: FsResult<T>) -> FsResult<T> {
    if let Err(error) = &result {
        // The connection is given up either way.
        let _ = sender.fail(asked, error);
    }
    result
}

fn invalid(error: FsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

fn net(error: io::Error) -> FsError {
    match error.kind() {
        io::ErrorKind::InvalidData => FsError::new(Code::Refused, error.to_string()),
        _ => FsError::from_net(&error, "handshake"),
    }
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    tune(socket)?;
    socket.set_read_timeout(Some(HANDSHAKE_TIMEOUT))
}

/// Waits for the first byte, and leaves it there.
fn opens_with_tls(socket: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    loop {
        match socket.peek(&mut first) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(first[0] == tls::FIRST_BYTE),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn plain(socket: TcpStream) -> io::Result<(Outgoing, Incoming)> {
    let incoming = Incoming::Plain(socket.try_clone()?);
    Ok((Outgoing::Plain(socket), incoming))
}

fn halves((outgoing, incoming): (Outgoing, Incoming)) -> (FrameSender, FrameReceiver) {
    let buffered = match incoming {
        Incoming::Plain(_) => 8192,
        Incoming::Tls(..) => 0,
    };
    let receiver = FrameReceiver {
        stream: incoming,
        buffer: vec![0; buffered],
        start: 0,
        end: 0,
    };
    (FrameSender { stream: outgoing }, receiver)
}

/// Options of every connection: no delay, and a dead peer is noticed within seconds.
pub fn tune(stream: &impl std::os::fd::AsFd) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
    let keepalive = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(2))
        .with_interval(Duration::from_secs(1))
        .with_retries(3);
    socket.set_tcp_keepalive(&keepalive)
}

#[cfg(test)]
mod tests;
