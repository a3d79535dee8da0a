//! What is legal in a spec and probably not meant, or riskier than it looks. The webhook tells it to whoever writes the
//! RunnerPool; nothing else depends on it.

use crate::{Placeholders, RunnerPoolSpec};

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
    for (i, claim) in spec.pvcs.iter().enumerate() {
        if !claim.create_pvc && spec.max_agents > 1 {
            found.push(format!(
                "spec.pvcs[{i}]: all agents mount the claim {}; on more than one node it has to be ReadWriteMany",
                claim.name
            ));
        }
    }
    if spec.placeholders == Placeholders::Disabled && spec.min_agents == 0 {
        found.push(
            "spec.placeholders: Azure DevOps fails every job at once while no agent is registered; set minAgents, or Enabled"
                .to_owned(),
        );
    }
    found
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
        let found = warned("azDoUrl: https://dev.azure.com/acme\ncapabilityAware: true\n");
        assert!(found[0].starts_with("spec.capabilityAware: "), "{found:?}");
    }
}
