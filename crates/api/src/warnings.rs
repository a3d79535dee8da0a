//! What is legal in a spec and probably not meant, or riskier than it looks. The webhook tells it to whoever writes the
//! RunnerPool; nothing else depends on it.

use crate::{Placeholders, PodTemplate, Profile, RunnerPoolSpec};

/// All warnings of a spec, in the order of its fields, each with the field's path and what to do.
pub fn warnings(spec: &RunnerPoolSpec) -> Vec<String> {
    let mut found = Vec::new();
    if spec.az_do_url.trim_start().starts_with("http://") {
        found.push(
            "spec.azDoUrl: the token is sent unencrypted; use https where Azure DevOps offers it"
                .to_owned(),
        );
    }
    match (spec.capability_aware, spec.capability_images.is_empty()) {
        (true, true) => found.push(
            "spec.capabilityAware: has no effect without capabilityImages; every job gets `image`"
                .to_owned(),
        ),
        (false, false) => found.push(
            "spec.capabilityImages: has no effect unless capabilityAware is true; every job gets `image`"
                .to_owned(),
        ),
        _ => {}
    }
    for (i, profile) in spec.profiles.iter().enumerate() {
        let path = format!("spec.profiles[{i}].podTemplate");
        found.extend(deadline(profile.pod_template.as_ref(), &path));
    }
    let schedules = || spec.schedules.iter();
    let most = schedules().filter_map(|schedule| schedule.max_agents);
    let most = most.fold(spec.max_agents, u32::max);
    let fewest = schedules().filter_map(|schedule| schedule.min_agents);
    let fewest = fewest.fold(spec.min_agents, u32::min);
    for (i, claim) in spec.pvcs.iter().enumerate() {
        if !claim.create_pvc && most > 1 {
            found.push(format!(
                "spec.pvcs[{i}]: all agents mount the claim {}; on more than one node it has to be ReadWriteMany",
                claim.name
            ));
        }
    }
    if spec.all_profiles().iter().any(Profile::is_windows) {
        let for_linux = [
            ("certTrustStore", !spec.cert_trust_store.is_empty()),
            ("initContainer", spec.init_container.is_some()),
            ("securityContext", spec.security_context.is_some()),
        ];
        for (field, _) in for_linux.iter().filter(|(_, given)| *given) {
            found.push(format!(
                "spec.{field}: agents on Windows go without, as it is for Linux only; use podTemplate or their image"
            ));
        }
    }
    let profiles = spec.profiles.iter().map(|profile| profile.min_agents);
    if spec.placeholders == Placeholders::Disabled && fewest + profiles.sum::<u32>() == 0 {
        found.push(
            "spec.placeholders: Azure DevOps fails every job at once while no agent is registered; set minAgents, or Enabled"
                .to_owned(),
        );
    }
    found.extend(deadline(spec.pod_template.as_ref(), "spec.podTemplate"));
    found
}

/// A deadline does not ask whether a job runs.
fn deadline(template: Option<&PodTemplate>, path: &str) -> Option<String> {
    let given = template?.spec.contains_key("activeDeadlineSeconds");
    given.then(|| {
        format!(
            "{path}.spec.activeDeadlineSeconds: Kubernetes ends a Pod of this age even while a job runs in it; leave it out, \
             and give the jobs a timeout in their pipelines"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warned(yaml: &str) -> Vec<String> {
        let base = "pool: p\npatSecretName: pat\nimage: agent:1\n";
        let spec = serde_saphyr::from_str(&format!("{base}{yaml}")).expect("a spec");
        assert_eq!(
            crate::validate(&spec),
            [],
            "what breaks a rule needs no warning"
        );
        warnings(&spec)
    }

    #[test]
    fn what_is_usual_is_not_warned_about() {
        for usual in [
            "",
            "capabilityAware: true\ncapabilityImages: {java: agent:java}",
            "pvcs: [{name: a, mountPath: /a, storage: 1Gi}]",
            "minAgents: 1\nplaceholders: Disabled",
            "placeholders: Disabled\nprofiles: [{name: big, minAgents: 1}]",
            "maxAgents: 1\npvcs: [{name: a, mountPath: /a, createPvc: false}]",
        ] {
            let yaml = format!("azDoUrl: https://dev.azure.com/acme\n{usual}");
            assert_eq!(warned(&yaml), [""; 0], "{usual}");
        }
    }

    #[test]
    fn each_warning_names_its_field() {
        let found = warned(
            "azDoUrl: http://tfs.example.com/Collection\ncapabilityImages: {java: agent:java}\n\
             pvcs: [{name: a, mountPath: /a, storage: 1Gi}, {name: b, mountPath: /b, createPvc: false}]\n\
             placeholders: Disabled",
        );
        let fields: Vec<&str> = found
            .iter()
            .filter_map(|text| text.split(": ").next())
            .collect();
        assert_eq!(
            fields,
            [
                "spec.azDoUrl",
                "spec.capabilityImages",
                "spec.pvcs[1]",
                "spec.placeholders"
            ]
        );
        let found = warned(
            "azDoUrl: https://dev.azure.com/acme\nmaxAgents: 1\nminAgents: 1\nplaceholders: Disabled\n\
             pvcs: [{name: a, mountPath: /a, createPvc: false}]\n\
             schedules: [{name: day, start: 0 8 * * *, duration: 1h, maxAgents: 5, minAgents: 0}]",
        );
        assert_eq!(found.len(), 2, "a schedule has other bounds: {found:?}");
        let found = warned("azDoUrl: https://dev.azure.com/acme\ncapabilityAware: true\n");
        assert!(found[0].starts_with("spec.capabilityAware: "), "{found:?}");
    }

    #[test]
    fn a_deadline_for_pods_is_warned_about_wherever_it_stands() {
        let found = warned(
            "azDoUrl: https://dev.azure.com/acme\npodTemplate: {spec: {activeDeadlineSeconds: 3600}}\n\
             profiles: [{name: a}, {name: b, podTemplate: {spec: {activeDeadlineSeconds: 60}}}]",
        );
        assert_eq!(found.len(), 2, "{found:?}");
        let path = "podTemplate.spec.activeDeadlineSeconds: ";
        assert!(found[0].starts_with(&format!("spec.profiles[1].{path}")));
        assert!(found[1].starts_with(&format!("spec.{path}")));
    }

    #[test]
    fn what_windows_does_not_have_is_told_where_agents_run_on_it() {
        let for_linux = "azDoUrl: https://dev.azure.com/acme\nsecurityContext: {}\n\
             initContainer: {image: busybox}\ncertTrustStore: [{secretName: ca}]\n";
        assert_eq!(warned(for_linux), [""; 0]);
        let windows = "profiles: [{name: win, podTemplate: {spec: {os: {name: windows}}}}]";
        let found = warned(&format!("{for_linux}{windows}"));
        let fields = ["certTrustStore", "initContainer", "securityContext"];
        assert_eq!(found.len(), fields.len());
        for (text, field) in found.iter().zip(fields) {
            assert!(text.starts_with(&format!("spec.{field}: ")), "{text}");
        }
    }
}
