//! Which kind of agent each waiting job gets. Pure numbers: what a job may have and what there is of it.
//!
//! A matching: the agents that are there or on their way serve as many jobs as they can, older jobs first, and only what
//! they cannot serve gets new ones. A job gives its place to another only for a place of its own, so that nobody loses by
//! it. Jobs that may have the same are one class, which keeps thousands of them cheap.

use std::collections::{BTreeSet, VecDeque};

/// Agents that are alike to a job: those of a profile that are there, or those of it that may be made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kind {
    /// How many jobs they can take.
    pub size: usize,
    /// Whether they are to be made.
    pub new: bool,
}

/// For each job, oldest first, the kind that it gets; `None`: nothing is left for it.
///
/// `jobs` are given by their class, `classes` by the kinds that serve them, the preferred first. At most `room` agents are
/// made altogether. As many jobs as possible get an agent, older ones before younger ones, and with as few new agents as
/// possible; a job gets the first of its kinds that is free, unless that would leave another job without any.
pub fn assign(
    jobs: &[usize],
    classes: &[Vec<usize>],
    kinds: &[Kind],
    room: usize,
) -> Vec<Option<usize>> {
    let mut matching = Matching::new(classes, kinds);
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
    let mut made = 0;
    for class in left {
        if made < room && matching.place(class) {
            served[class] += 1;
            made += 1;
        }
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
    /// Jobs of a class that have a place of a kind, by class and kind.
    held: Vec<Vec<usize>>,
}

struct Places {
    free: usize,
    /// Classes that hold places of it.
    holders: BTreeSet<usize>,
    /// Nothing is free here, nor can it become free by moving jobs.
    closed: bool,
}

impl<'a> Matching<'a> {
    /// Without the agents that are to be made.
    fn new(classes: &'a [Vec<usize>], kinds: &[Kind]) -> Self {
        let places = |kind: &Kind| Places {
            free: if kind.new { 0 } else { kind.size },
            holders: BTreeSet::new(),
            closed: false,
        };
        Self {
            classes,
            held: classes.iter().map(|kinds| vec![0; kinds.len()]).collect(),
            kinds: kinds.iter().map(places).collect(),
        }
    }

    /// Lets jobs have agents that are to be made.
    fn open(&mut self, kinds: &[Kind]) {
        for (places, kind) in self.kinds.iter_mut().zip(kinds) {
            places.free += if kind.new { kind.size } else { 0 };
            places.closed = false;
        }
    }

    /// Gives a job of the class a place, moving others to other places if need be.
    fn place(&mut self, class: usize) -> bool {
        let direct = |kind: &&usize| self.kinds[**kind].free > 0;
        if let Some(&kind) = self.classes[class].iter().find(direct) {
            self.take(class, kind);
            return true;
        }
        // By which class each kind was reached, and from which kind a job of it would move.
        let mut reached: Vec<Option<(usize, Option<usize>)>> = vec![None; self.kinds.len()];
        let mut seen = BTreeSet::new();
        let mut queue = VecDeque::from([(class, None)]);
        let mut visited = Vec::new();
        while let Some((class, from)) = queue.pop_front() {
            for &kind in &self.classes[class] {
                if reached[kind].is_some() || self.kinds[kind].closed {
                    continue;
                }
                reached[kind] = Some((class, from));
                if self.kinds[kind].free > 0 {
                    self.shift(kind, &reached);
                    return true;
                }
                visited.push(kind);
                for &holder in &self.kinds[kind].holders {
                    if seen.insert(holder) {
                        queue.push_back((holder, Some(kind)));
                    }
                }
            }
        }
        for kind in visited {
            self.kinds[kind].closed = true;
        }
        false
    }

    /// Moves a job along each step that led to a free place.
    fn shift(&mut self, free: usize, reached: &[Option<(usize, Option<usize>)>]) {
        let mut to = free;
        while let Some((class, from)) = reached[to] {
            if let Some(from) = from {
                self.give_back(class, from);
            }
            self.take(class, to);
            let Some(from) = from else { return };
            to = from;
        }
    }

    fn take(&mut self, class: usize, kind: usize) {
        *self.held_of(class, kind) += 1;
        self.kinds[kind].free -= 1;
        self.kinds[kind].holders.insert(class);
    }

    fn give_back(&mut self, class: usize, kind: usize) {
        let held = self.held_of(class, kind);
        *held -= 1;
        if *held == 0 {
            self.kinds[kind].holders.remove(&class);
        }
        self.kinds[kind].free += 1;
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
