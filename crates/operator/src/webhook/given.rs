//! A certificate that somebody else puts into a folder and renews there: cert-manager, or a person, by a Secret that is
//! mounted.

use std::{path::Path, time::Duration};

use tokio::{fs, time};

use super::key::{self, Key};

/// Between two looks at the folder. The kubelet itself takes up to a minute to bring a change there.
const LOOK_AGAIN: Duration = Duration::from_secs(2);

/// Looks again and again, for ever.
pub(super) async fn follow(folder: &Path, key: &Key) {
    let mut seen = None;
    loop {
        look(folder, key, &mut seen).await;
        time::sleep(LOOK_AGAIN).await;
    }
}

/// What a folder holds, `tls.crt` and `tls.key`, or why it cannot be read.
type Files = Result<[Vec<u8>; 2], String>;

/// Serves with what is there, if it is not what was seen last. What cannot be used leaves the former key in use, and is told
/// once.
async fn look(folder: &Path, key: &Key, seen: &mut Option<Files>) {
    let files = read(folder).await;
    if seen.as_ref() == Some(&files) {
        return;
    }
    let new = files.as_ref().map_err(Clone::clone);
    let new = new.and_then(|[certificates, private]| {
        key::read(certificates, private).map_err(|error| error.to_string())
    });
    match new {
        Ok(new) => {
            key.swap(new);
            tracing::info!(folder = %folder.display(), "Serving webhooks with a new certificate");
        }
        Err(error) => tracing::warn!(
            folder = %folder.display(),
            error,
            former_in_use = key.is_there(),
            "Failed to read the certificate of the webhooks; the folder needs a tls.crt and its tls.key, in PEM"
        ),
    }
    *seen = Some(files);
}

async fn read(folder: &Path) -> Files {
    let file = async |name: &str| {
        let bytes = fs::read(folder.join(name)).await;
        bytes.map_err(|error| format!("{name}: {error}"))
    };
    Ok([file("tls.crt").await?, file("tls.key").await?])
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test may panic")]

    use jiff::Timestamp;

    use super::*;
    use crate::webhook::certificate::{self, Lifetimes};

    #[tokio::test]
    async fn a_new_certificate_is_taken_up_and_a_broken_one_is_not() {
        let made =
            || certificate::make("localhost", Lifetimes::default(), Timestamp::now()).unwrap();
        let (first, second) = (made(), made());
        let name = format!("azdo-webhook-certificate-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).await.unwrap();
        let write = async |data: &std::collections::BTreeMap<String, k8s_openapi::ByteString>,
                           file: &str| {
            fs::write(folder.join(file), &data[file].0).await.unwrap();
        };
        let (key, mut seen) = (Key::default(), None);

        look(&folder, &key, &mut seen).await;
        assert!(!key.is_there(), "the folder is empty");
        write(&first.data(), "tls.crt").await;
        write(&first.data(), "tls.key").await;
        look(&folder, &key, &mut seen).await;
        assert!(!key.swap(first.served()), "the first is served");
        // Half of the change is there, which is no pair.
        write(&second.data(), "tls.crt").await;
        look(&folder, &key, &mut seen).await;
        assert!(!key.swap(first.served()), "the first is served still");
        write(&second.data(), "tls.key").await;
        look(&folder, &key, &mut seen).await;
        assert!(!key.swap(second.served()), "the second is served");
        fs::remove_dir_all(&folder).await.unwrap();
        look(&folder, &key, &mut seen).await;
        assert!(!key.swap(second.served()), "the second is served still");
    }
}
