//! The jobs: a steady trickle into each agent pool, all of it from the seed.

use std::time::Duration;

use super::{pools::Pool, random::Random};

/// Jobs that are queued together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Since the chaos began.
    pub(crate) at: Duration,
    /// Whose agent pool gets them, as an index.
    pub(crate) pool: usize,
    pub(crate) demand: Option<&'static str>,
    pub(crate) count: usize,
    pub(crate) duration: Duration,
    /// Whether their user cancels them as soon as they run.
    pub(crate) canceled: bool,
}

/// Between two batches for one agent pool: about half of what its agents can do in quiet times, so that there are times
/// without work, and a backlog after a trouble does not stay for ever.
const GAP_MILLIS: (u32, u32) = (4_000, 16_000);
/// How long most jobs take, and how long one in ten: through many events.
const SHORT_MILLIS: (u32, u32) = (500, 10_000);
const LONG_MILLIS: (u32, u32) = (20_000, 45_000);

/// All batches of a run, in order of time.
pub(crate) fn batches(mut random: Random, pools: &[Pool], duration: Duration) -> Vec<Batch> {
    let mut batches = Vec::new();
    for (index, pool) in pools.iter().enumerate() {
        let mut random = random.fork();
        let mut at = random.millis(0, GAP_MILLIS.1);
        while at < duration {
            let demands = pool.demands;
            let demand = match random.below(demands.len() + 1) {
                0 => None,
                number => demands.get(number - 1).copied(),
            };
            let (least, most) = if random.percent(10) {
                LONG_MILLIS
            } else {
                SHORT_MILLIS
            };
            batches.push(Batch {
                at,
                pool: index,
                demand,
                count: random.between(1, 3) as usize,
                duration: random.millis(least, most),
                canceled: random.percent(5),
            });
            at += random.millis(GAP_MILLIS.0, GAP_MILLIS.1);
        }
    }
    batches.sort_by_key(|batch| batch.at);
    batches
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{super::pools, *};

    #[test]
    fn a_seed_is_a_load_for_every_agent_pool() {
        let pools = pools::all();
        let minute = Duration::from_secs(60);
        let load = |seed| batches(Random::new(seed), &pools, minute);
        assert_eq!(load(1), load(1));
        assert_ne!(load(1), load(2));
        for seed in 0..100 {
            let hit: BTreeSet<usize> = load(seed).iter().map(|batch| batch.pool).collect();
            assert_eq!(hit.len(), pools.len(), "seed {seed}");
        }
    }
}
