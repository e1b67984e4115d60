{{- /* What a schema cannot say: refused with what to do. */ -}}
{{- define "baton.check" -}}
{{- $values := .Values }}
{{- if not $values.image.repository }}
{{- fail "image.repository: is empty, and there is no public image of Baton: build and push them (make image REPOSITORY=registry.example/baton PUSH=1), then --set image.repository=registry.example/baton; on kind: deploy/kind.md" }}
{{- end }}
{{- if not $values.redis.enabled }}
{{- $outside := $values.externalRedis }}
{{- if not (or $outside.url (and $outside.auth.existingSecret $outside.auth.urlKey)) }}
{{- fail "externalRedis.url: is needed when redis.enabled is false, e.g. redis://redis.example:6379/0; or externalRedis.auth.existingSecret with urlKey" }}
{{- end }}
{{- if and $outside.caSecret.name $outside.url (not (hasPrefix "rediss://" $outside.url)) }}
{{- fail "externalRedis.caSecret: an authority is asked for by TLS alone: write externalRedis.url with rediss://, or leave caSecret.name empty" }}
{{- end }}
{{- end }}
{{- $pools := include "baton.pools" . | fromJsonArray }}
{{- $names := list "router" "redis" "test" }}
{{- $decoding := false }}
{{- range $pool := $pools }}
{{- if has $pool.name $names }}{{ fail (printf "pools: the name %q is taken: router, redis, test and those of other pools are" $pool.name) }}{{ end }}
{{- $names = append $names $pool.name }}
{{- include "baton.checkModel" $pool }}
{{- if and (ne $pool.role "prefill") (ne (toString $pool.replicas) "0") }}{{ $decoding = true }}{{ end }}
{{- $transports := splitList "," ($pool.settings.transports | default "") }}
{{- if and (ne $pool.role "node") (not $pool.hostNetwork) (not $pool.settings.kvSocketFolder) (or (has "shm" $transports) (has "cuda_ipc" $transports)) }}
{{- fail (printf "%s.settings.transports: shm and cuda_ipc reach within one pod: use layout: node, or name those without" $pool.name) }}
{{- end }}
{{- if and $pool.autoscaling.enabled (not $pool.autoscaling.prometheus) }}
{{- fail (printf "%s.autoscaling.prometheus: is needed by KEDA, e.g. http://prometheus.monitoring:9090" $pool.name) }}
{{- end }}
{{- if eq $pool.role "node" }}
{{- if and $pool.gpu.count (ne (int $pool.gpu.count) (add (int $pool.prefill) (int $pool.decode) | int)) }}
{{- fail (printf "%s.gpu.count: is %d, but prefill and decode are %d workers: one for each GPU" $pool.name (int $pool.gpu.count) (add (int $pool.prefill) (int $pool.decode))) }}
{{- end }}
{{- else if gt (int ($pool.gpu.count | default 0)) 1 }}
{{- fail (printf "%s.gpu.count: a worker computes on one GPU; more of them in a pod: layout: node" $pool.name) }}
{{- end }}
{{- end }}
{{- include "baton.checkPorts" $pools }}
{{- if not $decoding }}
{{- fail "decode.replicas: is 0 and no other pool decodes: nothing could answer" }}
{{- end }}
{{- end }}

{{- /* Of pools: ports of one pod, or of pods that share a node's, that are taken twice. */ -}}
{{- define "baton.checkPorts" -}}
{{- $taken := list }}
{{- range $pool := . }}
{{- range $kind := list "control" "kv" "metrics" }}
{{- $ports := include "baton.ports" (dict "pool" $pool "kind" $kind) | fromJsonArray }}
{{- $first := int (first $ports).port }}
{{- $last := int (last $ports).port }}
{{- if gt $last 65535 }}{{ fail (printf "%s.ports.%s: %d is too high: it needs ports up to %d" $pool.name $kind $first $last) }}{{ end }}
{{- range $other := $taken }}
{{- $together := and $pool.hostNetwork $other.pool.hostNetwork (eq (toJson $pool.nodeSelector) (toJson $other.pool.nodeSelector)) }}
{{- if and (or $together (eq $pool.name $other.pool.name)) (le $first $other.last) (ge $last $other.first) }}
{{- fail (printf "%s.ports.%s: %d to %d are also %s.ports.%s, %d to %d%s: choose others for one of them" $pool.name $kind $first $last $other.pool.name $other.kind $other.first $other.last (ternary ", and with hostNetwork both pools have the node's ports" "" (ne $pool.name $other.pool.name))) }}
{{- end }}
{{- end }}
{{- $taken = append $taken (dict "pool" $pool "kind" $kind "first" $first "last" $last) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.checkModel" -}}
{{- $model := .model }}
{{- $where := ternary "model" (printf "%s.model" .name) (has .name (list "prefill" "decode" "node")) }}
{{- $sources := list }}
{{- range list "huggingFace" "url" "existingClaim" "hostPath" "image" }}{{ if get $model . }}{{ $sources = append $sources . }}{{ end }}{{ end }}
{{- if gt (len $sources) 1 }}
{{- fail (printf "%s: lies in one place, but %s are given" $where (join " and " $sources)) }}
{{- end }}
{{- if and $model.path (not (or $model.existingClaim $model.hostPath $model.image)) }}
{{- fail (printf "%s.path: %s: is a folder within %s.existingClaim, hostPath or image, and none of them is given" $where $model.path $where) }}
{{- end }}
{{- if and $model.existingClaim (not $model.path) }}
{{- fail (printf "%s.existingClaim: needs %s.path, the checkpoint's folder within the claim, e.g. llama-8b; \".\" if it is all of it" $where $where) }}
{{- end }}
{{- if and $model.url (not $model.servedName) }}
{{- fail (printf "%s.url: needs %s.servedName, the model's name in the cache and in the API" $where $where) }}
{{- end }}
{{- if and (or $model.revision $model.sha256) (not (or $model.huggingFace $model.url)) }}
{{- fail (printf "%s.revision: is of %s.huggingFace, which is empty" $where $where) }}
{{- end }}
{{- if and $model.cache.existingClaim $model.cache.hostPath }}
{{- fail (printf "%s.cache: is a claim or a folder of the node, not both" $where) }}
{{- end }}
{{- if and $model.prefetch (not $model.cache.hostPath) }}
{{- fail (printf "%s.prefetch: fetches into a folder of the node: set %s.cache.hostPath, e.g. /var/cache/baton" $where $where) }}
{{- end }}
{{- end }}
