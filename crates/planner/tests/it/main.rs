//! The planner under test: named cases that read as sentences, laws over random snapshots, and controls that show that
//! the laws can fail.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says where"
)]

mod assignment;
mod carry_out;
mod control;
mod deletion;
mod demands;
mod kept;
mod laws;
mod mode;
mod oracle;
mod placeholders;
mod random;
mod removal;
mod replan;
mod scale_up;
mod siblings;
mod stuck;
mod tidy;
mod world;
