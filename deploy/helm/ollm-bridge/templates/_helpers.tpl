{{- define "ollm-bridge.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "ollm-bridge.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Not the selector of the bridge's own pods. */}}
{{- define "ollm-bridge.testSelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-test
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

{{/* Empty if there is no web port. */}}
{{- define "ollm-bridge.webPort" -}}
{{ with .Values.config.web_listen }}{{ splitList ":" . | last }}{{ end }}
{{- end }}

{{/* The protocol of the call port, for components that route by it. */}}
{{- define "ollm-bridge.appProtocol" -}}
{{ get (dict "" "https" "istio" "grpc" "linkerd" "kubernetes.io/h2c") .Values.mesh }}
{{- end }}

{{/* Whether a value of true, false or "auto" is on: "auto" is if the cluster has the API. Takes value, api and root. */}}
{{- define "ollm-bridge.isOn" -}}
{{- if eq (toString .value) "auto" }}{{ if .root.Capabilities.APIVersions.Has .api }}true{{ end }}
{{- else if .value }}true{{ end -}}
{{- end }}

{{- define "ollm-bridge.usesKeda" -}}
{{- if .Values.autoscaling.enabled -}}
{{ include "ollm-bridge.isOn" (dict "root" . "value" .Values.autoscaling.keda.enabled "api" "keda.sh/v1alpha1") }}
{{- end -}}
{{- end }}

{{/* The port of a URL. */}}
{{- define "ollm-bridge.urlPort" -}}
{{- $url := urlParse . -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" -}}
{{ $port | default (get (dict "https" "443" "http" "80") $url.scheme) | default "1080" }}
{{- end }}

{{/*
What the bridge connects to, as JSON: for each a name, a URL, and the value of the network policy with its peers. A proxy takes the
place of the gateway; a gateway on a Unix socket needs nothing.
*/}}
{{- define "ollm-bridge.destinations" -}}
{{- $found := list -}}
{{- $upstream := .Values.config.upstream -}}
{{- if $upstream.proxy -}}
{{- $found = append $found (dict "name" "proxy" "url" $upstream.proxy) -}}
{{- else if not (hasPrefix "unix:" $upstream.base_url) -}}
{{- $found = append $found (dict "name" "gateway" "url" $upstream.base_url) -}}
{{- end -}}
{{- with (.Values.config.tracing | default dict).endpoint -}}
{{- $found = append $found (dict "name" "tracing" "url" .) -}}
{{- end -}}
{{ dict "all" $found | toJson }}
{{- end }}

{{/* Who may call, as the mesh's certificates name them, as JSON; the chart's own account too, for `helm test`. */}}
{{- define "ollm-bridge.principals" -}}
{{- $found := list -}}
{{- $callers := .Values.authorization.callers -}}
{{- if .Values.test.enabled -}}
{{- $callers = append $callers (dict "namespace" .Release.Namespace "serviceAccount" (include "ollm-bridge.name" .)) -}}
{{- end -}}
{{- range $callers -}}
{{- if eq $.Values.mesh "istio" -}}
{{- $found = append $found (printf "%s/ns/%s/sa/%s" $.Values.authorization.trustDomain .namespace .serviceAccount) -}}
{{- else -}}
{{- $found = append $found (printf "%s.%s.serviceaccount.identity.%s.%s" .serviceAccount .namespace $.Values.linkerd.controlPlaneNamespace $.Values.authorization.trustDomain) -}}
{{- end -}}
{{- end -}}
{{ dict "all" $found | toJson }}
{{- end }}

{{/* Fast up, and slowly down: each removed pod drains, and calls that outlast the drain end in DRAINING. */}}
{{- define "ollm-bridge.scalingBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  selectPolicy: Max
  policies:
    - {type: Percent, value: 100, periodSeconds: 30}
    - {type: Pods, value: 4, periodSeconds: 30}
scaleDown:
  stabilizationWindowSeconds: 300
  policies:
    - {type: Percent, value: 10, periodSeconds: {{ include "ollm-bridge.terminationSeconds" . | int | min 1800 }}}
{{- end }}

{{/*
The time that a pod may take to end: the delay, the grace, ten seconds for the last statuses of several workers, and five in
which a mesh's proxy, which ends after the bridge, sees that no connection is left.
*/}}
{{- define "ollm-bridge.terminationSeconds" -}}
{{ add (ceil .Values.config.drain_delay_s) (ceil .Values.config.drain_grace_s) 20 }}
{{- end }}

{{/*
The memory that a pod can be made to hold by its settings, in MiB: the table "Memory" of docs/operations.md, for each worker. The
numbers after `default` are the bridge's own defaults.
*/}}
{{- define "ollm-bridge.memoryMib" -}}
{{- $config := .Values.config -}}
{{- $connections := $config.connections | default dict -}}
{{- $ports := ternary 2 1 (ne (include "ollm-bridge.webPort" .) "") -}}
{{- $calls := int64 ($config.calls_max | default 1000) -}}
{{- $pending := ternary 0 (max 2000 (mul 4 $calls)) (eq (toString (dig "server" "engine" "native" $config)) "native") -}}
{{- $kib := add 108544 (mul 20 $ports (int64 ($connections.connections_max | default 10000))) (mul 64 $calls) (mul 80 $pending) -}}
{{- $bytes := add (mul 2 (int64 ($config.receiving_bytes_max | default 134217728))) (mul 3 (int64 ($config.requests_bytes_max | default 134217728))) -}}
{{ mul (int64 ($config.workers | default 1)) (add 1 (div $kib 1024) (div $bytes 1048576)) }}
{{- end }}

{{/* Values that contradict each other, which a schema can't tell. */}}
{{- define "ollm-bridge.validate" -}}
{{- if and .Values.callerIdentity (not .Values.mesh) }}{{ fail "callerIdentity: expected mesh beside it; without one, use tls.requireClientCertificate" }}{{ end -}}
{{- if and .Values.authorization.callers (not .Values.mesh) }}{{ fail "authorization.callers: expected mesh beside it; without one, use config.tls.allowed_identities" }}{{ end -}}
{{- $tls := .Values.grpcRoute.backendTls -}}
{{- if ne (empty $tls.hostname) (empty $tls.caConfigMap) }}{{ fail "grpcRoute.backendTls: expected hostname and caConfigMap together" }}{{ end -}}
{{- if and (eq (toString .Values.grpcRoute.enabled) "true") (not .Values.grpcRoute.parentRefs) }}{{ fail "grpcRoute: expected parentRefs beside enabled" }}{{ end -}}
{{- if and (include "ollm-bridge.usesKeda" .) (not .Values.autoscaling.keda.prometheusAddress) }}{{ fail "autoscaling.keda: expected prometheusAddress beside enabled" }}{{ end -}}
{{- end }}

{{/* The settings: `config`, overridden by settings that follow from the chart's other values. */}}
{{- define "ollm-bridge.settings" -}}
{{- $own := dict -}}
{{- if .Values.mesh -}}
{{- $_ := set $own "insecure" true -}}
{{- if .Values.callerIdentity -}}
{{- $header := get (dict "istio" "x-forwarded-client-cert" "linkerd" "l5d-client-id") .Values.mesh -}}
{{- $_ := set $own "mesh" (dict "identity_header" $header) -}}
{{- end -}}
{{- else -}}
{{- $tls := dict "cert_file" "/run/tls/tls.crt" "key_file" "/run/tls/tls.key" -}}
{{- if .Values.tls.requireClientCertificate }}{{ $_ := set $tls "client_ca_file" "/run/tls/ca.crt" }}{{ end -}}
{{- $_ := set $own "tls" $tls -}}
{{- end -}}
{{- if .Values.apiKey.secretName -}}
{{- $_ := set $own "upstream" (dict "api_key_file" "/run/key/api-key") -}}
{{- $known := or .Values.config.tokens_file .Values.callerIdentity (and (not .Values.mesh) .Values.tls.requireClientCertificate) -}}
{{- if not $known -}}
{{- $_ := set $own "open" true -}}
{{- end -}}
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
