//! Seeds that found something, kept by name with what they taught. They run in the tests.

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
pub const LESSONS: &[Lesson] = &[];
