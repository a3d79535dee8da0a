//! A real Kubernetes control plane for tests and demonstrations: etcd, kube-apiserver and kube-controller-manager,
//! upstream's own programs, run by any user on any machine that has Go (or the programs).
//!
//! [`ControlPlane`] starts and stops them; [`binaries`] finds or builds them, and [`helm`], which renders charts. Nothing of
//! Kubernetes is simulated here. There is no node at first: pods stay Pending until the crate `hollow-node` plays it, or
//! until [`node`] makes this machine one.
//!
//! It is a tool of developers: it never ships with the operator, and its errors are made to be read by a person, so they
//! are [`anyhow::Error`]s that name the remedy.

mod account;
mod audit;
pub mod binaries;
mod control_plane;
mod credentials;
pub mod helm;
pub mod node;
mod processes;

pub use account::{Account, apply};
pub use audit::AuditEvent;
pub use control_plane::{ControlPlane, Options, Program};
pub use credentials::User;
