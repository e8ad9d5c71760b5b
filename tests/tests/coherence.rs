//! Coherence between mounts that work: what one has acknowledged, every other one shows in its next call.
//!
//! `coherence_faults.rs` has the same while something breaks.

#[path = "coherence/changes.rs"]
mod changes;
#[path = "coherence/histories.rs"]
mod histories;
#[path = "coherence/interleavings.rs"]
mod interleavings;
#[path = "coherence/looks.rs"]
mod looks;
#[path = "coherence/mappings.rs"]
mod mappings;
#[path = "coherence/sharing.rs"]
mod sharing;
#[path = "coherence/table.rs"]
mod table;
