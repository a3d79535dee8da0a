//! The examples of the README that users of the former operator have: each is valid and reads as it did.

use api::{ImagePullPolicy, RunnerPool, SecurityContext, validate};

use crate::{
    rules::{fields, spec},
    schema::{cel, schema, structure},
};

const QUICK_START: &str = "
apiVersion: devops.opentools.mf/v1
kind: RunnerPool
metadata:
  name: my-runners
spec:
  azDoUrl: https://dev.azure.com/my-org
  pool: my-pool
  patSecretName: pat-token
  image: ghcr.io/mahmoudk1000/azdo-runner-operator/agent:main
  maxAgents: 5
  minAgents: 1
";

const BASIC: &str = "
apiVersion: devops.opentools.mf/v1
kind: RunnerPool
metadata:
  name: basic-runners
spec:
  azDoUrl: https://dev.azure.com/my-org
  pool: default
  patSecretName: pat-token
  image: ghcr.io/mahmoudk1000/azdo-runner-operator/agent:main
  maxAgents: 3
";

const CERTIFICATES: &str = "
apiVersion: devops.opentools.mf/v1
kind: RunnerPool
metadata:
  name: corporate-runners
spec:
  azDoUrl: https://dev.azure.com/my-org
  pool: secure-pool
  patSecretName: pat-token
  image: ghcr.io/mahmoudk1000/azdo-runner-operator/agent:main
  maxAgents: 5
  minAgents: 1
  certTrustStore:
    - secretName: corporate-ca-bundle
    - secretName: proxy-certificates
  extraEnv:
    - name: SSL_CERT_DIR
      value: \"/etc/ssl/certs\"
";

const ADVANCED: &str = "
apiVersion: devops.opentools.mf/v1
kind: RunnerPool
metadata:
  name: advanced-runners
spec:
  azDoUrl: https://dev.azure.com/my-org
  pool: production
  patSecretName: pat-token
  image: ghcr.io/mahmoudk1000/azdo-runner-operator/agent:main
  maxAgents: 10
  minAgents: 2
  ttlIdleSeconds: 300
  capabilityAware: true
  capabilityImages:
    docker: my-registry/agent:docker
    kubernetes: my-registry/agent:k8s
  initContainer:
    image: busybox:latest
  securityContext:
    runAsUser: 1000
    runAsGroup: 1000
    fsGroup: 1000
  certTrustStore:
    - secretName: corporate-ca
    - secretName: proxy-cert
    - secretName: internal-root-ca
  extraEnv:
    - name: BUILD_ENVIRONMENT
      value: production
    - name: API_KEY
      valueFrom:
        secretKeyRef:
          name: api-secrets
          key: production-key
  pvcs:
    - name: workspace
      mountPath: /workspace
      storage: 20Gi
      storageClass: premium-ssd
      createPvc: true
      deleteWithAgent: false
    - name: docker-cache
      mountPath: /var/lib/docker
      storage: 50Gi
      createPvc: true
      deleteWithAgent: true
";

const SNIPPETS: [&str; 5] = [
    "
extraEnv:
  - name: CUSTOM_VAR
    value: \"custom-value\"
  - name: SECRET_VAR
    valueFrom:
      secretKeyRef:
        name: my-secret
        key: secret-key
",
    "
pvcs:
  - name: workspace
    mountPath: /workspace
    storage: 10Gi
    storageClass: fast-ssd
    createPvc: true
    deleteWithAgent: false  # Preserve storage for reuse
  - name: cache
    mountPath: /cache
    storage: 5Gi
    createPvc: true
    deleteWithAgent: true   # Remove with agent
",
    "
initContainer:
  image: busybox:latest
securityContext:
  runAsUser: 1000    # UID for agent container
  runAsGroup: 1000   # GID for agent container
  fsGroup: 1000      # File system group ownership
",
    "
certTrustStore:
  - secretName: my-ca-cert
  - secretName: company-root-ca
  - secretName: proxy-cert
",
    "
capabilityAware: true
capabilityImages:
  java: my-registry/agent:java
  nodejs: my-registry/agent:nodejs
  dotnet: my-registry/agent:dotnet
",
];

fn read(yaml: &str) -> RunnerPool {
    let pool: RunnerPool = serde_saphyr::from_str(yaml).unwrap();
    assert_eq!(validate(&pool.spec), [], "{yaml}");
    let object = serde_saphyr::from_str(yaml).unwrap();
    assert_eq!(structure(&schema(), &object), [""; 0], "{yaml}");
    assert_eq!(cel(&schema(), &object), [""; 0], "{yaml}");
    pool
}

#[test]
fn every_example_is_valid() {
    for yaml in [QUICK_START, BASIC, CERTIFICATES, ADVANCED] {
        read(yaml);
    }
    for snippet in SNIPPETS {
        assert_eq!(fields(&spec(snippet)), [""; 0], "{snippet}");
    }
}

#[test]
fn the_basic_example_has_the_documented_defaults() {
    let spec = read(BASIC).spec;
    assert_eq!((spec.max_agents, spec.min_agents), (3, 0));
    assert_eq!((spec.ttl_idle_seconds, spec.poll_interval_seconds), (0, 5));
    assert_eq!(spec.image_pull_policy, ImagePullPolicy::IfNotPresent);
    assert!(!spec.capability_aware && spec.capability_images.is_empty());
    assert_eq!((spec.init_container, spec.security_context), (None, None));
}

#[test]
fn the_advanced_example_reads_as_written() {
    let spec = read(ADVANCED).spec;
    assert_eq!(spec.ttl_idle_seconds, 300);
    assert_eq!(spec.capability_images["docker"], "my-registry/agent:docker");
    assert_eq!(spec.init_container.unwrap().image, "busybox:latest");
    assert_eq!(spec.security_context, Some(SecurityContext::default()));
    assert_eq!(spec.cert_trust_store[2].secret_name, "internal-root-ca");
    let [plain, secret] = &spec.extra_env[..] else {
        unreachable!("two variables are written")
    };
    assert_eq!(plain.value.as_deref(), Some("production"));
    let from = secret.value_from.as_ref().unwrap();
    assert_eq!(from.secret_key_ref.as_ref().unwrap().key, "production-key");
    let [workspace, cache] = &spec.pvcs[..] else {
        unreachable!("two claims are written")
    };
    assert_eq!(workspace.storage_class.as_deref(), Some("premium-ssd"));
    assert!(!workspace.delete_with_agent && cache.delete_with_agent);
    assert!(workspace.create_pvc && !workspace.optional);
}
