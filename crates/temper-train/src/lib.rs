//! Recipes, stages, loops, rollouts, ledger, checkpoints and evaluation.
//!
//! [`recipe`] reads and checks a recipe; [`plan`] says what it will do; [`run`] does it. The two loops, [`offline`] and
//! [`online`], are meant to be read top to bottom. This crate knows no terminal: a run tells a [`watch::Watch`] what
//! happens, and a [`watch::Stop`] asks it to end after the current round.

pub mod adapter;
pub mod bench;
pub mod checkpoint;
pub mod context;
pub mod critic;
mod digest;
mod error;
pub mod eval;
pub mod examples;
pub mod hub;
mod input;
pub mod learner;
pub mod ledger;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod offline;
pub mod online;
pub mod plan;
pub mod recipe;
pub mod rollout;
pub mod run;
pub mod rundir;
pub mod sampling;
pub mod sensitivity;
mod slots;
pub mod state;
mod streams;
mod supervised;
pub mod transform;
pub mod watch;

pub use context::Outcome;
pub use error::{Error, Result};
