//! Objectives, advantages, KL estimators, weights, schedules and statistics: pure functions on small arrays.
