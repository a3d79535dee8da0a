{{/* Names and labels. Those of the former operator's chart, so that its releases can be upgraded. */}}

{{- define "azdo-runner-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "azdo-runner-operator.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $full .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Objects without a namespace carry it in their name: releases of one name in two namespaces do not meet. */}}
{{- define "azdo-runner-operator.clusterName" -}}
{{ .Release.Namespace }}:{{ include "azdo-runner-operator.fullname" . }}
{{- end -}}

{{/* The Service of the webhooks, and the Secret of the operator's own certificates. */}}
{{- define "azdo-runner-operator.webhookName" -}}
{{ include "azdo-runner-operator.fullname" . | trunc 55 | trimSuffix "-" }}-webhook
{{- end -}}

{{/* Their configurations have no namespace; and their names may hold no colon. */}}
{{- define "azdo-runner-operator.webhookConfigurationName" -}}
{{ include "azdo-runner-operator.fullname" . }}.{{ .Release.Namespace }}
{{- end -}}

{{- define "azdo-runner-operator.webhookHost" -}}
{{ include "azdo-runner-operator.webhookName" . }}.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* Whether the operator makes its own certificates; empty if not. */}}
{{- define "azdo-runner-operator.ownCertificates" -}}
{{- if and .Values.webhook.enabled (eq .Values.webhook.certificates.mode "own") }}true{{ end -}}
{{- end -}}

{{/* The Secret that the certificate of the webhooks is mounted from; empty if it is not. */}}
{{- define "azdo-runner-operator.webhookCertificate" -}}
{{- if .Values.webhook.enabled -}}
{{- with .Values.webhook.certificates -}}
{{- if eq .mode "certManager" }}{{ include "azdo-runner-operator.webhookName" $ }}{{ end -}}
{{- if eq .mode "secret" }}{{ .secretName }}{{ end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The Service of the metrics, and the ServiceMonitor, which finds it by this label besides the others. */}}
{{- define "azdo-runner-operator.metricsName" -}}
{{ include "azdo-runner-operator.fullname" . | trunc 55 | trimSuffix "-" }}-metrics
{{- end -}}

{{- define "azdo-runner-operator.metricsLabel" -}}
app.kubernetes.io/component: metrics
{{- end -}}

{{- define "azdo-runner-operator.serviceAccountName" -}}
{{- $made := ternary (include "azdo-runner-operator.fullname" .) "default" .Values.serviceAccount.create -}}
{{- default $made .Values.serviceAccount.name -}}
{{- end -}}

{{- define "azdo-runner-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "azdo-runner-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "azdo-runner-operator.labels" -}}
{{ include "azdo-runner-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}
