//! How a pass comes by its plan. What ships has one way, [`checked`]. A build with the feature `naive-removal` has the
//! wrong one: it is there so that tests can show that they would notice.

use jiff::Timestamp;
use planner::{Breach, Plan, Snapshot};

#[cfg(feature = "naive-removal")]
mod naive;

/// Turns a snapshot into a plan, and says what forbids to carry it out.
pub type Decide = dyn Fn(&Snapshot, Timestamp) -> (Plan, Vec<Breach>) + Send + Sync;

/// The planner's plan, and what its check says of it.
pub fn checked(snapshot: &Snapshot, now: Timestamp) -> (Plan, Vec<Breach>) {
    let plan = planner::plan(snapshot, now);
    let breaches = planner::check(snapshot, &plan, now);
    (plan, breaches)
}

/// How this build decides.
pub(crate) fn of_this_build() -> &'static Decide {
    #[cfg(feature = "naive-removal")]
    {
        tracing::error!("This build kills jobs on purpose: it has the feature naive-removal");
        &naive::unchecked
    }
    #[cfg(not(feature = "naive-removal"))]
    &checked
}
