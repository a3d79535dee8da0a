//! Which agents jobs get, against every way of giving them out.

use planner::assignment::{Kind, assign};
use proptest::{collection::vec, prelude::*, sample::subsequence};

/// A small case: classes of jobs, jobs, kinds, room.
#[derive(Clone, Debug)]
struct Case {
    classes: Vec<Vec<usize>>,
    jobs: Vec<usize>,
    kinds: Vec<Kind>,
    rooms: Vec<usize>,
}

fn case() -> impl Strategy<Value = Case> {
    let made_in = prop_oneof![Just(None), Just(Some(0)), Just(Some(1))];
    let kind = (0_usize..3, made_in).prop_map(|(size, made_in)| Kind { size, made_in });
    vec(kind, 1..5).prop_flat_map(|kinds| {
        let all: Vec<usize> = (0..kinds.len()).collect();
        let class = subsequence(all, 0..=kinds.len()).prop_shuffle();
        let rooms = vec(0_usize..4, 2..=2);
        (vec(class, 1..4), Just(kinds), rooms).prop_flat_map(|(mut classes, kinds, rooms)| {
            for class in &mut classes {
                class.sort_by_key(|kind| kinds[*kind].made_in.is_some());
            }
            let count = classes.len();
            let jobs = vec(0..count, 0..6);
            (Just(classes), jobs, Just(kinds), Just(rooms)).prop_map(
                |(classes, jobs, kinds, rooms)| Case {
                    classes,
                    jobs,
                    kinds,
                    rooms,
                },
            )
        })
    })
}

/// How good a way of giving agents out is: which jobs are served, the oldest first, then with how few new agents.
type Worth = (Vec<bool>, std::cmp::Reverse<usize>);

fn worth(case: &Case, given: &[Option<usize>]) -> Worth {
    let new = given
        .iter()
        .flatten()
        .filter(|kind| case.kinds[**kind].made_in.is_some());
    let new = std::cmp::Reverse(new.count());
    (given.iter().map(Option::is_some).collect(), new)
}

/// What is left of kinds and rooms.
struct Left {
    kinds: Vec<usize>,
    rooms: Vec<usize>,
}

impl Left {
    fn all(case: &Case) -> Self {
        Self {
            kinds: case.kinds.iter().map(|kind| kind.size).collect(),
            rooms: case.rooms.clone(),
        }
    }

    fn take(&mut self, case: &Case, kind: usize) -> bool {
        let room = case.kinds[kind].made_in;
        if self.kinds[kind] == 0 || room.is_some_and(|room| self.rooms[room] == 0) {
            return false;
        }
        self.kinds[kind] -= 1;
        if let Some(room) = room {
            self.rooms[room] -= 1;
        }
        true
    }

    fn give_back(&mut self, case: &Case, kind: usize) {
        self.kinds[kind] += 1;
        if let Some(room) = case.kinds[kind].made_in {
            self.rooms[room] += 1;
        }
    }
}

/// The best of all ways.
fn best(case: &Case, given: &mut Vec<Option<usize>>, left: &mut Left) -> Worth {
    let Some(&class) = case.jobs.get(given.len()) else {
        return worth(case, given);
    };
    given.push(None);
    let mut found = best(case, given, left);
    for &kind in &case.classes[class] {
        if !left.take(case, kind) {
            continue;
        }
        *given.last_mut().unwrap() = Some(kind);
        found = found.max(best(case, given, left));
        left.give_back(case, kind);
    }
    given.pop();
    found
}

fn assert_possible(case: &Case, given: &[Option<usize>]) -> Result<(), TestCaseError> {
    let mut left = Left::all(case);
    for (class, kind) in case.jobs.iter().zip(given) {
        let Some(kind) = *kind else { continue };
        prop_assert!(case.classes[*class].contains(&kind));
        prop_assert!(
            left.take(case, kind),
            "more than there are of kind {}",
            kind
        );
    }
    Ok(())
}

/// Each job gets the first that is free, oldest first: what one would write at first.
fn greedy(case: &Case) -> Vec<Option<usize>> {
    let mut left = Left::all(case);
    let mut given = Vec::new();
    for class in &case.jobs {
        let mut kinds = case.classes[*class].iter().copied();
        given.push(kinds.find(|kind| left.take(case, *kind)));
    }
    given
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn no_way_serves_more_or_older_jobs_or_makes_fewer_agents(case in case()) {
        let given = assign(&case.jobs, &case.classes, &case.kinds, &case.rooms);
        assert_possible(&case, &given)?;
        let best = best(&case, &mut Vec::new(), &mut Left::all(&case));
        prop_assert_eq!(worth(&case, &given), best);
        // Where everybody can have what he prefers, everybody has it.
        let greedy = greedy(&case);
        let preferred = |(class, kind): (&usize, &Option<usize>)| case.classes[*class].first() == kind.as_ref();
        if case.jobs.iter().zip(&greedy).all(preferred) {
            prop_assert_eq!(&given, &greedy);
        }
        // When the new agents are there, the same jobs get them and none is made.
        let mut later = case.clone();
        let made = given.iter().flatten().filter(|kind| case.kinds[**kind].made_in.is_some());
        for kind in made {
            later.kinds.push(Kind { size: 1, made_in: None });
            let there = later.kinds.len() - 1;
            for class in &mut later.classes {
                if class.contains(kind) {
                    class.insert(0, there);
                }
            }
        }
        let again = assign(&later.jobs, &later.classes, &later.kinds, &[0, 0]);
        let served = |given: &[Option<usize>]| given.iter().map(Option::is_some).collect::<Vec<_>>();
        prop_assert_eq!(served(&again), served(&given));
    }
}

#[test]
fn a_greedy_assignment_is_caught() {
    let case = Case {
        classes: vec![vec![0, 1], vec![0]],
        jobs: vec![0, 1],
        kinds: vec![
            Kind {
                size: 1,
                made_in: None,
            },
            Kind {
                size: 1,
                made_in: Some(0),
            },
        ],
        rooms: vec![1, 0],
    };
    let given = assign(&case.jobs, &case.classes, &case.kinds, &case.rooms);
    assert_eq!(given, [Some(1), Some(0)]);
    assert!(worth(&case, &greedy(&case)) < worth(&case, &given));
}
