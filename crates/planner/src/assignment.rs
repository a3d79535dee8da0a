//! Which kind of agent each waiting job gets. Pure numbers: what a job may have and what there is of it.
//!
//! A matching: the agents that are there or on their way serve as many jobs as they can, older jobs first, and only what
//! they cannot serve gets new ones. A job gives its place to another only for a place of its own, so that nobody loses by
//! it. Jobs that may have the same are one class, which keeps thousands of them cheap.

use std::collections::BTreeSet;

/// Agents that are alike to a job: those of a profile that are there, or those of it that may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// How many jobs they can take.
    pub size: usize,
    /// Whose room they take when they are made; `None`: they are there.
    pub made_in: Option<usize>,
}

/// For each job, oldest first, the kind that it gets; `None`: nothing is left for it.
///
/// `jobs` are given by their class, `classes` by the kinds that serve them, the preferred first. At most so many agents are
/// made as there is room in each of `rooms`. As many jobs as possible get an agent, older ones before younger ones, and with as few new agents as
/// possible; a job gets the first of its kinds that is free, unless that would leave another job without any.
pub fn assign(
    jobs: &[usize],
    classes: &[Vec<usize>],
    kinds: &[Kind],
    rooms: &[usize],
) -> Vec<Option<usize>> {
    let mut matching = Matching::new(classes, kinds, rooms);
    let mut served = vec![0_usize; classes.len()];
    let mut left = Vec::new();
    for &class in jobs {
        if matching.place(class) {
            served[class] += 1;
        } else {
            left.push(class);
        }
    }
    matching.open(kinds);
    for class in left {
        served[class] += usize::from(matching.place(class));
    }
    let hand_out = |&class: &usize| {
        served[class] = served[class].checked_sub(1)?;
        matching.hand_out(class)
    };
    jobs.iter().map(hand_out).collect()
}

struct Matching<'a> {
    classes: &'a [Vec<usize>],
    kinds: Vec<Places>,
    /// What is left of each room.
    rooms: Vec<usize>,
    /// Jobs of a class that have a place of a kind, by class and kind.
    held: Vec<Vec<usize>>,
    /// Classes for which nothing is left.
    full: Vec<bool>,
}

struct Places {
    free: usize,
    made_in: Option<usize>,
    /// Classes that hold places of it.
    holders: BTreeSet<usize>,
    /// Nothing is free here, nor can it become free by moving jobs.
    closed: bool,
}

/// On the way to a free place: a job of the class leaves a kind, for which the step before it needs the place or its room.
struct Step {
    class: usize,
    leaves: Option<usize>,
    /// The step before, and the kind that its job takes.
    before: Option<(usize, usize)>,
}

impl<'a> Matching<'a> {
    /// Without the agents that are to be made.
    fn new(classes: &'a [Vec<usize>], kinds: &[Kind], rooms: &[usize]) -> Self {
        let places = |kind: &Kind| Places {
            free: if kind.made_in.is_some() { 0 } else { kind.size },
            made_in: kind.made_in,
            holders: BTreeSet::new(),
            closed: false,
        };
        Self {
            classes,
            held: classes.iter().map(|kinds| vec![0; kinds.len()]).collect(),
            kinds: kinds.iter().map(places).collect(),
            rooms: rooms.to_vec(),
            full: vec![false; classes.len()],
        }
    }

    /// Lets jobs have agents that are to be made.
    fn open(&mut self, kinds: &[Kind]) {
        for (places, kind) in self.kinds.iter_mut().zip(kinds) {
            places.free += kind.made_in.map_or(0, |_| kind.size);
            places.closed = false;
        }
        self.full.fill(false);
    }

    fn has_room(&self, kind: usize) -> bool {
        self.kinds[kind]
            .made_in
            .is_none_or(|room| self.rooms[room] > 0)
    }

    fn is_free(&self, kind: usize) -> bool {
        self.kinds[kind].free > 0 && self.has_room(kind)
    }

    /// Gives a job of the class a place, moving others to other places if need be.
    fn place(&mut self, class: usize) -> bool {
        if self.full[class] {
            return false;
        }
        let mut direct = self.classes[class].iter();
        if let Some(&kind) = direct.find(|kind| self.is_free(**kind)) {
            self.take(class, kind);
            return true;
        }
        let mut steps = vec![Step {
            class,
            leaves: None,
            before: None,
        }];
        let mut seen = BTreeSet::from([class]);
        let mut reached = BTreeSet::new();
        let mut next = 0;
        while next < steps.len() {
            for &kind in &self.classes[steps[next].class] {
                if self.kinds[kind].closed || !reached.insert(kind) {
                    continue;
                }
                if self.is_free(kind) {
                    self.shift(&steps, next, kind);
                    return true;
                }
                for leaves in self.in_the_way(kind) {
                    for &holder in &self.kinds[leaves].holders {
                        if seen.insert(holder) {
                            steps.push(Step {
                                class: holder,
                                leaves: Some(leaves),
                                before: Some((next, kind)),
                            });
                        }
                    }
                }
            }
            next += 1;
        }
        for kind in reached {
            self.kinds[kind].closed = true;
        }
        self.full[class] = true;
        false
    }

    /// Kinds of which one place would make room for one of this kind.
    fn in_the_way(&self, kind: usize) -> Vec<usize> {
        match self.kinds[kind].made_in {
            Some(room) if self.kinds[kind].free > 0 => {
                let of_room = |other: &usize| self.kinds[*other].made_in == Some(room);
                (0..self.kinds.len()).filter(of_room).collect()
            }
            _ => vec![kind],
        }
    }

    /// Moves a job at each step that led to a free place.
    fn shift(&mut self, steps: &[Step], last: usize, free: usize) {
        let (mut step, mut kind) = (last, free);
        loop {
            let Step {
                class,
                leaves,
                before,
            } = steps[step];
            if let Some(leaves) = leaves {
                self.give_back(class, leaves);
            }
            self.take(class, kind);
            let Some(before) = before else { return };
            (step, kind) = before;
        }
    }

    fn take(&mut self, class: usize, kind: usize) {
        *self.held_of(class, kind) += 1;
        let places = &mut self.kinds[kind];
        places.free -= 1;
        places.holders.insert(class);
        if let Some(room) = places.made_in {
            self.rooms[room] -= 1;
        }
    }

    fn give_back(&mut self, class: usize, kind: usize) {
        let held = self.held_of(class, kind);
        *held -= 1;
        let none = *held == 0;
        let places = &mut self.kinds[kind];
        places.free += 1;
        if none {
            places.holders.remove(&class);
        }
        if let Some(room) = places.made_in {
            self.rooms[room] += 1;
        }
    }

    fn held_of(&mut self, class: usize, kind: usize) -> &mut usize {
        let position = self.classes[class].iter().position(|known| *known == kind);
        &mut self.held[class][position.expect("a job holds only what serves it")]
    }

    /// The place of one job of the class. Jobs of a class have the same rights, so that the older ones get the better
    /// places.
    fn hand_out(&mut self, class: usize) -> Option<usize> {
        let held = &mut self.held[class];
        let position = held.iter().position(|held| *held > 0)?;
        held[position] -= 1;
        Some(self.classes[class][position])
    }
}
