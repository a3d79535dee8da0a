//! What is printed at the end, and with `--keep` before it.

use std::{path::Path, time::Duration};

use crate::{
    demo::{
        figures::{Figures, Spread},
        world::{Leftovers, World},
    },
    output,
};

pub(crate) fn print(figures: &Figures, elapsed: Duration, picture: &Path, complaints: &[String]) {
    output::line(format_args!(
        "\nSummary, after {}",
        output::duration(elapsed)
    ));
    for (what, value) in lines(figures) {
        output::line(format_args!("  {what:<36} {value}"));
    }
    output::line(format_args!(
        "  {:<36} {}",
        "picture of queue and agents",
        picture.display()
    ));
    if complaints.is_empty() {
        output::line(
            "\nAll is well: no job was lost, no maximum was exceeded and nothing was left over.",
        );
    } else {
        output::line("\nNot all is well:");
        output::line(format_args!("  {}", complaints.join("\n  ")));
    }
}

/// How to use what stays up.
pub(crate) fn explain(world: &World) {
    let (url, agent_pools) = world.agent_pools();
    output::line(
        "\nAll jobs are finished, and everything stays up until Ctrl-C. In another terminal:\n",
    );
    output::line(format_args!(
        "  export KUBECONFIG={}",
        world.kubeconfig().display()
    ));
    output::line("  kubectl get runnerpools --watch");
    output::line("  kubectl get pods --watch");
    output::line("\n  # queue jobs and look at them; the agent pools are listed below");
    output::line(format_args!("  export AZURE_DEVOPS_SIMULATOR_URL={url}"));
    if let Some((organization, pool)) = agent_pools.first() {
        let simulator = "cargo run --package azure-devops-simulator --";
        let target = format!("jobs --organization {organization} --pool {pool}");
        output::line(format_args!(
            "  {simulator} {target} queue --count 5 --duration 20s"
        ));
        output::line(format_args!("  {simulator} {target} list"));
    }
    output::line("\n  agent pools:");
    for (organization, pool) in agent_pools {
        output::line(format_args!(
            "    --organization {organization} --pool {pool}"
        ));
    }
    output::line(format_args!(
        "\n  the operator's log: {}",
        world.operator_log().display()
    ));
}

fn lines(figures: &Figures) -> Vec<(String, String)> {
    let Figures {
        jobs_queued,
        jobs_finished,
        jobs_canceled,
        jobs_failed,
        jobs_killed,
        jobs_refused,
        max_agents_exceeded: _, // told by the agents of each RunnerPool
        agents,
        queued_to_pod_seconds,
        queued_to_started_seconds,
        azure_devops_requests_per_poll,
        azure_devops_polls,
        leftovers,
        operator_rss_bytes,
        burst,
    } = figures;
    let Leftovers {
        leftover_runner_pools,
        leftover_registrations,
        leftover_pods,
        leftover_claims,
        kept_claims,
    } = leftovers;
    let mut lines = Vec::new();
    let mut add = |what: &str, value: String| lines.push((what.to_owned(), value));
    let canceled = match jobs_canceled {
        0 => String::new(),
        canceled => format!(" ({canceled} cancelled by a user)"),
    };
    add(
        "jobs finished",
        format!("{jobs_finished} of {jobs_queued} queued{canceled}"),
    );
    add(
        "jobs killed, refused, failed",
        format!("{jobs_killed}, {jobs_refused}, {jobs_failed}"),
    );
    add(
        "queued to Pod created",
        format!("{}; those that had room", spread(queued_to_pod_seconds)),
    );
    add(
        "queued to started",
        format!(
            "{}; waits for room included",
            spread(queued_to_started_seconds)
        ),
    );
    for (runner_pool, agents) in agents {
        add(
            &format!("most agents of {runner_pool}"),
            format!("{} of at most {}", agents.most, agents.max),
        );
    }
    if let Some(burst) = burst {
        let (look, first) = (
            burst.look_to_last_pod_seconds,
            burst.first_to_last_pod_seconds,
        );
        add(
            "burst",
            format!(
                "{} Pods; from the look that saw the jobs to the last Pod {look:.2} s",
                burst.pods
            ),
        );
        add("", format!("from the first Pod to the last {first:.2} s"));
    }
    add(
        "requests to Azure DevOps per poll",
        format!("{azure_devops_requests_per_poll:.2} ({azure_devops_polls} polls)"),
    );
    add(
        "operator's memory, most",
        format!("{} MiB", operator_rss_bytes >> 20),
    );
    add(
        "left over",
        format!(
            "{leftover_runner_pools} RunnerPools, {leftover_registrations} registrations, {leftover_pods} Pods, \
             {leftover_claims} claims"
        ),
    );
    add(
        "claims kept (deleteWithAgent: false)",
        kept_claims.to_string(),
    );
    lines
}

fn spread(spread: &Spread) -> String {
    let Spread {
        count,
        p50,
        p95,
        max,
    } = spread;
    format!("p50 {p50:.2} s, p95 {p95:.2} s, max {max:.2} s ({count} jobs)")
}
