{{- define "baton.fullname" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else if contains "baton" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-baton" (.Release.Name | trunc 34 | trimSuffix "-") }}{{ end }}
{{- end }}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Of objects. Pods have their selectors alone: a version among them would restart all. */ -}}
{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | quote }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* of: root, kind (router, worker-cpu, ...), own (a section's image) -> the image's name */ -}}
{{- define "baton.image" -}}
{{- $image := .root.Values.image }}
{{- $name := .own.repository | default (printf "%s-%s" $image.repository .kind) }}
{{- with $image.registry }}{{ $name = printf "%s/%s" (trimSuffix "/" .) $name }}{{ end }}
{{- if .own.digest }}{{ printf "%s@%s" $name .own.digest }}
{{- else }}{{ printf "%s:%s" $name (.own.tag | default $image.tag | default .root.Chart.AppVersion) }}{{ end }}
{{- end }}

{{- define "baton.redisUrl" -}}
{{- if .Values.redis.enabled }}{{ printf "redis://%s-redis:6379/0" (include "baton.fullname" .) }}
{{- else }}{{ .Values.externalRedis.url }}{{ end }}
{{- end }}

{{- /* What every process of ours needs to find the others, by environment: no secret is in args. */ -}}
{{- define "baton.redisEnv" -}}
{{- $auth := .Values.externalRedis.auth }}
{{- if .Values.redis.enabled }}{{ $auth = .Values.redis.auth }}{{ end }}
{{- if and $auth.existingSecret $auth.urlKey }}
- name: BATON_REDIS
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ $auth.urlKey }}}}
{{- else }}
- name: BATON_REDIS
  value: {{ include "baton.redisUrl" . | quote }}
{{- end }}
- name: BATON_REDIS_PREFIX
  value: {{ .Values.redisPrefix | default (printf "%s/%s:" .Release.Namespace .Release.Name) | quote }}
{{- if and (not .Values.redis.enabled) .Values.externalRedis.caSecret.name }}
- name: BATON_REDIS_CA
  value: /etc/baton/redis/{{ .Values.externalRedis.caSecret.key }}
{{- end }}
{{- if and $auth.existingSecret $auth.usernameKey }}
- name: BATON_REDIS_USERNAME
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ $auth.usernameKey }}}}
{{- end }}
{{- if and $auth.existingSecret $auth.passwordKey }}
- name: BATON_REDIS_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ $auth.existingSecret }}, key: {{ $auth.passwordKey }}}}
{{- end }}
{{- end }}
