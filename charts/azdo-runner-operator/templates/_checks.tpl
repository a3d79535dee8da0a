{{/* What values.schema.json cannot say: rules between values, and why. */}}
{{- define "azdo-runner-operator.checks" -}}
{{- with .Values.leaderElection -}}
{{- if ge (int .renewDeadlineSeconds) (int .leaseDurationSeconds) -}}
{{- fail "leaderElection.renewDeadlineSeconds must be less than leaderElection.leaseDurationSeconds: a replica must give up before another may take over" -}}
{{- end -}}
{{- if ge (int .renewSeconds) (int .renewDeadlineSeconds) -}}
{{- fail "leaderElection.renewSeconds must be less than leaderElection.renewDeadlineSeconds: there must be time for a renewal before a replica gives up" -}}
{{- end -}}
{{- end -}}
{{- if and .Values.customCA.configMap .Values.customCA.secret -}}
{{- fail "customCA: give configMap or secret, not both" -}}
{{- end -}}
{{- if and (not .Values.crds.install) (ne (int .Values.poll.intervalSeconds) 5) -}}
{{- fail "poll.intervalSeconds has no effect with crds.install: false, as it stands in the CustomResourceDefinition; set it where that is installed" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.service.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled: the ServiceMonitor finds the replicas by the Service" -}}
{{- end -}}
{{- with .Values.webhook -}}
{{- if and .enabled (eq .certificates.mode "certManager") (not .certificates.issuerRef.name) -}}
{{- fail "webhook.certificates.issuerRef.name: name the issuer of cert-manager that is to make the certificate" -}}
{{- end -}}
{{- if and .enabled (eq .certificates.mode "secret") (not (and .certificates.secretName .certificates.caBundle)) -}}
{{- fail "webhook.certificates: for mode secret, give secretName, and in caBundle the certificates to be trusted for it" -}}
{{- end -}}
{{- end -}}

{{- /* A variable that is there twice: server-side apply refuses it, and one of the two would be without effect. */ -}}
{{- $taken := dict
  "POD_NAME" "the chart"
  "POD_NAMESPACE" "the chart"
  "WATCH_NAMESPACES" "watchNamespaces"
  "LEADER_ELECTION" "the chart, always to true"
  "LEASE_NAME" "the chart"
  "LEASE_NAMESPACE" "the chart"
  "LEASE_DURATION_SECONDS" "leaderElection.leaseDurationSeconds"
  "LEASE_RENEW_DEADLINE_SECONDS" "leaderElection.renewDeadlineSeconds"
  "LEASE_RENEW_SECONDS" "leaderElection.renewSeconds"
  "LOG_FORMAT" "logging.format"
  "LOG_LEVEL" "logging.level"
  "WEBHOOK_CERTIFICATE_DIR" "webhook.certificates"
  "WEBHOOK_SECRET" "webhook.certificates"
  "WEBHOOK_HOST" "webhook.certificates"
  "WEBHOOK_CONFIGURATION" "webhook.certificates"
-}}
{{- if or .Values.customCA.configMap .Values.customCA.secret -}}
{{- $_ := set $taken "SSL_CERT_DIR" "customCA" -}}
{{- end -}}
{{- range $value, $name := dict "https" "HTTPS_PROXY" "http" "HTTP_PROXY" "noProxy" "NO_PROXY" -}}
{{- if get $.Values.proxy $value -}}
{{- $_ := set $taken $name (printf "proxy.%s" $value) -}}
{{- end -}}
{{- end -}}
{{- $seen := dict -}}
{{- range .Values.extraEnv -}}
{{- if hasKey $taken .name -}}
{{- fail (printf "extraEnv: %s is set by %s" .name (get $taken .name)) -}}
{{- end -}}
{{- if hasKey $seen .name -}}
{{- fail (printf "extraEnv: %s is there twice" .name) -}}
{{- end -}}
{{- $_ := set $seen .name true -}}
{{- end -}}
{{- end -}}
