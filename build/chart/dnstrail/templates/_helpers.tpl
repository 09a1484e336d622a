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

{{- /* Where spans go. Kubernetes gives the store's address to pods of its namespace: no DNS is needed for it. */ -}}
{{- define "dnstrail.endpoint" -}}
{{- if .Values.otlp.endpoint -}}
{{ .Values.otlp.endpoint }}
{{- else if .Values.store.enabled -}}
{{- $address := printf "$(%s_STORE_SERVICE_HOST)" (.Release.Name | upper | replace "-" "_" | replace "." "_") -}}
{{- if eq .Values.otlp.protocol "http/protobuf" }}http://{{ $address }}:4318{{ else }}grpc://{{ $address }}:4317{{ end -}}
{{- end -}}
{{- end }}

{{- /* Whether the agents show a token: to the store here, and to nobody else. */ -}}
{{- define "dnstrail.token" -}}
{{- if and .Values.store.enabled .Values.store.credentials (not .Values.otlp.endpoint) -}}yes{{- end -}}
{{- end }}
