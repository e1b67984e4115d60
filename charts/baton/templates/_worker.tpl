{{- /* Seconds, whole, from settings to the end of what they allow. */ -}}
{{- define "baton.workerGrace" -}}
{{ int64 (addf (ceil (include "baton.orElse" (list .drainS 30) | float64)) 15) }}
{{- end }}

{{- define "baton.routerGrace" -}}
{{- $streams := include "baton.orElse" (list .drainS (include "baton.orElse" (list .requestTimeoutS 600))) }}
{{- int64 (addf (ceil (include "baton.orElse" (list .lingerS 5) | float64)) (ceil (float64 $streams)) 15) }}
{{- end }}

{{- /* of: pool, kind (control, kv, metrics) -> its ports, [{port: ...}]. A worker has one for control and four for KV: on one
       it is asked, on the next tcp, ucx and nccl move. Those of a node's workers follow each other. One by one, since
       ranges (`endPort`) are of Kubernetes 1.22. */ -}}
{{- define "baton.ports" -}}
{{- $workers := 1 }}
{{- if and (eq .pool.role "node") (ne .kind "metrics") }}{{ $workers = add (int .pool.prefill) (int .pool.decode) }}{{ end }}
{{- $first := int (get .pool.ports .kind) }}
{{- $ports := list }}
{{- range $port := untilStep $first (add $first (mul $workers (ternary 4 1 (eq .kind "kv"))) | int) 1 }}{{ $ports = append $ports (dict "port" $port) }}{{ end }}
{{- toJson $ports }}
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
{{- $settings := $pool.settings }}
{{- if not (get $settings "transports") }}{{ $settings = merge (dict "transports" (include "baton.transports" $pool)) $settings }}{{ end }}
{{- include "baton.flags" $settings }}
{{- with $pool.extraArgs }}
{{ toYaml . }}
{{- end }}
{{- end }}
