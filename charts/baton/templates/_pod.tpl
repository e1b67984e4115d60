{{- /* What every pod of ours has in common. */ -}}
{{- define "baton.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false  # a service named baton would set BATON_PORT
securityContext:
  runAsNonRoot: true
  runAsUser: 1000
  runAsGroup: 1000
  fsGroup: 1000
  seccompProfile: {type: RuntimeDefault}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "baton.volumes" -}}
- name: tmp
  emptyDir: {}
{{- if .Values.model.existingClaim }}
- name: models
  persistentVolumeClaim:
    claimName: {{ .Values.model.existingClaim }}
    readOnly: true
{{- end }}
{{- end }}

{{- define "baton.volumeMounts" -}}
- name: tmp
  mountPath: /tmp
{{- if .Values.model.existingClaim }}
- name: models
  mountPath: {{ .Values.model.mountPath }}
  readOnly: true
{{- end }}
{{- end }}

{{- define "baton.modelArgs" -}}
- --model
- {{ .Values.model.path | quote }}
- --redis
- {{ include "baton.redis" . | quote }}
- --drain-s
- {{ .Values.drainSeconds | quote }}
{{- with .Values.model.servedName }}
- --served-name
- {{ . | quote }}
{{- end }}
{{- with .Values.model.maxModelLen }}
- --max-model-len
- {{ int . | quote }}
{{- end }}
{{- end }}

{{- define "baton.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
