//! Seeds that found something, kept by name with what they taught. They run in the tests.
//!
//! When scenarios draw something more, a seed is another story. Then take the remedy out again, look for a seed that fails
//! without it, and keep that one.

/// A seed that found something.
#[derive(Clone, Copy, Debug)]
pub struct Lesson {
    /// A name for it.
    pub name: &'static str,
    /// The seed.
    pub seed: u64,
    /// For how many hours it has to run.
    pub hours: i64,
    /// What was wrong, and what it taught.
    pub lesson: &'static str,
}

/// All of them.
pub const LESSONS: &[Lesson] = &[
    Lesson {
        name: "an empty list comes twice",
        seed: 943,
        hours: 24,
        lesson: "two wrong answers in a row are no proof: a list of agents that suddenly is empty has to stay so for a minute \
                 before a name counts as free, or an agent registers over a stranger's",
    },
    Lesson {
        name: "a minimum fills the maximum",
        seed: 0,
        hours: 24,
        lesson: "warm agents of one kind must give way to jobs of another, or these wait for ever",
    },
    Lesson {
        name: "a creation has no answer",
        seed: 331,
        hours: 24,
        lesson: "a Pod whose creation had no answer may be there all the same: the API server is asked before another is made, or \
                 there are more than the maximum",
    },
    Lesson {
        name: "a Pod goes as its agent registers",
        seed: 4613,
        hours: 24,
        lesson: "lists lag behind: one that was read after the end of a Pod need not show the agent that registered just before \
                 it, and the next agent of that name meets a live session",
    },
];
