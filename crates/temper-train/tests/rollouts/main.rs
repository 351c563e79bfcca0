//! The rollout side of the online loop, in whole runs: members from elsewhere, shaped rewards, several turns, and that it learns.

#[path = "../common/mod.rs"]
mod common;
mod fixture;
mod learning;
mod members;
mod shaping;
mod turns;
