//! Ground floor of LumeoFS: ids, attributes, limits, errors, checksums, and the traits through which
//! every other crate reaches time and disks.
//!
//! Nothing here knows about networks, consensus or FUSE. What is here is used by servers and clients
//! alike, so a change of a type is a change of the whole system.

pub mod attr;
pub mod buf;
pub mod checksum;
pub mod chunk;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod entropy;
pub mod error;
pub mod fence;
pub mod ids;
pub mod in_work;
pub mod limits;
pub mod metrics;
pub mod request;
pub mod rng;
pub mod slow;

pub use attr::{Attr, FileKind, Timestamp};
pub use buf::AlignedBuf;
pub use chunk::{ChunkOp, ChunkState, ERA_MARK, FilePart, Past, Verdict, Version};
pub use cluster::{ClusterMap, GroupConfig, NodeInfo, NodeKind, NodeState, RepairPolicy};
pub use error::{Code, FsError, FsResult};
pub use fence::Fence;
pub use ids::*;
pub use request::RequestId;
