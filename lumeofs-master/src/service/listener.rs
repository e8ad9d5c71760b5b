//! One port for both transports: the first bytes of a connection say which it speaks.

use super::frames::FrameService;
use anyhow::{Context as _, Result};
use lumeofs_base::limits::HANDSHAKE_TIMEOUT;
use lumeofs_base::{Code, FsError};
use lumeofs_proto::blocking::tune;
use lumeofs_proto::frame::MAGIC;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 4096;
/// gRPC connections that may wait for the gRPC server.
const GRPC_WAITING_MAX: usize = 64;

/// The bound port.
pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Binds the port.
    pub(crate) async fn bind(address: &str) -> Result<Self> {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                let text = format!(
                    "listen on {address}: the port is in use by another process; end that one \
                     (`ss -ltnp` names it) or give another address in --peers or --listen"
                );
                Err(FsError::new(Code::Busy, text).into())
            }
            bound => Ok(Self(bound.with_context(|| format!("listen on {address}"))?)),
        }
    }

    /// Accepts until it is dropped. gRPC connections come out of the returned channel.
    pub(crate) fn serve(
        self,
        frames: Arc<FrameService>,
        tasks: &mut JoinSet<()>,
    ) -> mpsc::Receiver<TcpStream> {
        let (grpc, incoming) = mpsc::channel(GRPC_WAITING_MAX);
        tasks.spawn(self.accept(frames, grpc));
        incoming
    }

    async fn accept(self, frames: Arc<FrameService>, grpc: mpsc::Sender<TcpStream>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        // Dropped with this task: then all connections end too.
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let Ok(place) = places.clone().acquire_owned().await else {
                return;
            };
            let stream = match self.0.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (frames, grpc) = (frames.clone(), grpc.clone());
            connections.spawn(async move {
                match timeout(HANDSHAKE_TIMEOUT, speaks_frames(&stream)).await {
                    Ok(Ok(true)) => frames.serve(stream).await,
                    Ok(Ok(false)) => {
                        // Its options are a matter of speed only, and the server may be stopping.
                        let _ = tune(&stream);
                        let _ = grpc.send(stream).await;
                    }
                    Ok(Err(_)) | Err(_) => {}
                }
                drop(place);
            });
        }
    }
}

async fn speaks_frames(stream: &TcpStream) -> std::io::Result<bool> {
    let mut first = [0; MAGIC.len()];
    loop {
        match stream.peek(&mut first).await? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            count if count == first.len() => return Ok(first == MAGIC),
            // Too little to tell, and the socket stays readable meanwhile.
            _ => sleep(Duration::from_millis(5)).await,
        }
    }
}
