//! What an applied command of the metadata group answers to its proposer.

use lumeofs_lease::{Generation, Grant, Unheard};
use lumeofs_meta::change::Applied;
use serde::{Deserialize, Serialize};

/// What became of a command.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Its outcome, the same at every member.
    pub(crate) applied: Applied,
    /// What follows from it for leases, at the leader that proposed it.
    pub(crate) leases: Consequences,
}

/// What a command has led to in the table of leases.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Consequences {
    /// The leadership that the table was of, as on the wire. 0: none that still counts.
    pub(crate) term: u64,
    /// What must have been heard before the reply may go out.
    pub(crate) awaits: Unheard,
    /// Where the change stands among grants and recalls.
    pub(crate) number: u64,
    /// That of the grants.
    pub(crate) generation: Generation,
    /// What the session got with what it made.
    pub(crate) grants: Vec<Grant>,
}
