//! File data: which requests go to which datanodes, and how they are sent together.

mod ahead;
mod behind;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "for holders of leases, which are not built in yet"
    )
)]
mod cached;
pub(crate) mod chunks;
mod cut;
mod fetch;
mod primaries;
mod publish;
mod read;
mod reserve;
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "for holders of leases, which are not built in yet"
    )
)]
mod resized;
mod round;
mod seek;
mod sync;
pub(crate) mod write;

pub(crate) use ahead::Ahead;
pub(crate) use primaries::Generations;
