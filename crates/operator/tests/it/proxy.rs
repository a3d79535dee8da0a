//! Proxies: those that the environment names are for Azure DevOps.

use std::{fs, path::Path, time::Duration};

use serde_json::json;
use tokio::{net::TcpListener, process::Command, time};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubernetes_is_asked_directly() {
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join("proxy-kubeconfig.json");
    for variable in ["HTTPS_PROXY", "https_proxy"] {
        let kubernetes = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let kubeconfig = json!({
            "current-context": "test",
            "clusters": [{ "name": "test", "cluster": { "server": url(&kubernetes) } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": "test" } }],
            "users": [{ "name": "test", "user": {} }],
        });
        fs::write(&file, kubeconfig.to_string()).unwrap();
        let mut operator = Command::new(env!("CARGO_BIN_EXE_azdo-runner-operator"))
            .args(["run", "--health-address", "127.0.0.1:0"])
            .env_clear()
            .env("KUBECONFIG", &file)
            .env(variable, url(&proxy))
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        tokio::select! {
            asked = kubernetes.accept() => drop(asked.unwrap()),
            _ = proxy.accept() => panic!("{variable}: the proxy was asked"),
            ended = operator.wait() => panic!("{variable}: the operator ended: {ended:?}"),
            () = time::sleep(Duration::from_secs(60)) => panic!("{variable}: nobody was asked"),
        }
    }
}
