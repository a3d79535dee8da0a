//! What a candidate makes of a Lease, and what it writes into one. Pure: the time comes in.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};

/// The Lease as it was seen last.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Seen {
    /// It was not looked at yet.
    #[default]
    NotYet,
    /// There was none.
    Absent,
    /// There was this one.
    There(Box<Lease>),
}

impl From<Option<Lease>> for Seen {
    fn from(lease: Option<Lease>) -> Self {
        lease.map_or(Self::Absent, |lease| Self::There(Box::new(lease)))
    }
}

/// What was observed of a Lease so far. The times in it are other machines' and mean nothing here: a holder's time is
/// over when its record has not changed for as long as the record says, by this process's own clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Observation {
    seen: Seen,
    holder: Option<Holder>,
}

/// The last record of a holder that did not let go. It outlives the object: whoever deletes a Lease does not stop its
/// holder.
#[derive(Clone, Debug)]
struct Holder {
    record: LeaseSpec,
    first_seen: Instant,
}

/// What a candidate may do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Turn {
    /// Nothing was seen yet.
    Look,
    /// Take it, on top of this object, or with a new one.
    Take(Option<Box<Lease>>),
    /// Wait until then, unless it changes.
    Wait(Instant),
}

impl Observation {
    /// Takes note of what was seen. What is seen late does no harm: it prolongs the
    /// wait, or leads to a write that the API server refuses for its resource version.
    pub(super) fn note(&mut self, seen: Seen, now: Instant) {
        if let Seen::There(lease) = &seen {
            let record = lease.spec.clone().unwrap_or_default();
            if holder(&record).is_none() {
                self.holder = None;
            } else if self.holder.as_ref().map(|known| &known.record) != Some(&record) {
                self.holder = Some(Holder {
                    record,
                    first_seen: now,
                });
            }
        }
        self.seen = seen;
    }

    /// What a candidate of this identity may do now; `duration`: of a record that names none.
    pub(super) fn turn(&self, identity: &str, duration: Duration, now: Instant) -> Turn {
        let seen = match &self.seen {
            Seen::NotYet => return Turn::Look,
            Seen::Absent => None,
            Seen::There(lease) => Some(lease),
        };
        let wait = self.holder.as_ref().and_then(|known| {
            // Ours: a claim whose answer was lost.
            let other = holder(&known.record).filter(|holder| *holder != identity);
            let seconds = known.record.lease_duration_seconds;
            let said = seconds.and_then(|seconds| u64::try_from(seconds).ok());
            let end = known.first_seen + said.map_or(duration, Duration::from_secs);
            other.filter(|_| now < end).map(|_| end)
        });
        wait.map_or_else(|| Turn::Take(seen.cloned()), Turn::Wait)
    }

    /// Who held it when it was seen last, whether that is over or not.
    pub(super) fn holder(&self) -> Option<&str> {
        self.holder.as_ref().and_then(|known| holder(&known.record))
    }
}

/// The holder that a record names. Nobody: it was released.
pub(super) fn holder(record: &LeaseSpec) -> Option<&str> {
    record
        .holder_identity
        .as_deref()
        .filter(|identity| !identity.is_empty())
}

/// Whether a Lease names this holder.
pub(super) fn is_held_by(lease: &Lease, identity: &str) -> bool {
    let record = lease.spec.as_ref();
    record.and_then(holder) == Some(identity)
}

/// The Lease with `identity` as its new holder, to be written in place of `from`, the one that was seen.
pub(super) fn taken(from: Lease, identity: &str, duration: Duration, now: Timestamp) -> Lease {
    let mut lease = renewed(from, identity, duration, now);
    let record = lease.spec.get_or_insert_default();
    record.acquire_time.clone_from(&record.renew_time);
    let transitions = record.lease_transitions;
    record.lease_transitions = Some(transitions.map_or(0, |count| count.saturating_add(1)));
    lease
}

/// The Lease with a later time of renewal.
pub(super) fn renewed(
    mut lease: Lease,
    identity: &str,
    duration: Duration,
    now: Timestamp,
) -> Lease {
    let record = lease.spec.get_or_insert_default();
    // Others tell a renewal by its being another record, so it is one even where the clock stands still or goes back.
    let last = record.renew_time.as_ref().map(|time| time.0);
    let tick = SignedDuration::from_micros(1);
    let after_last = last.and_then(|last| last.checked_add(tick).ok());
    record.renew_time = Some(MicroTime(after_last.map_or(now, |after| after.max(now))));
    record.holder_identity = Some(identity.to_owned());
    record.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX));
    lease
}

/// The Lease without a holder.
pub(super) fn released(mut lease: Lease) -> Lease {
    let record = lease.spec.get_or_insert_default();
    record.holder_identity = None;
    lease
}

#[cfg(test)]
mod tests {
    use super::*;

    const DURATION: Duration = Duration::from_secs(4);

    fn held(by: &str, renewed_at: Timestamp) -> Lease {
        renewed(Lease::default(), by, DURATION, renewed_at)
    }

    fn there(lease: Lease) -> Seen {
        Seen::There(Box::new(lease))
    }

    fn hours(count: i64) -> Timestamp {
        Timestamp::now() + SignedDuration::from_hours(count)
    }

    #[test]
    fn nothing_is_taken_before_the_first_look_and_what_is_absent_or_released_at_once() {
        let start = Instant::now();
        let mut seen = Observation::default();
        assert_eq!(seen.turn("a", DURATION, start), Turn::Look);
        seen.note(Seen::Absent, start);
        assert_eq!(seen.turn("a", DURATION, start), Turn::Take(None));
        let free = released(held("b", hours(0)));
        seen.note(there(held("b", hours(0))), start);
        seen.note(there(free.clone()), start);
        assert_eq!(
            seen.turn("a", DURATION, start),
            Turn::Take(Some(Box::new(free)))
        );
    }

    #[test]
    fn a_holder_is_over_when_its_record_did_not_change_for_its_own_duration_whatever_its_clock_says()
     {
        for clock in [hours(-1), hours(0), hours(1)] {
            let start = Instant::now();
            let mut seen = Observation::default();
            let mut lease = held("b", clock);
            for renewal in 0..5 {
                let now = start + renewal * Duration::from_secs(1);
                seen.note(there(lease.clone()), now);
                assert_eq!(seen.turn("a", DURATION, now), Turn::Wait(now + DURATION));
                lease = renewed(lease, "b", DURATION, clock);
            }
            let last = start + Duration::from_secs(4);
            let almost = last + Duration::from_millis(3999);
            assert_eq!(
                seen.turn("a", DURATION, almost),
                Turn::Wait(last + DURATION)
            );
            let turn = seen.turn("a", DURATION, last + DURATION);
            assert!(matches!(turn, Turn::Take(Some(_))), "{turn:?}");
        }
    }

    #[test]
    fn the_duration_is_the_holders_own() {
        let start = Instant::now();
        let mut seen = Observation::default();
        let long = Duration::from_secs(60);
        seen.note(there(renewed(Lease::default(), "b", long, hours(0))), start);
        assert_eq!(
            seen.turn("a", DURATION, start + DURATION),
            Turn::Wait(start + long)
        );
    }

    #[test]
    fn a_deleted_lease_is_not_taken_before_its_holder_is_over() {
        let start = Instant::now();
        let mut seen = Observation::default();
        seen.note(there(held("b", hours(0))), start);
        seen.note(Seen::Absent, start + Duration::from_secs(1));
        assert_eq!(
            seen.turn("a", DURATION, start + Duration::from_secs(1)),
            Turn::Wait(start + DURATION)
        );
        assert_eq!(seen.turn("a", DURATION, start + DURATION), Turn::Take(None));
    }

    #[test]
    fn a_claim_whose_answer_was_lost_is_made_again() {
        let start = Instant::now();
        let mut seen = Observation::default();
        seen.note(there(held("a", hours(0))), start);
        assert!(matches!(
            seen.turn("a", DURATION, start),
            Turn::Take(Some(_))
        ));
    }

    #[test]
    fn every_renewal_is_another_record_and_a_change_of_hands_is_counted() {
        let now = hours(0);
        let first = taken(Lease::default(), "a", DURATION, now);
        let second = renewed(first.clone(), "a", DURATION, now);
        let back = renewed(
            second.clone(),
            "a",
            DURATION,
            now - SignedDuration::from_hours(1),
        );
        assert!(first.spec != second.spec && second.spec != back.spec);
        let third = taken(released(back), "b", DURATION, now);
        let record = third.spec.unwrap_or_default();
        assert_eq!(record.lease_transitions, Some(1));
        assert_eq!(record.acquire_time, record.renew_time);
    }
}
