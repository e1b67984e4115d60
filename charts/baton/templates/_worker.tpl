{{- /* Seconds, whole, from settings to the end of what they allow. */ -}}
{{- define "baton.workerGrace" -}}
{{ int64 (addf (ceil (.drainS | default 30 | float64)) 15) }}
{{- end }}

{{- define "baton.routerGrace" -}}
{{ int64 (addf (ceil (.lingerS | default 5 | float64)) (ceil (.requestTimeoutS | default 600 | float64)) 15) }}
{{- end }}

{{- /* of: root, pool */ -}}
{{- define "baton.workerImage" -}}
{{- include "baton.image" (dict "root" .root "kind" (ternary "worker-cuda" "worker-cpu" .pool.hasGpu) "own" .pool.image) }}
{{- end }}

{{- /* Transports that pods of a layout can have: sockets of shm and cuda_ipc reach within one pod. */ -}}
{{- define "baton.transports" -}}
{{- if ne .role "node" }}{{ ternary "nccl,tcp" "tcp" .hasGpu }}{{ end }}
{{- end }}

{{- /* of: root, pool -> what a worker, or a supervisor of several, is told. */ -}}
{{- define "baton.workerArgs" -}}
{{- $pool := .pool }}
{{- $model := $pool.model }}
{{- if eq $pool.role "node" }}
- controlplane.cli.entry
- workers
- --prefill
- {{ include "baton.number" $pool.prefill | quote }}
- --decode
- {{ include "baton.number" $pool.decode | quote }}
{{- else }}
- {{ $pool.role }}_worker
{{- end }}
- --model
- {{ include "baton.modelFolder" $model | quote }}
{{- with $model.servedName }}
- --served-name
- {{ . | quote }}
{{- end }}
{{- with $model.maxModelLen }}
- --max-model-len
- {{ include "baton.number" . | quote }}
{{- end }}
- --dtype
- {{ $model.dtype }}
- --worker
- $(POD_NAME)
- --host
- {{ .root.Values.listen | quote }}
- --advertise
- $(POD_IP)
- --port
- {{ include "baton.number" $pool.ports.control | quote }}
- --kv-port
- {{ include "baton.number" $pool.ports.kv | quote }}
- --metrics-port
- {{ include "baton.number" $pool.ports.metrics | quote }}
- --device
- {{ $pool.device | default (ternary "cuda" "auto" $pool.hasGpu) }}
{{- $settings := $pool.settings | default dict }}
{{- if not (get $settings "transports") }}{{ $settings = merge (dict "transports" (include "baton.transports" $pool)) $settings }}{{ end }}
{{- include "baton.flags" $settings }}
{{- with $pool.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
