//! Leave to write. A process that shares its work with others must not write when another has taken it over; who says so
//! is no business of this crate.

use std::fmt;

use futures::future::BoxFuture;
use reqwest::{Error, Response};

/// A request on its way.
pub type Sending = BoxFuture<'static, Sent>;
/// What came of a request.
pub type Sent = Result<Response, Error>;

/// Every request that may change something is carried out by a gate.
pub trait WriteGate: fmt::Debug + Send + Sync {
    /// Carries a write out, or withholds it. One that is withheld midway may have been sent: nothing is known of it.
    fn carry_out(&self, write: Sending) -> BoxFuture<'static, Result<Sent, Withheld>>;
}

/// Why a write was withheld, as a fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Withheld(pub String);
