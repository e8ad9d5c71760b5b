//! File data: which requests go to which datanodes, and how they are sent together.

mod ahead;
mod behind;
mod cached;
pub(crate) mod chunks;
mod closing;
mod copy;
mod cut;
mod fetch;
mod leased;
mod primaries;
mod publish;
mod read;
mod reserve;
mod resized;
mod round;
mod seek;
mod sync;
pub(crate) mod write;

pub(crate) use ahead::Ahead;
pub(crate) use cached::Tenure;
pub(crate) use leased::{CAPABILITY, Reading};
pub(crate) use primaries::Generations;
