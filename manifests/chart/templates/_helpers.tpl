{{/* Where the objects go: see `namespace` in values.yaml. */}}
{{- define "nodeagent.namespace" -}}
{{- if .Values.namespace }}{{ .Values.namespace }}
{{- else if eq .Release.Namespace "default" }}nodeagent
{{- else }}{{ .Release.Namespace }}
{{- end }}
{{- end }}

{{/* What the schema cannot say: values that need another one. */}}
{{- define "nodeagent.check" -}}
{{- if not .Values.way }}
{{- fail "way is required: companion, replace, openshift, sidecar or policy" }}
{{- end }}
{{- $policy := eq .Values.way "policy" }}
{{- if and (eq .Values.way "openshift") (not .Values.toolkit.image) }}
{{- fail "toolkit.image is required by way openshift: oc adm release info --image-for=driver-toolkit" }}
{{- end }}
{{- if and (eq .Values.way "sidecar") (not .Values.driver.image) }}
{{- fail "driver.image is required by way sidecar: the image of your driver container" }}
{{- end }}
{{- range $name, $image := dict "toolkit.image" .Values.toolkit.image "driver.image" .Values.driver.image "metrics.rbacProxy.image" .Values.metrics.rbacProxy.image }}
{{- if and $image (or (hasSuffix ":latest" $image) (not (or (contains "@" $image) (contains ":" (base $image))))) }}
{{- fail (printf "%s is %s, which is another image tomorrow: name a tag other than latest, or a digest" $name $image) }}
{{- end }}
{{- end }}
{{- if eq .Values.image.tag "latest" }}
{{- fail "image.tag is latest, which is another image tomorrow: name the version, or set image.digest" }}
{{- end }}
{{- if and $policy (not (contains "/" .Values.image.repository)) }}
{{- fail "image.repository is required by way policy: REPOSITORY/nodeagent-doca, as scripts/image --tag-for prints it" }}
{{- end }}
{{- if and $policy (or .Values.image.tag .Values.image.digest) }}
{{- fail "image.tag and image.digest are not for way policy: the operator makes the tag of driver.version" }}
{{- end }}
{{- if and $policy (or .Values.metrics.enabled .Values.alerts.enabled .Values.rbac.nodeStatus .Values.rbac.devicePluginNamespaces .Values.rbac.operatorNamespace .Values.rbac.securityContextConstraints) }}
{{- fail "metrics, alerts and rbac are not for way policy: the operator's pods have its ServiceAccount and its containers" }}
{{- end }}
{{- if and .Values.alerts.enabled (not .Values.metrics.enabled) }}
{{- fail "alerts.enabled needs metrics.enabled: alerts are made of metrics" }}
{{- end }}
{{- if and .Values.metrics.rbacProxy.image (not .Values.metrics.enabled) }}
{{- fail "metrics.rbacProxy.image needs metrics.enabled: there is no port to be protected" }}
{{- end }}
{{- range $name := list "NODE_ANNOTATIONS" "NODE_CONDITION" }}
{{- if and (eq (toString (get $.Values.settings $name)) "true") (not $.Values.rbac.nodeStatus) (not $policy) }}
{{- fail (printf "settings.%s needs rbac.nodeStatus: it writes to the Node object" $name) }}
{{- end }}
{{- end }}
{{- if and (contains "cordon" (toString .Values.settings.HOLD_OFF)) (not .Values.rbac.nodeStatus) (not $policy) }}
{{- fail "settings.HOLD_OFF with cordon needs rbac.nodeStatus: it writes to the Node object" }}
{{- end }}
{{- end }}

{{/* An object of files/ as the values want it. Changed in place: {object, root}. */}}
{{- define "nodeagent.set" -}}
{{- $namespace := include "nodeagent.namespace" .root }}
{{- if eq (dig "metadata" "namespace" "" .object) "nodeagent" }}
{{- $_ := set .object.metadata "namespace" $namespace }}
{{- end }}
{{- range .object.subjects }}
{{- $_ := set . "namespace" $namespace }}
{{- end }}
{{- if eq .object.kind "Namespace" }}
{{- $_ := set .object.metadata "name" $namespace }}
{{- else if eq .object.kind "DaemonSet" }}
{{- include "nodeagent.pod" (dict "pod" .object.spec.template.spec "values" .root.Values) }}
{{- else if eq .object.kind "NicClusterPolicy" }}
{{- include "nodeagent.policy" (dict "driver" .object.spec.ofedDriver "values" .root.Values) }}
{{- else if eq .object.kind "PodMonitor" }}
{{- include "nodeagent.labels" (dict "object" .object "labels" .root.Values.metrics.podMonitor.labels) }}
{{- range .object.spec.podMetricsEndpoints }}
{{- $_ := set . "interval" $.root.Values.metrics.podMonitor.interval }}
{{- end }}
{{- else if eq .object.kind "PrometheusRule" }}
{{- include "nodeagent.labels" (dict "object" .object "labels" .root.Values.alerts.labels) }}
{{- end }}
{{- end }}

{{- define "nodeagent.labels" -}}
{{- if .labels }}
{{- $_ := set .object.metadata "labels" (merge (dict) .labels (.object.metadata.labels | default dict)) }}
{{- end }}
{{- end }}

{{/* {pod, values} */}}
{{- define "nodeagent.pod" -}}
{{- $pod := .pod }}
{{- $values := .values }}
{{- $_ := set $pod "tolerations" $values.tolerations }}
{{- with $values.nodeSelector }}
{{- $_ := set $pod "nodeSelector" . }}
{{- end }}
{{- if not $values.nodeFeatureDiscovery }}
{{- range $pod.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms }}
{{- $left := list }}
{{- range .matchExpressions }}
{{- if not (hasPrefix "feature.node.kubernetes.io/" .key) }}{{ $left = append $left . }}{{ end }}
{{- end }}
{{- $_ := set . "matchExpressions" $left }}
{{- end }}
{{- end }}
{{- with $values.imagePullSecrets }}
{{- $secrets := list }}
{{- range . }}{{ $secrets = append $secrets (dict "name" .) }}{{ end }}
{{- $_ := set $pod "imagePullSecrets" $secrets }}
{{- end }}
{{- with $values.settings.TERMINATION_GRACE_PERIOD }}
{{- $_ := set $pod "terminationGracePeriodSeconds" (ceil . | int) }}
{{- end }}
{{- range concat ($pod.initContainers | default list) $pod.containers }}
{{- include "nodeagent.container" (dict "container" . "values" $values) }}
{{- end }}
{{- end }}

{{/* {container, values}; whose it is, its image in files/ says. */}}
{{- define "nodeagent.container" -}}
{{- $container := .container }}
{{- $values := .values }}
{{- $resources := dict }}
{{- if hasPrefix "nodeagent:" $container.image }}
{{- $tag := $values.image.tag | default (trimPrefix "nodeagent:" $container.image) }}
{{- $suffix := ternary (printf "@%s" $values.image.digest) (printf ":%s" $tag) (ne $values.image.digest "") }}
{{- $_ := set $container "image" (print $values.image.repository $suffix) }}
{{- with $values.image.pullPolicy }}{{ $_ := set $container "imagePullPolicy" . }}{{ end }}
{{- include "nodeagent.env" (dict "container" $container "settings" $values.settings) }}
{{- $resources = $values.resources }}
{{- if eq $container.name "metrics" }}
{{- $resources = $values.metrics.resources }}
{{- range $container.ports }}{{ $_ := set . "containerPort" $values.metrics.port }}{{ end }}
{{- include "nodeagent.env" (dict "container" $container "settings" (dict "METRICS_PORT" $values.metrics.port)) }}
{{- end }}
{{- else if hasPrefix "driver-toolkit:" $container.image }}
{{- $_ := set $container "image" $values.toolkit.image }}
{{- $resources = $values.toolkit.resources }}
{{- else if hasPrefix "kube-rbac-proxy:" $container.image }}
{{- $_ := set $container "image" $values.metrics.rbacProxy.image }}
{{- $resources = $values.metrics.rbacProxy.resources }}
{{- $args := list }}
{{- range $container.args }}{{ $args = append $args (replace ":9790" (printf ":%v" $values.metrics.port) .) }}{{ end }}
{{- $_ := set $container "args" $args }}
{{- else if hasPrefix "doca-driver:" $container.image }}
{{- $_ := set $container "image" $values.driver.image }}
{{- $resources = $values.driver.resources }}
{{- end }}
{{- with $resources }}{{ $_ := set $container "resources" . }}{{ end }}
{{- with $values.driver.version }}
{{- range $container.env }}
{{- if eq .name "NVIDIA_NIC_DRIVER_VER" }}{{ $_ := set . "value" $values.driver.version }}{{ end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Variables of a container's env: their values are replaced where they are, or they are added. */}}
{{- define "nodeagent.env" -}}
{{- $env := list }}
{{- $named := dict }}
{{- range .container.env }}
{{- $_ := set $named .name true }}
{{- if hasKey $.settings .name }}
{{- $env = append $env (dict "name" .name "value" (get $.settings .name | toString)) }}
{{- else }}{{ $env = append $env . }}
{{- end }}
{{- end }}
{{- range $name, $value := .settings }}
{{- if not (hasKey $named $name) }}{{ $env = append $env (dict "name" $name "value" (toString $value)) }}{{ end }}
{{- end }}
{{- $_ := set .container "env" $env }}
{{- end }}

{{/* {driver, values}: spec.ofedDriver */}}
{{- define "nodeagent.policy" -}}
{{- $_ := set .driver "image" (base .values.image.repository) }}
{{- $_ := set .driver "repository" (dir .values.image.repository) }}
{{- with .values.driver.version }}{{ $_ := set $.driver "version" . }}{{ end }}
{{- with .values.imagePullSecrets }}{{ $_ := set $.driver "imagePullSecrets" . }}{{ end }}
{{- with .values.settings.TERMINATION_GRACE_PERIOD }}
{{- $_ := set $.driver "terminationGracePeriodSeconds" (ceil . | int) }}
{{- end }}
{{- include "nodeagent.env" (dict "container" .driver "settings" .values.settings) }}
{{- end }}
