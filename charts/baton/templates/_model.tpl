{{- /* Where a pool's model lies, and who brings it there. `.` is its `model`. */ -}}
{{- define "baton.modelFolder" -}}
{{- if .huggingFace }}/cache/{{ .huggingFace }}@{{ .revision | default "main" | replace "/" "--" }}
{{- else if .url }}/cache/{{ .servedName }}@main
{{- else if or .existingClaim .hostPath .image }}/models{{ if ne (.path | default ".") "." }}/{{ .path }}{{ end }}
{{- else }}/opt/baton/models/tiny{{ end }}
{{- end }}

{{- define "baton.modelVolume" -}}
{{- if or .huggingFace .url }}
- name: cache
{{- if .cache.existingClaim }}
  persistentVolumeClaim: {claimName: {{ .cache.existingClaim }}}
{{- else if .cache.hostPath }}
  hostPath: {path: {{ .cache.hostPath | quote }}, type: DirectoryOrCreate}
{{- else }}
  emptyDir: {{ with .cache.sizeLimit }}{sizeLimit: {{ . | quote }}}{{ else }}{}{{ end }}
{{- end }}
{{- else if .existingClaim }}
- name: models
  persistentVolumeClaim: {claimName: {{ .existingClaim }}, readOnly: true}
{{- else if .hostPath }}
- name: models
  hostPath: {path: {{ .hostPath | quote }}, type: Directory}
{{- else if .image }}
- name: models
  image: {reference: {{ .image | quote }}, pullPolicy: IfNotPresent}
{{- end }}
{{- end }}

{{- /* Only the fetcher writes. */ -}}
{{- define "baton.modelMount" -}}
{{- if or .huggingFace .url }}
- {name: cache, mountPath: /cache, readOnly: true}
{{- else if or .existingClaim .hostPath .image }}
- {name: models, mountPath: /models, readOnly: true}
{{- end }}
{{- end }}

{{- /* of: root, pool -> the init container that fetches its model */ -}}
{{- define "baton.fetcher" -}}
{{- $model := .pool.model }}
{{- if or $model.huggingFace $model.url }}
- name: fetch
  image: {{ include "baton.workerImage" . | quote }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - controlplane.cli.entry
    - fetch
    {{- if $model.huggingFace }}
    - --model
    - {{ $model.huggingFace }}{{ with $model.revision }}@{{ . }}{{ end }}
    {{- else }}
    - --model
    - {{ $model.url | quote }}
    - --name
    - {{ $model.servedName }}
    {{- with $model.sha256 }}
    - --sha256
    - {{ . | quote }}
    {{- end }}
    {{- end }}
    - --cache
    - /cache
  {{- if or .pool.env $model.tokenSecret.name }}
  env:
    {{- with $model.tokenSecret }}
    {{- if .name }}
    - name: HF_TOKEN
      valueFrom: {secretKeyRef: {name: {{ .name }}, key: {{ .key }}}}
    {{- end }}
    {{- end }}
    {{- with .pool.env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- end }}
  {{- with .pool.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .pool.securityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    requests: {cpu: 250m, memory: 256Mi}
    limits: {memory: 1Gi}
  volumeMounts:
    - {name: tmp, mountPath: /tmp}
    - {name: cache, mountPath: /cache}
{{- end }}
{{- end }}
