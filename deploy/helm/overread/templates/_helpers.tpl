{{- define "overread.name" -}}
{{- if eq .Release.Name .Chart.Name }}{{ .Chart.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* What a part's pods are found by. Call with (dict "root" $ "part" "worker"). */}}
{{- define "overread.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .part }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end }}

{{- define "overread.labels" -}}
{{ include "overread.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end }}

{{- define "overread.image" -}}
{{- $image := .root.Values.image }}
{{- $kind := and (eq .part "worker") (gt (int .root.Values.worker.gpus) 0) | ternary "gpu" "cpu" }}
{{- $tag := printf "%s-%s" ($image.tag | default .root.Chart.AppVersion) $kind }}
{{- with get $image.digests $kind }}{{ printf "%s@%s" $image.repository . }}{{ else }}{{ printf "%s:%s" $image.repository $tag }}{{ end }}
{{- end }}

{{- define "overread.toml" -}}
{{- if regexMatch `(?m)^\s*\[process\]` .root.Values.config }}
{{- fail "config: [process] is each pod's own, and set by the chart; take it out" }}
{{- end }}
{{- .root.Values.config | trimSuffix "\n" }}

[process]
parts = [{{ .does | quote }}]
{{- end }}

{{/* The pod of a part. Call with (dict "root" $ "part" "worker" "does" "work"). */}}
{{- define "overread.pod" -}}
{{- $values := get .root.Values .part }}
metadata:
  labels:
    {{- include "overread.labels" . | nindent 4 }}
  annotations:
    checksum/config: {{ include "overread.toml" . | sha256sum }}
    {{- with .root.Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "overread.name" .root }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 60
  securityContext:
    runAsNonRoot: true
    runAsUser: 10001
    runAsGroup: 10001
    fsGroup: 10001
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile:
      type: RuntimeDefault
  {{- with .root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- if and (eq .part "worker") .root.Values.worker.runtimeClassName }}
  runtimeClassName: {{ .root.Values.worker.runtimeClassName }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "overread.selector" . | nindent 10 }}
  initContainers:
    # Whoever comes first migrates; the others wait for it. Old and new pods run on the migrated tables.
    - name: database
      {{- include "overread.container" . | nindent 6 }}
      args: [database, upgrade, --config, /etc/overread/overread.toml]
      resources:
        requests: { cpu: 100m, memory: 256Mi }
        limits: { memory: 1Gi }
  containers:
    - name: overread
      {{- include "overread.container" . | nindent 6 }}
      args: [serve, --config, /etc/overread/overread.toml]
      ports:
        - { name: http, containerPort: 8080 }
        {{- if eq .part "receiver" }}
        - { name: dicom, containerPort: 11112 }
        {{- end }}
      # Alive is not ready: a database or a PACS that is away is no reason to start a pod again.
      livenessProbe:
        httpGet: { path: /health/live, port: http, scheme: {{ .root.Values.scheme }} }
        periodSeconds: 15
        timeoutSeconds: 5
        failureThreshold: 4
      readinessProbe:
        httpGet: { path: /health/ready, port: http, scheme: {{ .root.Values.scheme }} }
        periodSeconds: 10
        timeoutSeconds: 5
      startupProbe:
        httpGet: { path: /health/live, port: http, scheme: {{ .root.Values.scheme }} }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 60
      {{- if ne .part "worker" }}
      lifecycle:
        preStop:
          exec: { command: [sleep, "5"] } # until no new association or request is sent here
      {{- end }}
      resources:
        requests:
          {{- toYaml $values.resources.requests | nindent 10 }}
        limits:
          {{- toYaml $values.resources.limits | nindent 10 }}
          {{- if and (eq .part "worker") .root.Values.worker.gpus }}
          nvidia.com/gpu: {{ .root.Values.worker.gpus }}
          {{- end }}
  volumes:
    - name: config
      configMap:
        name: {{ include "overread.name" .root }}-{{ .part }}
    - name: spool
      persistentVolumeClaim:
        claimName: {{ .root.Values.spool.existingClaim | default (printf "%s-spool" (include "overread.name" .root)) }}
    - name: tmp
      emptyDir:
        sizeLimit: 4Gi
    {{- range $index, $secret := .root.Values.secrets }}
    - name: secret-{{ $index }}
      secret:
        secretName: {{ $secret.name }}
        defaultMode: 0440
    {{- end }}
{{- end }}

{{- define "overread.container" -}}
image: {{ include "overread.image" . }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
env:
  - name: OVERREAD_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
volumeMounts:
  - { name: config, mountPath: /etc/overread/overread.toml, subPath: overread.toml, readOnly: true }
  - { name: spool, mountPath: /var/lib/overread }
  - { name: tmp, mountPath: /tmp }
  {{- range $index, $secret := .root.Values.secrets }}
  - { name: secret-{{ $index }}, mountPath: {{ $secret.folder }}, readOnly: true }
  {{- end }}
{{- end }}
