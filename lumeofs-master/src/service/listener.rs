//! One port for both transports, each plain or TLS: the first bytes of a connection say which it speaks.

use super::frames::FrameService;
use anyhow::{Context as _, Result};
use lumeofs_base::{Code, FsError};
use lumeofs_proto::nonblocking::{Opening, Stream, open};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

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
    ) -> mpsc::Receiver<Stream> {
        let (grpc, incoming) = mpsc::channel(GRPC_WAITING_MAX);
        tasks.spawn(self.accept(frames, grpc));
        incoming
    }

    async fn accept(self, frames: Arc<FrameService>, grpc: mpsc::Sender<Stream>) {
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
                serve(stream, &frames, &grpc).await;
                drop(place);
            });
        }
    }
}

async fn serve(stream: TcpStream, frames: &FrameService, grpc: &mpsc::Sender<Stream>) {
    let from = stream
        .peer_addr()
        .map_or_else(|_| "?".to_owned(), |address| address.to_string());
    match open(stream, &frames.identity.credentials).await {
        Ok(Opening::Frames(stream)) => frames.serve(stream, &from).await,
        // Fails only if the server is stopping.
        Ok(Opening::Grpc(stream)) => drop(grpc.send(stream).await),
        Err(error) if error.code == Code::Refused => {
            tracing::warn!(from, %error, "connection refused");
        }
        Err(error) => tracing::debug!(from, %error, "connection not opened"),
    }
}
