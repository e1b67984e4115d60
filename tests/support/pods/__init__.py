"""Rendered manifests run as pods on this machine: what a kubelet and its controllers would do."""
