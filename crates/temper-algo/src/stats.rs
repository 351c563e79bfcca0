//! Statistics: intervals for shares and means, paired comparisons, pass@k, running sums.

mod distribution;
mod interval;
mod paired;
mod running;

pub use interval::{Interval, bootstrap_mean, mean_interval, pass_at_k, wilson};
pub use paired::{PairedDifference, mcnemar_exact, paired_difference};
pub use running::Running;
