//! What happens when. Of the events of one time those of the lowest rank happen first, and of these the one that was
//! put in first.

use std::{cmp::Ordering, collections::BinaryHeap};

use crate::clock::Millis;

#[derive(Debug)]
struct Due<E> {
    time: Millis,
    rank: usize,
    number: u64,
    event: E,
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    /// The earliest is the greatest, as the heap gives that first.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |due: &Self| (due.time, due.rank, due.number);
        key(other).cmp(&key(self))
    }
}

#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Due<E>>,
    number: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Self {
        Self {
            heap: BinaryHeap::new(),
            number: 0,
        }
    }

    pub(crate) fn at(&mut self, time: Millis, rank: usize, event: E) {
        self.number += 1;
        let number = self.number;
        self.heap.push(Due {
            time,
            rank,
            number,
            event,
        });
    }

    /// The next event that is due by `end`.
    pub(crate) fn next(&mut self, end: Millis) -> Option<(Millis, E)> {
        if self.heap.peek()?.time > end {
            return None;
        }
        self.heap.pop().map(|due| (due.time, due.event))
    }
}
