//! When the service wants the next request, and what it said of its limits.

use std::time::{Duration, Instant};

use reqwest::header::HeaderMap;

/// Longest wait that is taken at its word. The service's delays end within 5 minutes after use drops ("Rate and usage
/// limits"); a longer one would be a mistake that must not stop the operator for a day.
const LONGEST_WAIT: Duration = Duration::from_mins(10);

/// What the service last said of an identity's budget.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RateLimit {
    /// Units it may use, `X-RateLimit-Limit`.
    pub limit: Option<f64>,
    /// Units left before requests are delayed, `X-RateLimit-Remaining`.
    pub remaining: Option<f64>,
    /// Seconds by which the answer was delayed, `X-RateLimit-Delay`.
    pub delay: Option<f64>,
    /// Unix time at which the use will be back to nothing, `X-RateLimit-Reset`.
    pub reset: Option<f64>,
}

impl RateLimit {
    /// `None` when the answer says nothing of limits.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let number = |name| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
        let read = Self {
            limit: number("x-ratelimit-limit"),
            remaining: number("x-ratelimit-remaining"),
            delay: number("x-ratelimit-delay"),
            reset: number("x-ratelimit-reset"),
        };
        (read != Self::default()).then_some(read)
    }
}

/// State of an identity's pace.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pacing {
    not_before: Option<Instant>,
    pub(crate) rate_limit: Option<RateLimit>,
}

impl Pacing {
    /// Takes note of an answer's headers. `Retry-After` counts on every status: on a 200 it means that the request was
    /// served and the next one shall wait.
    pub(crate) fn note(&mut self, headers: &HeaderMap, now: Instant) -> Option<Duration> {
        self.rate_limit = RateLimit::read(headers).or(self.rate_limit);
        let wait = retry_after(headers)?;
        self.wait(wait, now);
        Some(wait)
    }

    /// Lets no request out for this long.
    pub(crate) fn wait(&mut self, wait: Duration, now: Instant) {
        self.not_before = self.not_before.max(Some(now + wait));
    }

    /// How long the service still wants to be left alone; `None`: it may be asked.
    pub(crate) fn remaining_wait(&self, now: Instant) -> Option<Duration> {
        self.not_before?
            .checked_duration_since(now)
            .filter(|wait| !wait.is_zero())
    }
}

pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: f64 = headers
        .get("retry-after")?
        .to_str()
        .ok()?
        .trim()
        .parse()
        .ok()?;
    let wait = Duration::try_from_secs_f64(seconds).ok()?;
    (!wait.is_zero()).then(|| wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| {
                (
                    name.parse().expect("a name"),
                    value.parse().expect("a value"),
                )
            })
            .collect()
    }

    #[test]
    fn retry_after_holds_the_next_request_back_and_the_longer_wait_wins() {
        let (mut pacing, now) = (Pacing::default(), Instant::now());
        assert_eq!(
            pacing.note(&headers(&[("retry-after", "20")]), now),
            Some(Duration::from_secs(20))
        );
        pacing.note(&headers(&[("retry-after", "3")]), now);
        assert_eq!(pacing.remaining_wait(now), Some(Duration::from_secs(20)));
        assert_eq!(pacing.remaining_wait(now + Duration::from_secs(20)), None);
    }

    #[test]
    fn nonsense_is_no_wait_and_a_day_is_cut() {
        for text in ["-5", "soon", "0", "NaN"] {
            assert_eq!(
                retry_after(&headers(&[("retry-after", text)])),
                None,
                "{text}"
            );
        }
        assert_eq!(
            retry_after(&headers(&[("retry-after", "86400")])),
            Some(LONGEST_WAIT)
        );
    }

    #[test]
    fn limits_are_kept_until_an_answer_says_others() {
        let (mut pacing, now) = (Pacing::default(), Instant::now());
        pacing.note(
            &headers(&[("x-ratelimit-limit", "200"), ("x-ratelimit-remaining", "0")]),
            now,
        );
        pacing.note(&headers(&[]), now);
        let kept = pacing.rate_limit.expect("limits");
        assert_eq!(
            (kept.limit, kept.remaining, kept.delay),
            (Some(200.0), Some(0.0), None)
        );
    }
}
