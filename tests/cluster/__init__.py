"""Tests against a real kube-apiserver (envtest convention: KUBEBUILDER_ASSETS, else $PATH)."""
