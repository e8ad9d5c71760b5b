//! A connection of tokio, plain or TLS, whole or in halves.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio_rustls::TlsStream;
use tonic::transport::server::Connected;

/// A connection on which both sides have agreed whether it is encrypted.
#[derive(Debug)]
pub enum Stream {
    /// TCP as it is.
    Plain(TcpStream),
    /// TLS, after its handshake.
    Tls(Box<TlsStream<TcpStream>>),
}

/// Whether a gRPC call came encrypted: an extension of its request.
#[derive(Clone, Copy, Debug)]
pub struct Encrypted(pub bool);

impl Connected for Stream {
    type ConnectInfo = Encrypted;

    fn connect_info(&self) -> Encrypted {
        Encrypted(matches!(self, Self::Tls(_)))
    }
}

/// The half of a [`super::FrameReader`].
#[derive(Debug)]
pub(super) enum Incoming {
    Plain(OwnedReadHalf),
    Tls(ReadHalf<TlsStream<TcpStream>>),
}

/// The half of a [`super::FrameWriter`].
#[derive(Debug)]
pub(super) enum Outgoing {
    Plain(OwnedWriteHalf),
    Tls(WriteHalf<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn split(self) -> (Incoming, Outgoing) {
        match self {
            Self::Plain(stream) => {
                let (read, write) = stream.into_split();
                (Incoming::Plain(read), Outgoing::Plain(write))
            }
            Self::Tls(stream) => {
                let (read, write) = tokio::io::split(*stream);
                (Incoming::Tls(read), Outgoing::Tls(write))
            }
        }
    }
}

macro_rules! reads {
    ($half:ident) => {
        impl AsyncRead for $half {
            fn poll_read(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                out: &mut ReadBuf<'_>,
            ) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(stream) => Pin::new(stream).poll_read(cx, out),
                    Self::Tls(stream) => Pin::new(stream).poll_read(cx, out),
                }
            }
        }
    };
}

macro_rules! writes {
    ($half:ident) => {
        impl AsyncWrite for $half {
            fn poll_write(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                bytes: &[u8],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
                    Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
                }
            }

            fn poll_write_vectored(
                self: Pin<&mut Self>,
                cx: &mut Context<'_>,
                parts: &[io::IoSlice<'_>],
            ) -> Poll<io::Result<usize>> {
                match self.get_mut() {
                    Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
                    Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
                }
            }

            fn is_write_vectored(&self) -> bool {
                match self {
                    Self::Plain(stream) => stream.is_write_vectored(),
                    Self::Tls(stream) => stream.is_write_vectored(),
                }
            }

            fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
                    Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
                }
            }

            fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                match self.get_mut() {
                    Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
                    Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
                }
            }
        }
    };
}

reads!(Stream);
reads!(Incoming);
writes!(Stream);
writes!(Outgoing);
