//! Recipes, stages, loops, rollouts, ledger, checkpoints and evaluation.
