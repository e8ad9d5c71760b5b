//! File data: which requests go to which datanodes, and how they are sent together.

pub(crate) mod chunks;
mod cut;
mod fetch;
mod primaries;
mod publish;
mod read;
mod reserve;
mod round;
mod seek;
mod sync;
pub(crate) mod write;

pub(crate) use primaries::Generations;
