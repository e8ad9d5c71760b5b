//! gRPC's own services: health, which tells whether this master can serve now, and reflection.
//!
//! Health asks for no secret, as the probes of schedulers and load balancers know none; it says yes or no.

use crate::join::Admission;
use crate::raft::Group;
use lumeofs_proto::control::{admin_server, controller_server};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often it is looked whether the answer still holds.
const LOOK: Duration = Duration::from_millis(100);

/// What the answer rests on.
pub(crate) struct Health {
    pub(crate) reporter: HealthReporter,
    pub(crate) admission: Admission,
    pub(crate) groups: [Arc<Group>; 2],
}

impl Health {
    /// Whether a request to this master, or to the one that it names, has somebody who answers it.
    fn can_serve(&self) -> bool {
        self.admission.is_granted() && self.groups.iter().all(|group| group.can_serve())
    }

    /// Enters the present answer.
    pub(crate) async fn look(&self) {
        let status = match self.can_serve() {
            true => ServingStatus::Serving,
            false => ServingStatus::NotServing,
        };
        // The empty name is the whole server.
        for name in [
            "",
            admin_server::SERVICE_NAME,
            controller_server::SERVICE_NAME,
        ] {
            self.reporter.set_service_status(name, status).await;
        }
    }

    /// Runs for ever.
    pub(crate) async fn watch(self) {
        loop {
            self.look().await;
            sleep(LOOK).await;
        }
    }
}
