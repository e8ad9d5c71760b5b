//! The faults: how each is made, and how it is mended.

pub(super) mod clock;
pub(super) mod disk;
pub(super) mod membership;
pub(super) mod network;
pub(super) mod process;
