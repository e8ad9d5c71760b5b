//! Frames over tokio sockets, plain or TLS: for servers with many connections.

mod stream;

pub use stream::{Encrypted, Stream};

use crate::auth::{Credentials, Identity, Peer};
use crate::blocking::{Frame, tune};
use crate::frame::{FIXED_BYTES, FLAG_FAILURE, FLAG_REPLY, Fixed, MAGIC, Op};
use crate::hello::{Hello, Proof};
use crate::status::to_failure;
use crate::tls::{self, ALPN_GRPC, explain_io, server_name};
use lumeofs_base::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use prost::Message;
use rustls::ClientConfig;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use stream::{Incoming, Outgoing};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// The receiving half.
#[derive(Debug)]
pub struct FrameReader(BufReader<Incoming>);

/// The sending half.
#[derive(Debug)]
pub struct FrameWriter(Outgoing);

impl FrameReader {
    /// Waits for the next frame. Not cancel-safe: after a cancelled wait the connection is unusable.
    pub async fn receive(&mut self) -> io::Result<Frame> {
        let mut head = [0; FIXED_BYTES];
        self.0.read_exact(&mut head).await?;
        let fixed = Fixed::decode(&head).map_err(invalid)?;
        let mut header = vec![0; fixed.header_len as usize];
        self.0.read_exact(&mut header).await?;
        fixed.check_header(&head, &header).map_err(invalid)?;
        let mut payload = AlignedBuf::scratch(fixed.payload_len as usize);
        self.0.read_exact(&mut payload).await?;
        fixed.check_payload(&payload).map_err(invalid)?;
        Ok(Frame {
            fixed,
            header,
            payload,
        })
    }
}

impl FrameWriter {
    /// Sends a request.
    pub async fn request(
        &mut self,
        op: Op,
        request: u64,
        header: &impl Message,
        payload: &[u8],
    ) -> io::Result<()> {
        self.write(op, 0, request, &header.encode_to_vec(), payload)
            .await
    }

    /// Sends the reply to `asked`.
    pub async fn reply(
        &mut self,
        asked: &Fixed,
        header: &impl Message,
        payload: &[u8],
    ) -> io::Result<()> {
        self.write(
            asked.op,
            FLAG_REPLY,
            asked.request,
            &header.encode_to_vec(),
            payload,
        )
        .await
    }

    /// Sends an error as the reply to `asked`.
    pub async fn fail(&mut self, asked: &Fixed, error: &FsError) -> io::Result<()> {
        let header = to_failure(error).encode_to_vec();
        self.write(
            asked.op,
            FLAG_REPLY | FLAG_FAILURE,
            asked.request,
            &header,
            &[],
        )
        .await
    }

    async fn write(
        &mut self,
        op: Op,
        flags: u16,
        request: u64,
        header: &[u8],
        payload: &[u8],
    ) -> io::Result<()> {
        let head = Fixed::encode(op, flags, 0, request, header, &[payload]);
        self.0.write_all(&head).await?;
        self.0.write_all(payload).await?;
        // TLS may have kept the last records back.
        self.0.flush().await
    }
}

/// Connects and authenticates both sides. Errors as [`crate::blocking::Conn::connect`].
pub async fn connect(
    address: &str,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let what = format!("connect to {address}");
    let config = identity.credentials.tls().map(tls::Tls::frames);
    let greeting = async {
        let stream = connect_stream(address, config).await?;
        within_handshake(client(stream, identity)).await
    };
    greeting.await.map_err(|error| error.during(what))
}

/// Connects to a server's gRPC side. Errors do not name the address.
pub(crate) async fn grpc_stream(address: &str, credentials: &Credentials) -> FsResult<Stream> {
    let config = credentials.tls().map(tls::Tls::grpc);
    connect_stream(address, config).await
}

async fn connect_stream(address: &str, tls: Option<&Arc<ClientConfig>>) -> FsResult<Stream> {
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| FsError {
            context: error.to_string(),
            ..FsError::from_net(&error, "")
        })?,
        Err(_) => {
            let text = format!("no answer in {CONNECT_TIMEOUT:?}");
            return Err(FsError::new(Code::Timeout, text));
        }
    };
    tune(&stream).map_err(net)?;
    let Some(config) = tls else {
        return Ok(Stream::Plain(stream));
    };
    let connecting = TlsConnector::from(config.clone()).connect(server_name(), stream);
    let connected = async { connecting.await.map_err(|error| explain_io(&error)) };
    Ok(Stream::Tls(Box::new(
        within_handshake(connected).await?.into(),
    )))
}

async fn within_handshake<T>(work: impl Future<Output = FsResult<T>>) -> FsResult<T> {
    timeout(HANDSHAKE_TIMEOUT, work)
        .await
        .unwrap_or_else(|_| Err(FsError::new(Code::Timeout, "handshake")))
}

/// What a new connection speaks.
#[derive(Debug)]
pub enum Opening {
    /// Frames, or nothing that we know; [`accept`] says so to the other side.
    Frames(Stream),
    /// gRPC. It may be plain though the cluster uses TLS: [`Encrypted`] tells.
    Grpc(Stream),
}

/// Waits, at most [`HANDSHAKE_TIMEOUT`], for the first bytes of an accepted connection, and sets up TLS if they
/// and the cluster want it.
pub async fn open(stream: TcpStream, credentials: &Credentials) -> FsResult<Opening> {
    within_handshake(async {
        tune(&stream).map_err(net)?;
        let first = first_bytes(&stream).await.map_err(net)?;
        match credentials.tls() {
            Some(tls) if first[0] == tls::FIRST_BYTE => {
                let accepted = TlsAcceptor::from(tls.server().clone()).accept(stream).await;
                let stream = accepted.map_err(|error| explain_io(&error))?;
                let grpc = stream.get_ref().1.alpn_protocol() == Some(ALPN_GRPC);
                let stream = Stream::Tls(Box::new(stream.into()));
                Ok(if grpc {
                    Opening::Grpc(stream)
                } else {
                    Opening::Frames(stream)
                })
            }
            _ if first == MAGIC || first[0] == tls::FIRST_BYTE => {
                Ok(Opening::Frames(Stream::Plain(stream)))
            }
            _ => Ok(Opening::Grpc(Stream::Plain(stream))),
        }
    })
    .await
}

/// The first bytes, left where they are.
async fn first_bytes(stream: &TcpStream) -> io::Result<[u8; MAGIC.len()]> {
    let mut first = [0; MAGIC.len()];
    loop {
        match stream.peek(&mut first).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count if count == first.len() => return Ok(first),
            // Too little to tell, and the socket stays readable meanwhile.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}

/// Server side of the handshake of frames, within [`HANDSHAKE_TIMEOUT`].
pub async fn accept(
    stream: Stream,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    within_handshake(server(stream, identity)).await
}

async fn client(stream: Stream, identity: &Identity) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let (mut reader, mut writer) = halves(stream);
    let mine = identity.hello();
    writer
        .request(Op::Hello, 0, &mine, &[])
        .await
        .map_err(net)?;
    let server: Hello = reader.receive().await.map_err(net)?.decode()?;
    let (peer, proof) = identity.confirm(&mine, &server)?;
    let proof = Proof {
        proof: proof.to_vec().into(),
    };
    writer
        .request(Op::Proof, 0, &proof, &[])
        .await
        .map_err(net)?;
    reader.receive().await.map_err(net)?.decode::<Proof>()?;
    Ok((reader, writer, peer))
}

async fn server(stream: Stream, identity: &Identity) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let plain = matches!(stream, Stream::Plain(_));
    let (mut reader, mut writer) = halves(stream);
    let asked = match reader.receive().await.map_err(net) {
        Err(error) if error.code == Code::Refused => {
            // The connection is given up either way.
            let _ = writer.fail(&Fixed::unreadable(), &error).await;
            return Err(error);
        }
        asked => asked?,
    };
    let hello: Hello = asked.decode()?;
    let answer = if plain && identity.credentials.tls().is_some() {
        Err(tls::plain_refused())
    } else {
        identity.answer(&hello)
    };
    let mine = match answer {
        Ok(mine) => mine,
        Err(error) => {
            // The connection is given up either way.
            let _ = writer.fail(&asked.fixed, &error).await;
            return Err(error);
        }
    };
    writer.reply(&asked.fixed, &mine, &[]).await.map_err(net)?;
    let asked = reader.receive().await.map_err(net)?;
    let proof: Proof = asked.decode()?;
    match identity.accept(&hello, &mine, &proof.proof) {
        Ok(peer) => {
            writer
                .reply(&asked.fixed, &Proof::default(), &[])
                .await
                .map_err(net)?;
            Ok((reader, writer, peer))
        }
        Err(error) => {
            let _ = writer.fail(&asked.fixed, &error).await;
            Err(error)
        }
    }
}

fn halves(stream: Stream) -> (FrameReader, FrameWriter) {
    let (incoming, outgoing) = stream.split();
    (
        FrameReader(BufReader::with_capacity(16 << 10, incoming)),
        FrameWriter(outgoing),
    )
}

fn net(error: io::Error) -> FsError {
    match error.kind() {
        io::ErrorKind::InvalidData => FsError::new(Code::Refused, error.to_string()),
        _ => FsError::from_net(&error, "handshake"),
    }
}

fn invalid(error: FsError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
