//! Who may talk to the API server, and the files that say so.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, anyhow};
use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use serde_json::json;

/// A user of the control plane. All of them may do everything; there are several so that the audit log tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// Whoever runs the test or types kubectl.
    Admin,
    /// The operator.
    Operator,
    /// The hollow node.
    HollowNode,
    /// A node with containers: its kubelet and kube-proxy, and the scheduler.
    Node,
    /// Somebody who deletes what belongs to others.
    Stranger,
    /// kube-controller-manager itself. Its controllers use their own service accounts in `kube-system`.
    ControllerManager,
}

impl User {
    const ALL: [Self; 6] = [
        Self::Admin,
        Self::Operator,
        Self::HollowNode,
        Self::Node,
        Self::Stranger,
        Self::ControllerManager,
    ];

    /// The name of the user, as in [`crate::AuditEvent::user`].
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Operator => "operator",
            Self::HollowNode => "hollow-node",
            Self::Node => "node",
            Self::Stranger => "stranger",
            Self::ControllerManager => "kube-controller-manager",
        }
    }
}

/// The credentials files of one control plane, all in its own folder and gone with it.
#[derive(Debug)]
pub(crate) struct Credentials {
    folder: PathBuf,
    /// One secret for all users: the token is `{user}.{secret}`.
    secret: String,
}

impl Credentials {
    /// Writes what the API server needs before it starts: the tokens and the service accounts' key pair.
    pub(crate) fn create(folder: &Path) -> anyhow::Result<Self> {
        let credentials = Self {
            folder: folder.to_owned(),
            secret: uuid::Uuid::new_v4().simple().to_string(),
        };
        let tokens: String = User::ALL
            .map(|user| {
                format!(
                    "{},{1},{1},\"system:masters\"\n",
                    credentials.token(user),
                    user.name()
                )
            })
            .concat();
        fs::write(credentials.tokens(), tokens)?;
        let (private, public) = key_pair()?;
        fs::write(credentials.private_key(), private)?;
        fs::write(credentials.public_key(), public)?;
        Ok(credentials)
    }

    /// Writes a kubeconfig for each user; `server` is the URL of the API server, whose certificate is here by now.
    pub(crate) fn write_kubeconfigs(&self, server: &str) -> anyhow::Result<()> {
        for user in User::ALL {
            let kubeconfig = self.kubeconfig_with(server, user.name(), &self.token(user))?;
            fs::write(self.kubeconfig(user), kubeconfig)?;
        }
        Ok(())
    }

    /// A kubeconfig of a user with this token.
    pub(crate) fn kubeconfig_with(
        &self,
        server: &str,
        user: &str,
        token: &str,
    ) -> anyhow::Result<String> {
        let certificate =
            fs::read(self.certificate()).context("the API server wrote no certificate")?;
        // JSON is YAML, and needs no second serializer.
        let kubeconfig = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": server, "certificate-authority-data": BASE64.encode(&certificate),
            }}],
            "users": [{ "name": user, "user": { "token": token } }],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user } }],
            "current-context": "test",
        });
        Ok(format!("{kubeconfig:#}\n"))
    }

    pub(crate) fn token(&self, user: User) -> String {
        format!("{}.{}", user.name(), self.secret)
    }

    pub(crate) fn kubeconfig(&self, user: User) -> PathBuf {
        self.folder.join(format!("{}.kubeconfig", user.name()))
    }

    pub(crate) fn tokens(&self) -> PathBuf {
        self.folder.join("tokens.csv")
    }

    pub(crate) fn private_key(&self) -> PathBuf {
        self.folder.join("service-account.key")
    }

    pub(crate) fn public_key(&self) -> PathBuf {
        self.folder.join("service-account.pub")
    }

    /// Where the API server writes its own serving certificate and key.
    pub(crate) fn certificates(&self) -> PathBuf {
        self.folder.join("certificates")
    }

    /// The serving certificate followed by the authority that signed it.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.certificates().join("apiserver.crt")
    }

    /// Whether the API server has written its certificate; the key comes after it.
    pub(crate) fn certificate_written(&self) -> bool {
        self.certificates().join("apiserver.key").exists()
    }
}

/// A fresh ECDSA P-256 key pair in PEM: private (PKCS #8) and public (`SubjectPublicKeyInfo`).
fn key_pair() -> anyhow::Result<(String, String)> {
    /// Everything that precedes the point in a `SubjectPublicKeyInfo` of a P-256 key (RFC 5480): two sequences, the
    /// identifiers id-ecPublicKey and prime256v1, and the head of a bit string of 66 bytes.
    const PUBLIC_KEY_HEAD: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let random = SystemRandom::new();
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
        .map_err(|error| anyhow!("cannot make a key: {error}"))?;
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref(), &random)
        .map_err(|error| anyhow!("cannot read the key just made: {error}"))?;
    let public = [&PUBLIC_KEY_HEAD, pair.public_key().as_ref()].concat();
    Ok((
        pem("PRIVATE KEY", private.as_ref()),
        pem("PUBLIC KEY", &public),
    ))
}

fn pem(label: &str, der: &[u8]) -> String {
    // RFC 7468 wants lines of 64 characters: 48 bytes each.
    let lines: String = der
        .chunks(48)
        .map(|chunk| BASE64.encode(chunk) + "\n")
        .collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}
