{{- define "dnstrail.labels" -}}
app.kubernetes.io/name: dnstrail
app.kubernetes.io/component: agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}
