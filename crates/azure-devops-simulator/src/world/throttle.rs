//! Rate limiting as the service does it: a budget per identity, a warning, delays, a block
//! (protocol section 8). Off unless [`super::Settings::rate_limit`] says otherwise.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{error::ApiError, message::Reply, millis};

/// A budget per identity.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct RateLimit {
    /// Throughput units per window: the service grants 200 in five minutes.
    pub limit: f64,
    /// The window; milliseconds on the wire.
    #[serde(with = "millis")]
    pub window: Duration,
    /// What one request costs. The service does not say; a cheap read is well below one unit.
    pub cost: f64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self {
            limit: 200.0,
            window: Duration::from_mins(5),
            cost: 0.1,
        }
    }
}

/// From this share of the budget on replies carry the headers that warn.
const WARNING_SHARE: f64 = 0.5;
/// Delays grow from nothing at the budget to this at twice the budget, then requests are blocked.
const LONGEST_DELAY: Duration = Duration::from_secs(30);

/// How much of its budget each identity has used. Use drains evenly over the window, which is the
/// cheap form of a sliding window.
#[derive(Clone, Debug, Default)]
pub(crate) struct Usage(HashMap<String, (f64, Timestamp)>);

/// What becomes of a request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Charge {
    pub(crate) delay: Duration,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) blocked: Option<Box<Reply>>,
}

impl Usage {
    pub(crate) fn charge(&mut self, now: Timestamp, account: String, rules: &RateLimit) -> Charge {
        let rate = rules.limit / rules.window.as_secs_f64();
        let (used, since) = self.0.entry(account).or_insert((0.0, now));
        let idle = now.duration_since(*since).as_secs_f64();
        *since = now;
        *used = (*used - idle * rate).max(0.0);
        // A blocked request costs nothing, so that waiting helps.
        let blocked = *used >= 2.0 * rules.limit;
        if !blocked {
            *used += rules.cost;
        }
        let share = *used / rules.limit;
        if share < WARNING_SHARE {
            return Charge::default();
        }
        let until_within =
            Duration::from_secs_f64(((*used - rules.limit).max(0.0) / rate).max(1.0));
        let drained = now + Duration::from_secs_f64(*used / rate);
        let mut charge = Charge {
            headers: vec![
                ("X-RateLimit-Resource", "Concurrency".to_owned()),
                ("X-RateLimit-Limit", format!("{:.0}", rules.limit)),
                (
                    "X-RateLimit-Remaining",
                    format!("{:.0}", (rules.limit - *used).max(0.0)),
                ),
                ("X-RateLimit-Reset", drained.as_second().to_string()),
                ("Retry-After", until_within.as_secs().max(1).to_string()),
            ],
            ..Charge::default()
        };
        if blocked {
            charge.blocked = Some(Box::new(ApiError::blocked().into_reply()));
        } else if share > 1.0 {
            charge.delay = LONGEST_DELAY.mul_f64((share - 1.0).min(1.0));
            let delay = format!("{:.3}", charge.delay.as_secs_f64());
            charge.headers.push(("X-RateLimit-Delay", delay));
        }
        charge
    }
}
