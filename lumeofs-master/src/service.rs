//! What a master offers: metadata and maps over frames, the controller and administration over gRPC,
//! and the background work of leaders.

mod admin;
mod attests;
mod blocked;
mod claims;
mod controller;
mod dump;
mod eras;
mod fencing;
mod frames;
mod fsck;
mod health;
mod health_report;
mod leases;
mod listener;
mod locks;
mod machines;
mod masters;
mod metadata;
mod opens;
mod operations;
mod paths;
mod placement;
mod purge;
mod reclaim;
mod repair;
mod session_admin;
mod sessions;
mod trash;

pub(crate) use admin::AdminService;
pub(crate) use controller::{ControllerGrpc, ControllerService};
pub(crate) use frames::FrameService;
pub(crate) use health::Health;
pub(crate) use leases::Leases;
pub(crate) use listener::Listener;
pub(crate) use locks::Locks;
pub(crate) use machines::{ControllerMachine, MetadataMachine};
pub(crate) use metadata::MetadataService;
pub(crate) use opens::Opens;
pub(crate) use placement::Placement;
pub(crate) use repair::repair;
pub(crate) use sessions::Sessions;

use lumeofs_base::FsError;

/// Whether a failed proposal of a background task is worth a line in the log: losing the leadership
/// is not.
fn log_failure(what: &str, error: &FsError) {
    if matches!(error.code, lumeofs_base::Code::NotLeader(_)) {
        tracing::debug!(%error, what);
    } else {
        tracing::warn!(%error, "{what} failed, will be tried again");
    }
}
