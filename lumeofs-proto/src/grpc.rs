//! gRPC over our own connections, so that it is plain or TLS as the cluster is, and errors keep their cause.

use crate::auth::Credentials;
use crate::nonblocking::{Stream, grpc_stream};
use hyper_util::rt::TokioIo;
use lumeofs_base::{Code, FsError, FsResult};
use std::error::Error;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::transport::{Endpoint, Uri};
use tower_service::Service;

/// The server at `host:port`, to be connected with a [`Connector`].
pub fn endpoint(address: &str) -> FsResult<Endpoint> {
    Endpoint::from_shared(format!("http://{address}"))
        .map_err(|error| FsError::new(Code::Invalid, format!("address {address}: {error}")))
}

/// Connects for a channel of tonic.
#[derive(Clone, Debug)]
pub struct Connector(Credentials);

impl Connector {
    /// With TLS if the cluster of these credentials uses it.
    pub fn new(credentials: &Credentials) -> Self {
        Self(credentials.clone())
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = FsError;
    type Future = Pin<Box<dyn Future<Output = FsResult<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<FsResult<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let credentials = self.0.clone();
        Box::pin(async move {
            let address = uri.authority().map_or("", |authority| authority.as_str());
            Ok(TokioIo::new(grpc_stream(address, &credentials).await?))
        })
    }
}

/// Why a channel could not be connected, or a call not be made: our own error if there is one below tonic's
/// words, else what lies at their bottom.
pub fn cause_of(error: &(dyn Error + 'static)) -> FsError {
    let mut deepest = error;
    loop {
        if let Some(ours) = deepest.downcast_ref::<FsError>() {
            return ours.clone();
        }
        match deepest.source() {
            Some(deeper) => deepest = deeper,
            None => return FsError::new(Code::Unavailable, deepest.to_string()),
        }
    }
}

/// The error of a call that failed: what the server said, or what kept it from saying anything.
pub fn error_of(status: &tonic::Status) -> FsError {
    if let (Some(source), true) = (
        status.source(),
        status.code() != tonic::Code::Unauthenticated,
    ) {
        return cause_of(source);
    }
    FsError::new(code_of(status.code()), status.message())
}

/// What can be known of the cause of a refused call: several causes share a code.
fn code_of(code: tonic::Code) -> Code {
    use tonic::Code as Grpc;
    match code {
        Grpc::Unauthenticated => Code::Refused,
        Grpc::NotFound => Code::NotFound,
        Grpc::AlreadyExists => Code::Exists,
        Grpc::PermissionDenied => Code::NotPermitted,
        Grpc::InvalidArgument | Grpc::OutOfRange => Code::Invalid,
        Grpc::FailedPrecondition => Code::Busy,
        Grpc::ResourceExhausted => Code::NoSpace,
        Grpc::Unimplemented => Code::Unsupported,
        Grpc::DeadlineExceeded => Code::Timeout,
        Grpc::Internal | Grpc::DataLoss => Code::Io,
        Grpc::Ok | Grpc::Cancelled | Grpc::Unknown | Grpc::Aborted | Grpc::Unavailable => {
            Code::Unavailable
        }
    }
}
