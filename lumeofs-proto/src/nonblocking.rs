//! Frames over tokio sockets: for servers with many connections.

use crate::auth::{Identity, Peer};
use crate::blocking::{Frame, tune};
use crate::frame::{FIXED_BYTES, FLAG_FAILURE, FLAG_REPLY, Fixed, Op};
use crate::hello::{Hello, Proof};
use crate::status::to_failure;
use lumeofs_base::limits::{CONNECT_TIMEOUT, HANDSHAKE_TIMEOUT};
use lumeofs_base::{AlignedBuf, Code, FsError, FsResult};
use prost::Message;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

/// The receiving half.
#[derive(Debug)]
pub struct FrameReader(BufReader<OwnedReadHalf>);

/// The sending half.
#[derive(Debug)]
pub struct FrameWriter(OwnedWriteHalf);

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
        self.0.write_all(payload).await
    }
}

/// Connects and authenticates both sides. Errors as [`crate::blocking::Conn::connect`].
pub async fn connect(
    address: &str,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let what = format!("connect to {address}");
    let stream = match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
        Ok(connected) => connected.map_err(|error| FsError::from_net(&error, &what))?,
        Err(_) => return Err(FsError::new(Code::Timeout, what)),
    };
    match timeout(HANDSHAKE_TIMEOUT, client(stream, identity)).await {
        Ok(done) => done.map_err(|error| error.during(what)),
        Err(_) => Err(FsError::new(Code::Timeout, what)),
    }
}

/// Server side of the handshake, within [`HANDSHAKE_TIMEOUT`].
pub async fn accept(
    stream: TcpStream,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    match timeout(HANDSHAKE_TIMEOUT, server(stream, identity)).await {
        Ok(done) => done,
        Err(_) => Err(FsError::new(Code::Timeout, "handshake")),
    }
}

async fn client(
    stream: TcpStream,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let (mut reader, mut writer) = halves(stream).map_err(net)?;
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

async fn server(
    stream: TcpStream,
    identity: &Identity,
) -> FsResult<(FrameReader, FrameWriter, Peer)> {
    let (mut reader, mut writer) = halves(stream).map_err(net)?;
    let asked = match reader.receive().await.map_err(net) {
        Err(error) if error.code == Code::Refused => {
            // The connection is given up either way.
            let _ = writer.fail(&Fixed::unreadable(), &error).await;
            return Err(error);
        }
        asked => asked?,
    };
    let hello: Hello = asked.decode()?;
    let mine = match identity.answer(&hello) {
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

fn halves(stream: TcpStream) -> io::Result<(FrameReader, FrameWriter)> {
    tune(&stream)?;
    let (read, write) = stream.into_split();
    Ok((
        FrameReader(BufReader::with_capacity(16 << 10, read)),
        FrameWriter(write),
    ))
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
