//! A service with a certificate that nobody knows.

use std::{net::SocketAddr, time::Duration};

use azure_devops_simulator::{JobView, Outcome, Simulator};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{
    container,
    service::{ORGANIZATION, POOL, Service, settings},
};

/// Asks the service with each tool that is there, and prints how that went. Looks at what each tool is pointed at, be it
/// there or not.
const ASK: &str = r#"
for name in SSL_CERT_FILE CURL_CA_BUNDLE GIT_SSL_CAINFO REQUESTS_CA_BUNDLE NODE_EXTRA_CA_CERTS; do
  grep -qF 'LINE OF THE AUTHORITY' "${!name}" && echo "POINTED $name"
done
url=${AZP_URL%/*}/_simulator/switches
try() {
  local tool=$1
  shift
  command -v "$tool" >/dev/null || { echo "TRUST $tool absent"; return; }
  if output=$("$@" 2>&1); then echo "TRUST $tool yes"; else echo "TRUST $tool no: $output"; fi
}
git_trusts() { [[ $(git ls-remote "$url" 2>&1) != *certificate* ]]; }
cat >/tmp/Ask.java <<'END'
public class Ask { public static void main(String[] urls) throws Exception { new java.net.URL(urls[0]).openStream().read(); } }
END
try curl curl --silent --show-error --fail "$url"
try git git_trusts
try python3 python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1])' "$url"
try node node -e 'require("https").get(process.argv[1]).on("error", error => { console.log(error); process.exit(1) })' "$url"
try javac java /tmp/Ask.java "$url"
echo "asked all"
"#;

/// Of 127.0.0.1, with its key; good for a hundred years from 2026, as is that of its authority. The last line of the latter
/// has no end, as in many Secrets.
const CERTIFICATE: &str = include_str!("certificates/service.crt");
const KEY: &str = include_str!("certificates/service.key");
const AUTHORITY: &str = include_str!("certificates/ca.crt");
/// Of somebody else.
const UNRELATED: &str = include_str!("certificates/unrelated.crt");

/// A service that speaks TLS only.
async fn service() -> Option<Service> {
    if !container::possible() {
        return None;
    }
    let simulator = Simulator::start_with_tls(
        SocketAddr::from(([127, 0, 0, 1], 0)),
        settings(),
        CertificateDer::from_pem_slice(CERTIFICATE.as_bytes()).unwrap(),
        PrivateKeyDer::from_pem_slice(KEY.as_bytes()).unwrap(),
    );
    Some(Service::of(simulator.await.unwrap()))
}

#[tokio::test]
async fn mounted_certificates_are_trusted_by_the_agent_and_by_tools() {
    let Some(service) = service().await else {
        return;
    };
    // As the operator mounts Secrets: a folder and a file for each.
    let mut container = service
        .image()
        .file("etc/ssl/certs/first/tls.crt", UNRELATED)
        .file("etc/ssl/certs/first.crt", UNRELATED)
        .file(
            "etc/ssl/certs/second/tls.crt",
            format!("{UNRELATED}{AUTHORITY}"),
        )
        .file("etc/ssl/certs/second/ca.crt", UNRELATED)
        .file("etc/ssl/certs/broken.crt", "nothing")
        .env(
            stand_in_agent::STEP,
            ASK.replace("LINE OF THE AUTHORITY", AUTHORITY.lines().nth(2).unwrap()),
        )
        .start();
    // It is registered; the control API is of no use to those who do not trust the certificate.
    container.wrote("Listening for Jobs").await;
    let id = service.queue(Duration::from_secs(300));
    container.wrote("asked all").await;
    let output = container.output();
    let tools: Vec<&str> = output
        .lines()
        .filter(|line| line.starts_with("TRUST "))
        .collect();
    assert_eq!(tools.len(), 5, "{output}");
    let pointed = output.lines().filter(|line| line.starts_with("POINTED "));
    assert_eq!(
        pointed.count(),
        5,
        "of .NET, curl, git, Python and Node.js: {output}"
    );
    for tool in tools {
        assert!(
            tool.ends_with(" yes") || tool.ends_with(" absent"),
            "{output}"
        );
    }
    assert!(output.contains("TRUST curl yes"), "{output}");
    assert!(
        output.contains("/etc/ssl/certs/broken.crt holds no certificate"),
        "{output}"
    );
    let jobs = service
        .simulator
        .with_world(|world| world.jobs(ORGANIZATION, POOL));
    let runs = |job: &JobView| job.id == id && job.outcome == Outcome::Running;
    assert!(jobs.unwrap().iter().any(runs));
    drop(container);
}

#[tokio::test]
async fn a_certificate_that_is_not_mounted_is_not_trusted() {
    let Some(service) = service().await else {
        return;
    };
    let mut container = service
        .image()
        .file("etc/ssl/certs/first/tls.crt", UNRELATED)
        .start();
    assert_eq!(container.ended().await, 69);
    let output = container.output();
    assert!(
        output.contains("is not trusted") && output.contains("certTrustStore"),
        "{output}"
    );
}
