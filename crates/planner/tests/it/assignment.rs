//! Which agents jobs get, against every way of giving them out.

use planner::assignment::{Kind, assign};
use proptest::{collection::vec, prelude::*, sample::subsequence};

/// A small case: classes of jobs, jobs, kinds, room.
#[derive(Clone, Debug)]
struct Case {
    classes: Vec<Vec<usize>>,
    jobs: Vec<usize>,
    kinds: Vec<Kind>,
    room: usize,
}

fn case() -> impl Strategy<Value = Case> {
    let kind = (0_usize..3, any::<bool>()).prop_map(|(size, new)| Kind { size, new });
    vec(kind, 1..5).prop_flat_map(|kinds| {
        let all: Vec<usize> = (0..kinds.len()).collect();
        let class = subsequence(all, 0..=kinds.len()).prop_shuffle();
        (vec(class, 1..4), Just(kinds), 0_usize..5).prop_flat_map(|(mut classes, kinds, room)| {
            for class in &mut classes {
                class.sort_by_key(|kind| kinds[*kind].new);
            }
            let count = classes.len();
            (Just(classes), vec(0..count, 0..6), Just(kinds), Just(room)).prop_map(
                |(classes, jobs, kinds, room)| Case {
                    classes,
                    jobs,
                    kinds,
                    room,
                },
            )
        })
    })
}

/// How good a way of giving agents out is: which jobs are served, the oldest first, then with how few new agents.
type Worth = (Vec<bool>, std::cmp::Reverse<usize>);

fn worth(case: &Case, given: &[Option<usize>]) -> Worth {
    let new = given.iter().flatten().filter(|kind| case.kinds[**kind].new);
    let new = std::cmp::Reverse(new.count());
    (given.iter().map(Option::is_some).collect(), new)
}

/// The best of all ways.
fn best(case: &Case, given: &mut Vec<Option<usize>>, left: &mut [usize], room: usize) -> Worth {
    let Some(&class) = case.jobs.get(given.len()) else {
        return worth(case, given);
    };
    given.push(None);
    let mut found = best(case, given, left, room);
    for &kind in &case.classes[class] {
        let new = usize::from(case.kinds[kind].new);
        if left[kind] == 0 || new > room {
            continue;
        }
        left[kind] -= 1;
        *given.last_mut().unwrap() = Some(kind);
        found = found.max(best(case, given, left, room - new));
        left[kind] += 1;
    }
    given.pop();
    found
}

fn assert_possible(case: &Case, given: &[Option<usize>]) -> Result<(), TestCaseError> {
    let mut left: Vec<usize> = case.kinds.iter().map(|kind| kind.size).collect();
    let mut room = case.room;
    for (class, kind) in case.jobs.iter().zip(given) {
        let Some(kind) = *kind else { continue };
        prop_assert!(case.classes[*class].contains(&kind));
        prop_assert!(left[kind] > 0, "more than there are of kind {}", kind);
        left[kind] -= 1;
        let new = usize::from(case.kinds[kind].new);
        prop_assert!(new <= room, "more are made than there is room for");
        room -= new;
    }
    Ok(())
}

/// Each job gets the first that is free, oldest first: what one would write at first.
fn greedy(case: &Case) -> Vec<Option<usize>> {
    let mut left: Vec<usize> = case.kinds.iter().map(|kind| kind.size).collect();
    let mut room = case.room;
    let mut given = Vec::new();
    for class in &case.jobs {
        let free = |kind: &&usize| left[**kind] > 0 && (!case.kinds[**kind].new || room > 0);
        let kind = case.classes[*class].iter().find(free).copied();
        if let Some(kind) = kind {
            left[kind] -= 1;
            room -= usize::from(case.kinds[kind].new);
        }
        given.push(kind);
    }
    given
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100_000))]

    #[test]
    fn no_way_serves_more_or_older_jobs_or_makes_fewer_agents(case in case()) {
        let given = assign(&case.jobs, &case.classes, &case.kinds, case.room);
        assert_possible(&case, &given)?;
        let mut left: Vec<usize> = case.kinds.iter().map(|kind| kind.size).collect();
        let best = best(&case, &mut Vec::new(), &mut left, case.room);
        prop_assert_eq!(worth(&case, &given), best);
        // Where everybody can have what he prefers, everybody has it.
        let greedy = greedy(&case);
        let preferred = |(class, kind): (&usize, &Option<usize>)| case.classes[*class].first() == kind.as_ref();
        if case.jobs.iter().zip(&greedy).all(preferred) {
            prop_assert_eq!(&given, &greedy);
        }
        // When the new agents are there, the same jobs get them and none is made.
        let mut later = case.clone();
        let made = given.iter().flatten().filter(|kind| case.kinds[**kind].new);
        for kind in made {
            later.kinds.push(Kind { size: 1, new: false });
            let there = later.kinds.len() - 1;
            for class in &mut later.classes {
                if class.contains(kind) {
                    class.insert(0, there);
                }
            }
        }
        let again = assign(&later.jobs, &later.classes, &later.kinds, 0);
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
                new: false,
            },
            Kind { size: 1, new: true },
        ],
        room: 1,
    };
    let given = assign(&case.jobs, &case.classes, &case.kinds, case.room);
    assert_eq!(given, [Some(1), Some(0)]);
    assert!(worth(&case, &greedy(&case)) < worth(&case, &given));
}
