"""`k8s restore`: the past into a new volume, and the switch to it (docs/design/kubernetes-restore.md)."""
