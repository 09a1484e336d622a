{{- define "dnstrail.labels" -}}
app.kubernetes.io/name: dnstrail
app.kubernetes.io/component: agent
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dnstrail.storeLabels" -}}
app.kubernetes.io/name: dnstrail
app.kubernetes.io/component: store
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* Where spans go. The store takes OTLP over gRPC at 4317 and over HTTP at 4318. */ -}}
{{- define "dnstrail.endpoint" -}}
{{- if .Values.otlp.endpoint -}}
{{ .Values.otlp.endpoint }}
{{- else if .Values.store.enabled -}}
http://{{ .Release.Name }}-store.{{ .Release.Namespace }}:{{ eq .Values.otlp.protocol "grpc" | ternary 4317 4318 }}
{{- else -}}
http://otel-collector.observability:{{ eq .Values.otlp.protocol "grpc" | ternary 4317 4318 }}
{{- end -}}
{{- end }}
