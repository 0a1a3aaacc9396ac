{{/* Labels of every object. Call with (dict "root" $ "component" "control"). */}}
{{- define "seine.labels" -}}
{{ include "seine.selector" . }}
app.kubernetes.io/part-of: seine
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end }}

{{/* What selects a component's pods; never changed, since a selector can't be. */}}
{{- define "seine.selector" -}}
app.kubernetes.io/name: seine-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end }}

{{/* An image's reference: the digest where one is given, else the tag. */}}
{{- define "seine.image" -}}
{{- $image := .root.Values.image -}}
{{- $digest := index $image.digests .component -}}
{{- $name := printf "seine-%s" .component -}}
{{- if eq .component "cli" }}{{ $name = "seine" }}{{ end -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ $name }}
{{- if $digest }}@{{ $digest }}{{ else }}:{{ $image.tag | default .root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "seine.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Which pod this is, as each program wants to be told. */}}
{{- define "seine.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
- name: POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
{{- end }}

{{/* The DNS names of the control plane's certificate; the first is the one that proxies ask for. */}}
{{- define "seine.serverName" -}}
seine-control.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "seine.extraArgs" -}}
{{- range . }}
- {{ . | quote }}
{{- end }}
{{- end }}

{{- define "seine.hook" -}}
helm.sh/hook: {{ .hook }}
helm.sh/hook-weight: {{ .weight | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}

{{/*
Exceptions from scanners (checkov, kube-score), each with its reason, in the place where a scanner of the installed
objects finds it, too. Call with a list of lines "ID=reason"; those of `always` hold for every container of ours.
*/}}
{{- define "seine.exceptions" -}}
{{- $always := list
  "CKV_K8S_11=no CPU limit: throttling shows as latency of every connection; requests share the CPU"
  "CKV_K8S_15=a version's tag never moves, and a node must start its mesh while the registry is away"
  "CKV_K8S_43=image.digests pins digests; the chart's own version names a release's tag" }}
{{- range $index, $line := concat $always .checkov }}
checkov.io/skip{{ add $index 1 }}: {{ $line | quote }}
{{- end }}
kube-score/ignore: {{ join "," (concat (list "container-image-pull-policy") .kubeScore) }}
{{- end }}
