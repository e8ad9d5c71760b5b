//! The wire: messages, the frame codec, authentication of connections, the gRPC services.
//!
//! Frames carry the hot paths (metadata operations, chunks, replication, Raft); gRPC is the public
//! face for administration. Both listen on one port: a connection that opens with HTTP/2's preface
//! is gRPC, one that opens with [`frame::MAGIC`] speaks frames. Both may be wrapped in TLS ([`tls`]); then
//! ALPN says which it is.

pub mod auth;
pub mod blocking;
mod convert;
pub mod frame;
pub mod grpc;
pub mod nonblocking;
pub mod status;
pub mod tls;

/// Messages of the first frames.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod hello {
    include!(concat!(env!("OUT_DIR"), "/lumeofs.hello.rs"));
}
/// Messages between clients and masters, and between masters.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod meta {
    include!(concat!(env!("OUT_DIR"), "/lumeofs.meta.rs"));
}
/// Messages of datanodes.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod data {
    include!(concat!(env!("OUT_DIR"), "/lumeofs.data.rs"));
}
/// Messages and services of gRPC.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/lumeofs.control.rs"));
}

/// What [`control`] looks like, as gRPC's reflection hands it out: an encoded `FileDescriptorSet`.
pub const CONTROL_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/control.bin"));

/// Highest wire version that this build speaks.
pub const WIRE_VERSION: u16 = 3;
