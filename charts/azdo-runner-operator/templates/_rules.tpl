{{/* Every verb that the operator uses where its RunnerPools are, and no other; a test compares with the audit log. */}}
{{- define "azdo-runner-operator.rules" -}}
- apiGroups: [devops.opentools.mf]
  resources: [runnerpools]
  verbs: [list, watch, patch] # patch: finalizers
- apiGroups: [devops.opentools.mf]
  resources: [runnerpools/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [pods/status]
  verbs: [patch] # declares Pods failed that do not start
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete] # patch: owners of claims that are kept
- apiGroups: [""]
  resources: [secrets]
  verbs: [get] # by name; never listed or watched
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "azdo-runner-operator.subjects" -}}
- kind: ServiceAccount
  name: {{ include "azdo-runner-operator.serviceAccountName" . }}
  namespace: {{ .Release.Namespace }}
{{- end -}}
