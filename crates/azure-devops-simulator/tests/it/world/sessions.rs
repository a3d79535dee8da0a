//! Sessions, messages and locks.

use azure_devops_simulator::{
    JobResult, Outcome, Switches,
    world::{ExpiredLockResult, Method, Response},
};
use serde_json::json;

use super::{MINUTE, SECOND, names};
use crate::bench::{Bench, ORGANIZATION, PAT, request};

#[test]
fn messages_are_held_for_fifty_seconds_and_redelivered_until_deleted() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    let wait = bench.held(&session);
    assert_eq!(wait.until, bench.now + 50 * SECOND);
    bench.pass(49 * SECOND);
    let Response::Wait(wait) = bench.world.resume(bench.now, wait) else {
        panic!("ended early")
    };
    bench.pass(SECOND);
    let empty = bench.world.resume(bench.now, wait).reply().unwrap();
    assert_eq!((empty.status, empty.body.len()), (202, 0));

    let wait = bench.held(&session);
    bench.world.take_woken();
    let id = bench.queue(1, &[])[0];
    assert!(
        bench.world.take_woken().contains(&wait.topic),
        "the poll is woken"
    );
    let first = bench.world.resume(bench.now, wait).reply().unwrap().json();
    assert_eq!(first["messageType"], "PipelineAgentJobRequest");
    // The keep-alive loop reads without lastMessageId and drops what it gets.
    let second = bench.ask(
        &request(
            Method::Get,
            &format!("pools/1/messages?sessionId={session}"),
        )
        .with_pat(PAT),
    );
    assert_eq!(
        second.reply().unwrap().json()["messageId"],
        first["messageId"]
    );
    assert_eq!(bench.outcome(id), Outcome::Assigned);
    let taken = bench.take_job(&session);
    assert_eq!(bench.outcome(id), Outcome::Running);
    bench.held(&session);
    bench.world.cancel_job(bench.now, ORGANIZATION, id).unwrap();
    let cancellation = bench.poll(&session, 0).reply().unwrap().json();
    assert_eq!(cancellation["messageType"], "JobCancellation");
    bench.report(&taken, "canceled", false);
    assert_eq!(bench.outcome(id), Outcome::Canceled);
    bench.held(&session);
}

#[test]
fn sessions_conflict_until_they_end_or_expire() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    let session = bench.open_session(agent);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["online"]);
    let conflict = bench.try_session(agent);
    assert_eq!(conflict.status, 409);
    assert_eq!(
        conflict.json()["typeKey"],
        "TaskAgentSessionConflictException"
    );
    assert_eq!(
        conflict.json()["message"],
        "The task agent agent-1 already has an active session for owner host."
    );
    // A job given to an agent that is dead, for which nobody knows yet, waits for the expiry.
    let job = bench.queue(1, &[])[0];
    assert_eq!(bench.outcome(job), Outcome::Assigned);
    bench.pass(299 * SECOND);
    assert_eq!(bench.try_session(agent).status, 409);
    bench.pass(SECOND);
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["offline"]);
    assert_eq!(bench.outcome(job), Outcome::Queued);
    let expired = bench.poll(&session, 0).reply().unwrap();
    assert_eq!(
        (expired.status, &expired.json()["typeKey"]),
        (403, &json!("TaskAgentSessionExpiredException"))
    );
    let session = bench.open_session(agent);
    bench.take_job(&session);
    assert_eq!(bench.outcome(job), Outcome::Running);
    assert_eq!(
        bench
            .call(Method::Delete, &format!("pools/1/sessions/{session}"), None)
            .status,
        200
    );
    assert_eq!(names(&bench.get("pools/1/agents"), "status"), ["offline"]);
    assert_eq!(
        bench.try_session(agent + 1).json()["typeKey"],
        "TaskAgentNotFoundException"
    );
}

#[test]
fn locks_are_renewed_with_the_zero_token_and_run_out_after_ten_minutes() {
    for (switch, result) in [
        (ExpiredLockResult::Abandoned, JobResult::Abandoned),
        (ExpiredLockResult::Failed, JobResult::Failed),
    ] {
        let mut bench = Bench::with(Switches {
            expired_lock_result: switch,
            ..Switches::default()
        });
        let agent = bench.add_agent("agent-1", &[]);
        let session = bench.open_session(agent);
        let id = bench.queue(1, &[])[0];
        let taken = bench.take_job(&session);
        let foreign =
            format!("pools/1/jobrequests/{id}?lockToken=00000000-0000-0000-0000-000000000001");
        let refused = bench.call(Method::Patch, &foreign, Some(&json!({ "requestId": id })));
        assert_eq!(
            refused.json()["typeKey"],
            "TaskAgentJobTokenExpiredException"
        );
        bench.pass(9 * MINUTE);
        assert_eq!(
            bench.renew(id).json()["lockedUntil"],
            "2026-01-01T00:19:00Z"
        );
        bench.pass(599 * SECOND);
        assert_eq!(bench.outcome(id), Outcome::Running);
        bench.pass(SECOND);
        let job = bench.job(id);
        assert_eq!((job.outcome, job.result), (Outcome::Killed, Some(result)));
        assert!(
            job.message
                .unwrap()
                .starts_with("We stopped hearing from agent agent-1.")
        );
        assert_eq!(
            bench.renew(id).json()["typeKey"],
            "TaskAgentJobNotFoundException"
        );
        assert_eq!(bench.report(&taken, "succeeded", false).status, 404);
    }
}

#[test]
fn the_lock_counts_from_receipt_at_the_first_renewal_too() {
    let mut bench = Bench::new();
    let agent = bench.add_agent("agent-1", &[]);
    bench.open_session(agent);
    let id = bench.queue(1, &[])[0];
    assert!(bench.job(id).assigned.is_some() && bench.job(id).received.is_none());
    bench.pass(SECOND);
    bench.renew(id);
    assert_eq!(bench.job(id).received, Some(bench.now));
    let busy = bench.get(&format!(
        "pools/1/agents/{agent}?includeAssignedRequest=true"
    ));
    assert_eq!(busy["assignedRequest"]["requestId"], id);
    let zero = uuid::Uuid::nil();
    let finish = json!({ "requestId": id, "result": "succeeded" });
    let path = format!("pools/1/jobrequests/{id}?lockToken={zero}");
    assert_eq!(
        bench.call(Method::Patch, &path, Some(&finish)).status,
        200,
        "plans below version 8"
    );
    assert_eq!(bench.outcome(id), Outcome::Succeeded);
    let last = bench.get(&format!(
        "pools/1/agents/{agent}?includeLastCompletedRequest=true"
    ));
    assert_eq!(last["lastCompletedRequest"]["requestId"], id);
}
