//! Builds the objects that become an agent. Pure.

pub(crate) mod claim;
pub(crate) mod pod;
pub(crate) mod trouble;
