//! The `RunnerPool` custom resource: its types, defaults, names and rules.
//!
//! Everything here is pure data and pure functions. The crate never talks to Kubernetes or Azure DevOps and
//! knows nothing of how a RunnerPool is carried out.

pub mod conditions;
pub mod names;
mod organization;
mod pod_template;
mod profile;
mod schedule;
mod spec;
mod status;
mod validation;
mod warnings;

pub use organization::{OrganizationUrl, OrganizationUrlError};
pub use pod_template::{PodTemplate, PodTemplateMetadata};
pub use profile::{Profile, ProfileSpec};
pub use schedule::{InForce, in_force};
pub use spec::{
    CertificateSource, ClaimTemplate, ExtraEnv, ImagePullPolicy, InitContainer, Mode, Placeholders,
    RunnerPool, RunnerPoolSpec, Schedule, SecurityContext, TerminatedPods,
};
pub use status::{
    AgentIndexStatus, AgentPoolStatus, AgentStatus, ConnectionStatus, FinishedRequest,
    RunnerPoolStatus, ScheduleStatus,
};
pub use validation::{RESERVED_ENV, Violation, validate, validate_with};
pub use warnings::warnings;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The custom resource definition of `RunnerPool`, as the API server takes it without a warning.
///
/// # Panics
/// Never: what is converted is plain data and stays of the same shape.
pub fn crd() -> CustomResourceDefinition {
    let crd = RunnerPool::crd();
    let mut value = serde_json::to_value(crd).expect("a CRD is plain data and always serialises");
    drop_unsigned_formats(&mut value);
    serde_json::from_value(value).expect("removing a format keeps a CRD a CRD")
}

/// The API server knows the formats `int32` and `int64` only and warns about any other; `minimum: 0` says the rest.
fn drop_unsigned_formats(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(fields) => {
            if fields
                .get("format")
                .and_then(|format| format.as_str())
                .is_some_and(|format| format.starts_with("uint"))
            {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_unsigned_formats);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(drop_unsigned_formats),
        _ => {}
    }
}
