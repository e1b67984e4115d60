{{- /* Lays `from` onto `onto`, field by field; null takes a field away. */ -}}
{{- define "baton.overlay" -}}
{{- $onto := .onto }}
{{- range $key, $value := .from }}
{{- if kindIs "invalid" $value }}{{ $_ := unset $onto $key }}
{{- else if and (kindIs "map" $value) (kindIs "map" (get $onto $key)) }}
{{- include "baton.overlay" (dict "onto" (get $onto $key) "from" $value) }}
{{- else }}{{ $_ := set $onto $key $value }}{{ end }}
{{- end }}
{{- end }}

{{- /* Of root and the names of sections, each laid onto the one before: as JSON. */ -}}
{{- define "baton.merged" -}}
{{- $merged := dict }}
{{- range .sections }}{{ include "baton.overlay" (dict "onto" $merged "from" (deepCopy .)) }}{{ end }}
{{- toJson $merged }}
{{- end }}

{{- /* All pools that this release has, whole: name, role, model and the fields of `worker`; as JSON. */ -}}
{{- define "baton.pools" -}}
{{- $root := . }}
{{- $own := ternary (list "node") (list "prefill" "decode") (eq .Values.layout "node") }}
{{- $listed := list }}
{{- range $own }}{{ $listed = append $listed (set (set (deepCopy (index $root.Values .)) "name" .) "role" .) }}{{ end }}
{{- $whole := list }}
{{- range concat $listed .Values.pools }}
{{- $pool := include "baton.merged" (dict "sections" (list $root.Values.pod $root.Values.worker .)) | fromJson }}
{{- $_ := set $pool "model" (include "baton.modelOf" (dict "root" $root "own" ($pool.model | default dict)) | fromJson) }}
{{- $_ := set $pool "settings" ($pool.settings | default dict) }}
{{- include "baton.poolResources" $pool }}
{{- $whole = append $whole $pool }}
{{- end }}
{{- toJson $whole }}
{{- end }}

{{- /* A pool that names where its own model lies takes nothing of where the other lies. */ -}}
{{- define "baton.modelOf" -}}
{{- $base := deepCopy .root.Values.model }}
{{- $own := .own }}
{{- range list "huggingFace" "url" "existingClaim" "hostPath" "image" "path" }}
{{- if get $own . }}{{ $base = omit $base "huggingFace" "revision" "url" "sha256" "existingClaim" "hostPath" "image" "path" "servedName" }}{{ end }}
{{- end }}
{{- include "baton.merged" (dict "sections" (list $base $own)) }}
{{- end }}

{{- /* Its GPUs among its limits, the label of their kind in its selector; and whether it has any. */ -}}
{{- define "baton.poolResources" -}}
{{- $gpu := .gpu }}
{{- $resources := .resources | default dict }}
{{- $limits := $resources.limits | default dict }}
{{- if $gpu.count }}{{ $_ := set $limits $gpu.resource (int $gpu.count) }}{{ end }}
{{- $_ := set $resources "limits" $limits }}
{{- $_ := set . "resources" $resources }}
{{- with $gpu.product }}{{ $_ := set $.nodeSelector "nvidia.com/gpu.product" . }}{{ end }}
{{- $_ := set . "hasGpu" false }}
{{- range $name, $count := $limits }}
{{- if and (hasSuffix "/gpu" $name) (ne (toString $count) "0") }}{{ $_ := set $ "hasGpu" true }}{{ end }}
{{- end }}
{{- if eq .device "cuda" }}{{ $_ := set . "hasGpu" true }}{{ end }}
{{- end }}

{{- /* A number as it was written: Helm reads large ones as floats. */ -}}
{{- define "baton.number" -}}
{{- if and (kindIs "float64" .) (eq (floor .) .) }}{{ int64 . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* Settings by name -> flags. Empty or null: the process's own default. */ -}}
{{- define "baton.flags" -}}
{{- range $name, $value := . }}
{{- $flag := kebabcase $name }}
{{- if kindIs "bool" $value }}
- {{ ternary "--" "--no-" $value }}{{ $flag }}
{{- else if not (or (kindIs "invalid" $value) (eq (toString $value) "")) }}
- --{{ $flag }}
- {{ include "baton.number" $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "baton.resources" -}}
{{- range $kind := list "requests" "limits" }}
{{- with get $ $kind }}
{{ $kind }}:
{{- range $name, $quantity := . }}
  {{ $name }}: {{ include "baton.number" $quantity | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- with .claims }}
claims:
{{- range . }}
  - name: {{ .name }}
{{- end }}
{{- end }}
{{- end }}
