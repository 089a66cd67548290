{{- define "millrace.selector" -}}
app.kubernetes.io/name: millrace
{{- end }}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "millrace.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- /* Where probes and Prometheus ask; an IPv6 address in brackets. */ -}}
{{- define "millrace.metrics" -}}
{{- $address := .Values.metrics.address -}}
{{- if contains ":" $address }}[{{ $address }}]{{ else }}{{ $address }}{{ end }}:{{ .Values.metrics.port }}
{{- end }}

{{- /* The kubelet asks from the node itself. */ -}}
{{- define "millrace.probe" -}}
{{- $address := .Values.metrics.address -}}
{{- if eq $address "0.0.0.0" -}}127.0.0.1{{- else if eq $address "::" -}}"::1"{{- else -}}{{ $address | quote }}{{- end -}}
{{- end }}

{{- /* What the file says, with the default of metrics left out. */ -}}
{{- define "millrace.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- /* Helm keeps the nulls that take the examples away. */ -}}
{{- range $name, $node := .Values.config.nodes -}}
{{- if not $node }}{{ $_ := unset $config.nodes $name }}{{ end -}}
{{- end -}}
{{- $metrics := include "millrace.metrics" . -}}
{{- if ne $metrics "127.0.0.1:9477" -}}
{{- $_ := set $config "metrics" $metrics -}}
{{- end -}}
{{- toYaml $config -}}
{{- end }}
