//! The stories: what users go through, one after the other, on one cluster.

mod install;
mod jobs;
mod moving;
mod recipes;
mod refusal;
mod releases;
mod survival;

use std::time::Instant;

use anyhow::{Result, ensure};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    rights::{self, Chapter},
    world::{NAMESPACE, World},
};
use crate::output;

/// How it went.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) told: usize,
    pub(super) failed: Vec<&'static str>,
}

/// Tells all stories whose name has this in it, and those that others need.
pub(super) async fn tell(world: &World, wanted: &str) -> Result<Told> {
    let mut book = Book {
        wanted,
        told: Told::default(),
        chapters: Vec::new(),
    };
    let before = releases::inventory(world).await?;
    book.always("install", install::install(world)).await;
    if !book.told.failed.is_empty() {
        return Ok(book.told); // all others need it
    }
    book.story("quick start", install::quick_start(world)).await;
    book.story("refused RunnerPool", refusal::refusal(world))
        .await;
    book.story("from 0 to 5 to 0", jobs::scale(world)).await;
    book.story("kept data", jobs::storage(world)).await;
    book.story("certificates", jobs::trust(world)).await;
    book.story("recipes", recipes::recipes(world)).await;
    book.story("deleted Pod", survival::deletion(world)).await;
    book.story("drained node", survival::drain(world)).await;
    book.story("upgraded operator", survival::upgrade(world))
        .await;
    book.story("forced deletion", install::forced_deletion(world))
        .await;
    book.story("moving over", moving::moving(world)).await;
    book.story("watched namespaces", releases::namespaces(world))
        .await;
    book.story("secret token", jobs::token(world)).await;
    book.story("uninstall", releases::uninstall(world, &before))
        .await;
    book.story("new schema", releases::schema(world)).await;
    book.story("without Helm", releases::plain(world)).await;
    // Once more, as that story was not the last.
    book.always("secret token, in the end", async { jobs::logs(world) })
        .await;
    if wanted.is_empty() {
        let chapters = std::mem::take(&mut book.chapters);
        book.always("rights", async { rights::audit(world, &chapters) })
            .await;
        book.always("commands of the guides", async { commands(world) })
            .await;
    }
    Ok(book.told)
}

/// All commands of the guides were run in one story or another.
fn commands(world: &World) -> Result<String> {
    let (run, left) = world.guides.run();
    ensure!(left.is_empty(), "nobody ran: {left:#?}");
    Ok(format!("{run} were run"))
}

/// The uids of the operator's Pods that are not about to go.
async fn operators(world: &World) -> Result<Vec<Value>> {
    let pods = operator_pods(world).await?;
    let pods = pods.iter();
    let staying = pods.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    Ok(staying.map(|pod| pod["metadata"]["uid"].clone()).collect())
}

/// All Pods of the operator.
async fn operator_pods(world: &World) -> Result<Vec<Value>> {
    let selector = "app.kubernetes.io/name=azdo-runner-operator";
    let pods = world
        .get(&["pods", "--namespace", NAMESPACE, "--selector", selector])
        .await?;
    Ok(pods["items"].as_array().cloned().unwrap_or_default())
}

struct Book<'a> {
    wanted: &'a str,
    told: Told,
    chapters: Vec<Chapter>,
}

impl Book<'_> {
    async fn story(&mut self, name: &'static str, story: impl Future<Output = Result<String>>) {
        if name.contains(self.wanted) {
            self.always(name, story).await;
        }
    }

    async fn always(&mut self, name: &'static str, story: impl Future<Output = Result<String>>) {
        let (begin, since) = (Instant::now(), Timestamp::now());
        let end = story.await;
        self.chapters.push(Chapter {
            story: name,
            since,
            until: Timestamp::now(),
        });
        let time = output::duration(begin.elapsed());
        self.told.told += 1;
        match end {
            Ok(remark) => {
                output::line(format!("ok      {name:<28} {time:>9}   {remark}").trim_end());
            }
            Err(error) => {
                self.told.failed.push(name);
                output::line(format_args!("FAILED  {name:<28} {time:>9}\n{error:#}"));
            }
        }
    }
}
