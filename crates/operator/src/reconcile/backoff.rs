//! Waits after passes that failed, or left something undone: longer with each in a row, per RunnerPool.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use crate::mirror::PoolKey;

/// First wait: short, as most failures are conflicts that are gone by the next pass.
const FIRST: Duration = Duration::from_millis(200);
/// Longest wait: a cluster that came back is used again within this time.
const LONGEST: Duration = Duration::from_secs(30);

/// Such passes in a row, by RunnerPool.
#[derive(Debug, Default)]
pub(crate) struct Backoff(Mutex<HashMap<PoolKey, u32>>);

impl Backoff {
    /// Counts a failure and gives the wait after it.
    pub(crate) fn next(&self, pool: &PoolKey) -> Duration {
        let mut failures = self.failures();
        let count = failures.entry(pool.clone()).or_default();
        *count = count.saturating_add(1);
        wait(*count, jitter(pool, *count))
    }

    pub(crate) fn reset(&self, pool: &PoolKey) {
        self.failures().remove(pool);
    }

    fn failures(&self) -> MutexGuard<'_, HashMap<PoolKey, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `share` of the wait, from half of it to all, so that RunnerPools that failed together do not come back together.
pub(crate) fn wait(failures: u32, share: f64) -> Duration {
    let full = FIRST
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
        .min(LONGEST);
    full.mul_f64(0.5 + share / 2.0)
}

/// Between 0 and 1, spread over RunnerPools and failures.
fn jitter(pool: &PoolKey, failures: u32) -> f64 {
    use std::hash::{BuildHasher as _, RandomState};
    let bits = RandomState::new().hash_one((pool, failures));
    f64::from(u32::try_from(bits >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let backoff = Backoff::default();
        let pool = PoolKey {
            namespace: "a".into(),
            name: "b".into(),
        };
        let waits: Vec<Duration> = (0..12).map(|_| backoff.next(&pool)).collect();
        assert!(waits[0] <= FIRST && waits[0] >= FIRST / 2, "{waits:?}");
        assert!(
            waits[11] <= LONGEST && waits[11] >= LONGEST / 2,
            "{waits:?}"
        );
        backoff.reset(&pool);
        assert!(backoff.next(&pool) <= FIRST);
    }
}
