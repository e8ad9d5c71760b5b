//! The rules of section L, and those of S and K that leases decide, one by one: a table and holders, driven by hand.
//!
//! What the simulation finds by chance is shown here on purpose, with the shortest history that has it.

mod ahead;
mod fixture;
mod holders;
mod making;
mod numbers;
mod opens;
mod room;
mod terms;
mod window;
mod writers;
