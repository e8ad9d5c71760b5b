//! Tests of the log through its public interface.

mod behaviour;
mod common;
mod crash;
mod damage;
