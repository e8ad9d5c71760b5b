//! The client against servers in this process: the real namespace state machine, chunks in memory,
//! and faults where a test wants them.

mod cached;
mod cluster;
mod files;
mod meta;
mod unsent;
