//! The custom resource under test: the examples that its users have, each rule alone, and the schema that the API server
//! gets.
#![expect(
    clippy::unwrap_used,
    reason = "a test fails by panicking, and says where"
)]

mod agreement;
mod crd;
mod examples;
mod rules;
mod schedules;
mod schema;
