//! The token, looked for by a step of a job: in what it can read of all processes, and on the disk.

use std::time::Duration;

use crate::{
    container::{Image, Root},
    service::{PAT, Service},
};

/// Prints where the token is. It is put together here, and handed to no program as an argument, so that the search does
/// not find itself.
const SEARCH: &str = r#"
needle=$(printf '%s-of-the-%s' canary token)
processes=0
for file in /proc/[0-9]*/{environ,cmdline}; do
  text=$(tr '\0' ' ' <"$file" 2>/dev/null) || continue
  processes=$((processes + 1))
  [[ $text != *"$needle"* ]] || echo "FOUND in $file"
done
# The search is the first to be seen if it does not work.
[ "$processes" -ge 6 ] || echo "FOUND only $processes files to look at"
tr '\0' '\n' </proc/1/environ | grep -q '^AZP_POOL=' || echo "FOUND no environment of the first process"
grep -rlsFI -f <(printf '%s\n' "$needle") /azp /opt /etc /tmp /run /var 2>/dev/null | sed 's/^/FOUND in /'
echo "search ended"
"#;

/// A start script that keeps the token, as the documented one does: it goes on in a variable, unset, and in a file.
const KEEPING: &str = r#"#!/bin/bash
cd /opt/azure-pipelines-agent
AZP_TOKEN_FILE=/azp/.token
echo -n "$AZP_TOKEN" >"$AZP_TOKEN_FILE"
token=$AZP_TOKEN
unset AZP_TOKEN
./config.sh --unattended --url "$AZP_URL" --pool "$AZP_POOL" --agent "$AZP_AGENT_NAME" --token "$token" || exit
./run.sh "$@"
"#;

/// Lets a job search, and gives what it found.
async fn found(service: &Service, image: Image) -> Vec<String> {
    let image = image.env(stand_in_agent::STEP, SEARCH);
    let output = service.run_one(image, Duration::from_secs(3)).await;
    assert!(output.contains("search ended"), "{output}");
    let lines = output
        .lines()
        .filter_map(|line| line.strip_prefix("FOUND "));
    lines.map(str::to_owned).collect()
}

#[tokio::test]
async fn is_gone_before_a_job_runs() {
    let Some(service) = Service::start().await else {
        return;
    };
    assert_eq!(found(&service, service.image()).await, [""; 0]);
}

/// Shows that the search finds what is there.
#[tokio::test]
async fn is_found_with_a_script_that_keeps_it() {
    let Some(service) = Service::start().await else {
        return;
    };
    let found = found(&service, service.image().entrypoint(KEEPING)).await;
    for place in ["in /proc/1/environ", "in /azp/.token"] {
        assert!(
            found.iter().any(|found| found == place),
            "{place}: {found:?}"
        );
    }
}

#[tokio::test]
async fn is_deleted_with_its_file() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .env("AZP_TOKEN", "")
        .env("AZP_TOKEN_FILE", "/run/token/token")
        .file("run/token/token", format!("{PAT}\n"));
    assert_eq!(found(&service, image).await, [""; 0]);
    assert_eq!(
        service.agents().await.len(),
        1,
        "nothing is left to remove it with"
    );
}

#[tokio::test]
async fn removes_the_registration_where_it_can_still_be_read() {
    let Some(service) = Service::start().await else {
        return;
    };
    let image = service
        .image()
        .env("AZP_TOKEN", "")
        .env("AZP_TOKEN_FILE", "/run/token/token")
        .file("run/token/token", format!("{PAT}\n"))
        .root(Root::Volume);
    assert_eq!(found(&service, image).await, ["in /run/token/token"]);
    assert_eq!(service.agents().await.len(), 0);
}
