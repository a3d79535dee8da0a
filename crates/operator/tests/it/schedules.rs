//! RunnerPools with schedules, by the real clock.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use k8s_openapi::{
    api::{core::v1::Pod, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::Time,
};
use kube::{Api, ResourceExt as _};
use serde_json::json;

use crate::bed::{Bed, objects_when};

/// The next full minute that is not about to come.
fn soon() -> Timestamp {
    let at_least = Timestamp::now() + SignedDuration::from_secs(5);
    Timestamp::from_second((at_least.as_second() / 60 + 1) * 60).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_that_begins_raises_the_minimum_and_ends_again() {
    let bed = Bed::start().await;
    let start = soon();
    let end = start + SignedDuration::from_secs(30);
    let rush = json!({
        "name": "rush", "duration": "30s", "minAgents": 2, "maxAgents": 3, "timeZone": "Asia/Kolkata",
        "start": start.to_zoned(TimeZone::get("Asia/Kolkata").unwrap()).strftime("%M %H %d %m *").to_string(),
    });
    // Looks are too rare to be what begins or ends it.
    bed.create(
        "web",
        json!({ "maxAgents": 1, "pollIntervalSeconds": 600, "schedules": [rush] }),
    )
    .await;
    bed.status_when("web", "it is told when the schedule begins", |status| {
        status.agents_summary.as_deref() == Some("0/1")
            && status.schedule.as_ref().is_some_and(|schedule| {
                let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
                schedule.active.is_none()
                    && time(&schedule.next_change_time) == Some(start)
                    && time(&schedule.next_start_time) == Some(start)
                    && schedule.next_active.as_deref() == Some("rush")
            })
    })
    .await;
    let pods = bed
        .pods_when("its warm agents are there", |pods| pods.len() == 2)
        .await;
    for Pod { metadata, .. } in &pods {
        let created = metadata.creation_timestamp.as_ref().unwrap().0;
        assert!((start..end).contains(&created), "{start} {created}");
        assert_eq!(metadata.labels.as_ref().unwrap()["min-agent"], "true");
    }
    bed.status_when("web", "it is told when the schedule ends", |status| {
        let summary = status.agents_summary.as_deref();
        summary.is_some_and(|summary| summary.ends_with("/3"))
            && status.schedule.as_ref().is_some_and(|schedule| {
                let time = |time: &Option<Time>| time.as_ref().map(|time| time.0);
                // The next one is a year away.
                schedule.active.as_deref() == Some("rush")
                    && time(&schedule.next_change_time) == Some(end)
                    && schedule.next_active.as_deref() == Some("rush")
                    && time(&schedule.next_start_time)
                        .is_some_and(|next| next > end + SignedDuration::from_hours(300 * 24))
            })
    })
    .await;
    bed.status_when("web", "it is over", |status| {
        let summary = status.agents_summary.as_deref();
        summary.is_some_and(|summary| summary.ends_with("/1"))
            && status
                .schedule
                .as_ref()
                .is_some_and(|schedule| schedule.active.is_none())
    })
    .await;
    assert!(Timestamp::now() >= end);
    // Removals need recent looks.
    bed.change("web", json!({ "pollIntervalSeconds": 5 })).await;
    bed.pods_when("its agents go", <[_]>::is_empty).await;
    let events: Api<Event> = bed.api();
    objects_when(events, "events tell of begin and end", |events| {
        ["ScheduleBegan", "ScheduleEnded"].iter().all(|reason| {
            let named = |event: &&Event| event.reason.as_deref() == Some(reason);
            let told: Vec<_> = events.iter().filter(named).collect();
            told.len() == 1
                && told[0].regarding.as_ref().unwrap().name.as_deref() == Some("web")
                && told[0].note.as_ref().unwrap().contains("rush")
        })
    })
    .await;
    bed.ready("web").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_always_active_replaces_the_bounds_of_the_spec() {
    let bed = Bed::start().await;
    let always = json!({ "name": "always", "start": "* * * * *", "duration": "2m", "minAgents": 1, "maxAgents": 2 });
    bed.create("web", json!({ "maxAgents": 9, "schedules": [always] }))
        .await;
    bed.online(1).await;
    let status = bed
        .status_when("web", "it is in force", |status| {
            status.agents_summary.as_deref() == Some("1/2")
        })
        .await;
    let schedule = status.schedule.unwrap();
    assert_eq!(schedule.active.as_deref(), Some("always"));
    assert_eq!(
        (
            schedule.next_change_time,
            schedule.next_active,
            schedule.next_start_time
        ),
        (None, None, None)
    );
    bed.change("web", json!({ "schedules": null })).await;
    let status = bed
        .status_when("web", "the spec is in force", |status| {
            status.schedule.is_none()
        })
        .await;
    assert!(status.agents_summary.unwrap().ends_with("/9"));
    bed.pods_when("its agent goes", |pods| {
        pods.iter().all(|pod| pod.name_any() != "web-agent-0")
    })
    .await;
}
