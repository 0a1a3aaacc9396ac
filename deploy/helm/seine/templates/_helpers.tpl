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

{{- define "seine.waypointTemplate" -}}
{{- $part := dict "root" $ "component" "waypoint" }}
minReplicas: {{ int .Values.waypoint.minReplicas }}
maxReplicas: {{ int .Values.waypoint.maxReplicas }}
targetCpu: {{ int .Values.waypoint.targetCpu }}
pod:
  metadata:
    labels:
      app.kubernetes.io/part-of: seine
      app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
      {{- with .Values.waypoint.podLabels }}{{ toYaml . | nindent 6 }}{{ end }}
      # It speaks HBONE itself.
      seine.dev/mesh: disabled
    annotations:
      {{- if .Values.monitoring.scrapeAnnotations }}
      prometheus.io/scrape: "true"
      prometheus.io/port: "15020"
      prometheus.io/path: /metrics
      {{- end }}
      {{- with .Values.waypoint.podAnnotations }}{{ toYaml . | nindent 6 }}{{ end }}
  spec:
    # It never calls the API server; the token below is good for the control plane alone.
    automountServiceAccountToken: false
    enableServiceLinks: false
    {{- with .Values.waypoint.priorityClassName }}
    priorityClassName: {{ . }}
    {{- end }}
    {{- include "seine.pullSecrets" $ | nindent 4 }}
    terminationGracePeriodSeconds: {{ add (int .Values.waypoint.drainSeconds) 15 }}
    securityContext:
      runAsNonRoot: true
      runAsUser: 65532
      runAsGroup: 65532
      fsGroup: 65532
      seccompProfile: {type: RuntimeDefault}
    containers:
    - name: waypoint
      image: {{ include "seine.image" $part }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
      - --xds-address=https://{{ include "seine.serverName" $ }}:15012
      - --ca-address=https://{{ include "seine.serverName" $ }}:15012
      - --ca-roots=/etc/seine/ca/root-cert.pem
      - --server-name={{ include "seine.serverName" $ }}
      - --token-file=/var/run/secrets/seine/token
      - --jwks-roots=/etc/seine/jwks/roots.pem
      - --trust-domain={{ .Values.trustDomain }}
      - --cluster-id={{ .Values.clusterId }}
      - --network={{ .Values.network }}
      - --admin-address=127.0.0.1:15000
      - --metrics-address=[::]:15020
      - --readiness-address=[::]:15021
      - --log-lines={{ .Values.logging.format }}
      - --log={{ .Values.logging.level }}
      - --drain={{ mul (int .Values.waypoint.drainSeconds) 1000 }}
      {{- with .Values.otlpEndpoint }}
      - --otlp-endpoint={{ . }}
      - --trace-sampling={{ $.Values.waypoint.traceSampling }}
      {{- end }}
      {{- include "seine.extraArgs" .Values.waypoint.extraArgs | nindent 6 }}
      env:
      - name: SEINE_POD_NAME
        valueFrom: {fieldRef: {fieldPath: metadata.name}}
      - name: SEINE_POD_NAMESPACE
        valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
      - name: SEINE_POD_IP
        valueFrom: {fieldRef: {fieldPath: status.podIP}}
      - name: SEINE_SERVICE_ACCOUNT
        valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}
      ports:
      - {name: hbone, containerPort: 15008, protocol: TCP}
      - {name: metrics, containerPort: 15020, protocol: TCP}
      - {name: readiness, containerPort: 15021, protocol: TCP}
      startupProbe:
        httpGet: {path: /healthz/ready, port: readiness}
        periodSeconds: 1
        failureThreshold: 300
      readinessProbe:
        httpGet: {path: /healthz/ready, port: readiness}
        periodSeconds: 5
        failureThreshold: 2
      livenessProbe:
        # That it accepts at all: a restart mends nothing that readiness waits for.
        tcpSocket: {port: readiness}
        periodSeconds: 20
        failureThreshold: 3
      lifecycle:
        # Clients learn that it goes before it takes nothing new.
        preStop: {sleep: {seconds: 3}}
      resources: {{- toYaml .Values.waypoint.resources | nindent 8 }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      volumeMounts:
      - {name: token, mountPath: /var/run/secrets/seine, readOnly: true}
      - {name: ca-root, mountPath: /etc/seine/ca, readOnly: true}
      - {name: jwks-roots, mountPath: /etc/seine/jwks, readOnly: true}
    volumes:
    - name: token
      projected:
        defaultMode: 0440
        sources:
        - serviceAccountToken: {audience: seine-control, expirationSeconds: 3600, path: token}
    # The control plane writes it into each namespace with a waypoint; until then the pod waits, and says for what.
    - {name: ca-root, configMap: {name: seine-ca-root}}
    # Roots of issuers whose keys are fetched by https, from who has such ones in the namespace.
    - {name: jwks-roots, configMap: {name: seine-jwks-roots, optional: true}}
    nodeSelector: {{- toYaml .Values.waypoint.nodeSelector | nindent 6 }}
    tolerations: {{- toYaml .Values.waypoint.tolerations | nindent 6 }}
    topologySpreadConstraints:
    {{- range .Values.waypoint.topologySpread }}
    - topologyKey: {{ .topologyKey }}
      maxSkew: {{ .maxSkew | default 1 }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      matchLabelKeys: [pod-template-hash]
    {{- end }}
{{- end }}
