//! Service accounts, with the rights that manifests give them: a program that runs as one shows whether these suffice.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec},
    core::v1::ServiceAccount,
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
    core::{DynamicObject, GroupVersionKind, TypeMeta},
    discovery,
};

use crate::ControlPlane;

/// A service account of the control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Longer than anybody looks at a demonstration.
const TOKEN_SECONDS: i64 = 7 * 24 * 3600;

/// The kinds that make a service account and its rights.
const KINDS: [&str; 5] = [
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
];

impl Account {
    /// The name of the user, as in [`crate::AuditEvent::user`].
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }
}

impl ControlPlane {
    /// Makes the service account that is among these objects, with all rights that are among them. Whatever else is there,
    /// is left out. The namespaces have to exist.
    ///
    /// # Errors
    /// When there is not exactly one service account, or the API server refuses an object.
    pub async fn grant(&self, objects: &[DynamicObject]) -> anyhow::Result<Account> {
        let kind = |object: &DynamicObject| object.types.as_ref().map(|types| types.kind.clone());
        let of_kind = |wanted: &'static str| {
            let objects = objects.iter();
            objects.filter(move |object| kind(object).as_deref() == Some(wanted))
        };
        let accounts: Vec<&DynamicObject> = of_kind(KINDS[0]).collect();
        let [account] = accounts[..] else {
            anyhow::bail!("{} service accounts instead of one", accounts.len());
        };
        let account = Account {
            namespace: account.namespace().context("it has no namespace")?,
            name: account.name_any(),
        };
        let client = self.client()?;
        for object in KINDS.into_iter().flat_map(of_kind) {
            apply(&client, object, false).await?;
        }
        Ok(account)
    }

    /// What a client with a service account's rights is made from.
    ///
    /// # Errors
    /// When the account does not exist.
    pub async fn config_of(&self, account: &Account) -> anyhow::Result<Config> {
        self.config_with(self.token_of(account).await?)
    }

    /// A kubeconfig file with a service account's rights. Gone with the control plane.
    ///
    /// # Errors
    /// When the account does not exist, or the file cannot be written.
    pub async fn kubeconfig_of(&self, account: &Account) -> anyhow::Result<PathBuf> {
        let token = self.token_of(account).await?;
        let Account { namespace, name } = account;
        let file = self.folder().join(format!("{namespace}.{name}.kubeconfig"));
        fs::write(&file, self.kubeconfig_with(name, &token)?)?;
        Ok(file)
    }

    async fn token_of(&self, account: &Account) -> anyhow::Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client()?, &account.namespace);
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                expiration_seconds: Some(TOKEN_SECONDS),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let answer = accounts
            .create_token_request(&account.name, &PostParams::default(), &request)
            .await?;
        let token = answer.status.and_then(|status| status.token);
        token.context("the API server gave no token")
    }
}

/// Applies an object as `kubectl apply --server-side` does; on trial, nothing is kept of it.
///
/// # Errors
/// When its kind is not known, or the API server refuses it.
pub async fn apply(
    client: &Client,
    object: &DynamicObject,
    trial: bool,
) -> anyhow::Result<DynamicObject> {
    let types: &TypeMeta = object.types.as_ref().context("an object without a kind")?;
    let (resource, _) = discovery::pinned_kind(client, &GroupVersionKind::try_from(types)?).await?;
    let api: Api<DynamicObject> = match object.namespace() {
        Some(namespace) => Api::namespaced_with(client.clone(), &namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let name = object.name_any();
    let parameters = PatchParams {
        dry_run: trial,
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("control-plane")
    };
    api.patch(&name, &parameters, &Patch::Apply(object))
        .await
        .with_context(|| format!("cannot apply {} {name}", types.kind))
}
