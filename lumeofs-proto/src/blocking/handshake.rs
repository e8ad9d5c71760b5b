//! The TLS handshake over a blocking socket, from either side.

use super::stream::{Ahead, Encrypted, Incoming, Outgoing};
use crate::tls::records::{Opener, Sealer, of_client, of_server};
use crate::tls::{ALPN_FRAMES, Tls, explain, server_name};
use lumeofs_base::{Code, FsError, FsResult};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, UnbufferedStatus};
use std::io::{self, Write as _};
use std::net::TcpStream;

/// The client's side. The socket has a read time-out.
pub(super) fn connect(socket: TcpStream, tls: &Tls) -> FsResult<(Outgoing, Incoming)> {
    let connection = UnbufferedClientConnection::new(tls.frames().clone(), server_name());
    run(socket, connection.map_err(|error| explain(&error))?)
}

/// The server's side. The socket has a read time-out.
pub(super) fn accept(socket: TcpStream, tls: &Tls) -> FsResult<(Outgoing, Incoming)> {
    let connection = UnbufferedServerConnection::new(tls.server().clone());
    run(socket, connection.map_err(|error| explain(&error))?)
}

/// What both kinds of connections can do, but not by a trait of rustls.
trait Side {
    type Data;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn protocol(&self) -> Option<&[u8]>;
    fn take_apart(self) -> Result<(Sealer, Opener), rustls::Error>;
}

impl Side for UnbufferedClientConnection {
    type Data = rustls::client::ClientConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
    fn protocol(&self) -> Option<&[u8]> {
        self.alpn_protocol()
    }
    fn take_apart(self) -> Result<(Sealer, Opener), rustls::Error> {
        of_client(self)
    }
}

impl Side for UnbufferedServerConnection {
    type Data = rustls::server::ServerConnectionData;
    fn process<'c, 'i>(&'c mut self, bytes: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
        self.process_tls_records(bytes)
    }
    fn protocol(&self) -> Option<&[u8]> {
        self.alpn_protocol()
    }
    fn take_apart(self) -> Result<(Sealer, Opener), rustls::Error> {
        of_server(self)
    }
}

fn run(mut socket: TcpStream, mut side: impl Side) -> FsResult<(Outgoing, Incoming)> {
    let mut ahead = Ahead::new();
    let plain = shake(&mut socket, &mut side, &mut ahead)?;
    if side.protocol() != Some(ALPN_FRAMES) {
        return Err(FsError::new(
            Code::Refused,
            "the other side wants gRPC, which masters speak",
        ));
    }
    let net = |error: io::Error| FsError::from_net(&error, "TLS handshake");
    let (sealer, opener) = side.take_apart().map_err(|error| explain(&error))?;
    let encrypted = Box::new(Encrypted::new(opener, ahead, plain));
    let incoming = Incoming::Tls(socket.try_clone().map_err(net)?, encrypted);
    Ok((Outgoing::Tls(socket, Box::new(sealer)), incoming))
}

/// Returns what came of the stream itself along with the end of the handshake.
fn shake(socket: &mut TcpStream, side: &mut impl Side, ahead: &mut Ahead) -> FsResult<Vec<u8>> {
    let net = |error: io::Error| FsError::from_net(&error, "TLS handshake");
    let (mut to_send, mut plain) = (Vec::new(), Vec::new());
    loop {
        let UnbufferedStatus { mut discard, state } = side.process(ahead.filled());
        let mut wants_more = false;
        match state {
            Err(error) => {
                tell(socket, side, ahead);
                return Err(explain(&error));
            }
            Ok(ConnectionState::EncodeTlsData(message)) => encode(message, &mut to_send),
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                socket.write_all(&to_send).map_err(net)?;
                to_send.clear();
                sent.done();
            }
            Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                while let Some(record) = traffic.next_record() {
                    let record = record.map_err(|error| explain(&error))?;
                    discard += record.discard;
                    plain.extend_from_slice(record.payload);
                }
            }
            Ok(ConnectionState::BlockedHandshake) => wants_more = true,
            Ok(ConnectionState::WriteTraffic(_)) => {
                ahead.discard(discard);
                return Ok(plain);
            }
            // Ended, or early data, which is never offered.
            Ok(_) => return Err(net(io::ErrorKind::UnexpectedEof.into())),
        }
        ahead.discard(discard);
        if wants_more && ahead.read(socket).map_err(net)? == 0 {
            return Err(net(io::ErrorKind::UnexpectedEof.into()));
        }
    }
}

/// Sends the alert, if there is one, that says why the handshake is given up.
fn tell(socket: &mut TcpStream, side: &mut impl Side, ahead: &mut Ahead) {
    // Nothing was discarded since the failure, so that the connection finds its bytes where they were.
    if let Ok(ConnectionState::EncodeTlsData(alert)) = side.process(ahead.filled()).state {
        let mut bytes = Vec::new();
        encode(alert, &mut bytes);
        // The connection is given up either way.
        let _ = socket.write_all(&bytes);
    }
}

fn encode<D>(mut message: EncodeTlsData<'_, D>, out: &mut Vec<u8>) {
    let start = out.len();
    let needed = match message.encode(&mut []) {
        Err(EncodeError::InsufficientSize(size)) => size.required_size,
        Err(EncodeError::AlreadyEncoded) | Ok(_) => return,
    };
    out.resize(start + needed, 0);
    message
        .encode(&mut out[start..])
        .expect("as much room as was asked for");
}
