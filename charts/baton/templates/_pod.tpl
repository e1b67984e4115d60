{{- /* What every pod of ours has in common. `.` is of: root, pod (a section with the fields of
       `pod`), component (its label). Before `containers`. */ -}}
{{- define "baton.podHead" -}}
{{- $pod := .pod }}
automountServiceAccountToken: false
enableServiceLinks: false  # a service named baton would set BATON_PORT
{{- with $pod.serviceAccountName }}
serviceAccountName: {{ . }}
{{- end }}
{{- with $pod.podSecurityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $pod.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- with $pod.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- if $pod.hostNetwork }}
hostNetwork: true
{{- end }}
{{- with $pod.dnsPolicy | default (ternary "ClusterFirstWithHostNet" "" ($pod.hostNetwork | default false)) }}
dnsPolicy: {{ . }}
{{- end }}
{{- with $pod.hostAliases }}
hostAliases:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $pod.topologySpreadConstraints }}
topologySpreadConstraints:
{{- range . }}
    {{- $own := . }}
    {{- if not .labelSelector }}
    {{- $labels := dict "app.kubernetes.io/name" "baton" "app.kubernetes.io/instance" $.root.Release.Name "app.kubernetes.io/component" $.component }}
    {{- $own = merge (dict "labelSelector" (dict "matchLabels" $labels)) . }}
    {{- end }}
  - {{ toYaml $own | nindent 4 | trim }}
{{- end }}
{{- end }}
{{- with $pod.resourceClaims }}
resourceClaims:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Labels that select, and what the operator adds; nothing that changes with a version. */ -}}
{{- define "baton.podMetadata" -}}
labels:
  {{- include "baton.selector" .root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  {{- with .pod.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with .pod.podAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- /* Of a container: its probes, rights, resources. `.` is of: pod, port (the probes' own). */ -}}
{{- define "baton.containerTail" -}}
{{- $port := .port }}
{{- range $probe := list "startupProbe" "livenessProbe" "readinessProbe" }}
{{- with get $.pod $probe }}
{{ $probe }}:
  {{- $whole := deepCopy . }}
  {{- if or .exec .tcpSocket .grpc }}{{ $whole = omit $whole "httpGet" }}
  {{- else }}{{ $_ := set $whole "httpGet" (merge (dict) (.httpGet | default dict) (dict "path" "/health" "port" $port)) }}{{ end }}
  {{- toYaml $whole | nindent 2 }}
{{- end }}
{{- end }}
{{- with .pod.securityContext }}
securityContext:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- $resources := deepCopy (.pod.resources | default dict) }}
{{- with .pod.resourceClaims }}{{ $_ := set $resources "claims" . }}{{ end }}
{{- with include "baton.resources" $resources | trim }}
resources:
  {{- . | nindent 2 }}
{{- end }}
{{- with .pod.envFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "baton.mounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .shmSize }}
- {name: shm, mountPath: /dev/shm}
{{- end }}
{{- with .volumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "baton.volumes" -}}
- name: tmp
  emptyDir: {}
{{- with .shmSize }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ . | quote }}}
{{- end }}
{{- with .volumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "baton.redisCaMount" -}}
{{- if and (not .Values.redis.enabled) .Values.externalRedis.caSecret.name }}
- {name: redis-ca, mountPath: /etc/baton/redis, readOnly: true}
{{- end }}
{{- end }}

{{- define "baton.redisCaVolume" -}}
{{- with .Values.externalRedis.caSecret }}
{{- if and (not $.Values.redis.enabled) .name }}
- name: redis-ca
  secret: {secretName: {{ .name }}, items: [{key: {{ .key }}, path: {{ .key }}}]}
{{- end }}
{{- end }}
{{- end }}

{{- /* of: pod, hasGpu, replicas -> a Deployment's way from one template to the next. */ -}}
{{- define "baton.rollout" -}}
{{- $rollout := .pod.rollout }}
{{- $noSpare := and (eq (toString .pod.hasGpu) "true") (ne (toString .pod.replicas) "1") }}
strategy:
  type: RollingUpdate
  rollingUpdate:
    maxSurge: {{ include "baton.orElse" (list $rollout.maxSurge (ternary 0 1 $noSpare)) }}
    maxUnavailable: {{ include "baton.orElse" (list $rollout.maxUnavailable (ternary 1 0 $noSpare)) }}
{{- with $rollout.minReadySeconds }}
minReadySeconds: {{ include "baton.number" . }}
{{- end }}
progressDeadlineSeconds: {{ include "baton.number" $rollout.progressDeadlineSeconds }}
{{- end }}

{{- /* The first of two unless it is empty; 0 is not. */ -}}
{{- define "baton.orElse" -}}
{{- $first := index . 0 }}
{{- if or (kindIs "invalid" $first) (eq (toString $first) "") }}{{ index . 1 }}{{ else }}{{ include "baton.number" $first }}{{ end }}
{{- end }}
