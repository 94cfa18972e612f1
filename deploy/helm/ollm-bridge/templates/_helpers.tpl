{{- define "ollm-bridge.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "ollm-bridge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "ollm-bridge.labels" -}}
{{ include "ollm-bridge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: ollm-bridge
{{- end }}

{{- define "ollm-bridge.image" -}}
{{ .Values.image.repository }}{{ if .Values.image.digest }}@{{ .Values.image.digest }}{{ else }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "ollm-bridge.adminPort" -}}
{{ splitList ":" .Values.config.admin_listen | last }}
{{- end }}

{{/* The protocol of the call port, for components that route by it. */}}
{{- define "ollm-bridge.appProtocol" -}}
{{ get (dict "" "https" "istio" "grpc" "linkerd" "kubernetes.io/h2c") .Values.mesh }}
{{- end }}

{{/* The gateway's port, from its URL. */}}
{{- define "ollm-bridge.gatewayPort" -}}
{{- $url := urlParse .Values.config.upstream.base_url -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{ $port | default (ternary "443" "80" (eq $url.scheme "https")) }}
{{- end }}

{{/*
The time that a pod may take to end: the delay, the grace, ten seconds for the last statuses of several workers, and five in
which a mesh's proxy, which ends after the bridge, sees that no connection is left.
*/}}
{{- define "ollm-bridge.terminationSeconds" -}}
{{ add (ceil .Values.config.drain_delay_s) (ceil .Values.config.drain_grace_s) 20 }}
{{- end }}

{{/* The settings: `config`, overridden by settings that follow from the chart's other values. */}}
{{- define "ollm-bridge.settings" -}}
{{- $own := dict -}}
{{- if .Values.mesh -}}
{{- $_ := set $own "insecure" true -}}
{{- else -}}
{{- $tls := dict "cert_file" "/run/tls/tls.crt" "key_file" "/run/tls/tls.key" -}}
{{- if .Values.tls.requireClientCertificate }}{{ $_ := set $tls "client_ca_file" "/run/tls/ca.crt" }}{{ end -}}
{{- $_ := set $own "tls" $tls -}}
{{- end -}}
{{- if .Values.apiKey.secretName -}}
{{- $_ := set $own "upstream" (dict "api_key_file" "/run/key/api-key") -}}
{{- end -}}
{{ mergeOverwrite (deepCopy .Values.config) $own | toJson }}
{{- end }}

{{/* A tree as TOML: its plain values, then a table for each of its subtrees. A JSON scalar is also a TOML scalar. */}}
{{- define "ollm-bridge.toml" -}}
{{- $path := .path -}}
{{- range $name, $value := .tree }}{{ if not (kindIs "map" $value) }}
{{ $name }} = {{ $value | toJson }}
{{- end }}{{ end }}
{{- range $name, $value := .tree }}{{ if kindIs "map" $value }}
{{- $inner := append $path $name }}

[{{ join "." $inner }}]
{{- include "ollm-bridge.toml" (dict "tree" $value "path" $inner) }}
{{- end }}{{ end }}
{{- end }}
