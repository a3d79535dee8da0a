//! Tokens that can be told apart from everything else, and the places where they must not be seen.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{Read as _, Seek as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{task::AbortHandle, time};

/// Where the kubelet has the logs of containers.
const LOGS: &str = "/var/log/pods";
/// Between two looks for new logs: less than a Pod lives.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// All tokens, and the logs of all containers, also of those that are gone.
#[derive(Debug)]
pub(super) struct Canaries {
    tokens: Mutex<Vec<(String, String)>>,
    logs: Arc<Mutex<BTreeMap<PathBuf, File>>>,
    collector: AbortHandle,
}

impl Canaries {
    /// Begins to collect logs.
    pub(super) fn start() -> Self {
        let logs = Arc::new(Mutex::new(BTreeMap::new()));
        let opened = Arc::clone(&logs);
        let collector = tokio::spawn(async move {
            loop {
                open_new(
                    Path::new(LOGS),
                    &mut opened.lock().unwrap_or_else(PoisonError::into_inner),
                );
                time::sleep(LOOK_AGAIN).await;
            }
        });
        Self {
            tokens: Mutex::default(),
            logs,
            collector: collector.abort_handle(),
        }
    }

    /// A new token, which looks like a real one.
    pub(super) fn make(&self, owner: &str) -> String {
        let seed = format!("canary{}", owner.replace('-', ""));
        let token: String = seed.chars().chain("x0".chars().cycle()).take(52).collect();
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.push((owner.to_owned(), token.clone()));
        token
    }

    /// Whose tokens are in a text.
    pub(super) fn found_in(&self, text: &str) -> Vec<String> {
        let tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let found = tokens
            .iter()
            .filter(|(_, token)| text.contains(token.as_str()));
        found.map(|(owner, _)| owner.clone()).collect()
    }

    /// The logs of all containers so far, by file.
    pub(super) fn logs(&self) -> Result<BTreeMap<PathBuf, String>> {
        let mut logs = self.logs.lock().unwrap_or_else(PoisonError::into_inner);
        let texts = logs.iter_mut().map(|(path, file)| {
            let mut bytes = Vec::new();
            file.rewind()
                .and_then(|()| file.read_to_end(&mut bytes))
                .with_context(|| format!("cannot read {}", path.display()))?;
            Ok((path.clone(), String::from_utf8_lossy(&bytes).into_owned()))
        });
        texts.collect()
    }

    /// Writes the logs into a folder, a file for each container.
    pub(super) fn write_logs(&self, folder: &Path) -> Result<()> {
        for (path, text) in self.logs()? {
            let name = path.strip_prefix(LOGS).unwrap_or(&path);
            let name = name.to_string_lossy().replace('/', ".");
            fs::write(folder.join(name), text).context("cannot write the log of a container")?;
        }
        Ok(())
    }
}

impl Drop for Canaries {
    fn drop(&mut self) {
        self.collector.abort();
    }
}

/// Opens each log that is not open yet. What is open can be read when it is deleted, too.
fn open_new(folder: &Path, logs: &mut BTreeMap<PathBuf, File>) {
    // A folder that is just being deleted has nothing more to tell.
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            open_new(&path, logs);
        } else if !logs.contains_key(&path)
            && let Ok(file) = File::open(&path)
        {
            logs.insert(path, file);
        }
    }
}
