"""Volume snapshots of a database in Kubernetes (docs/design/snapshots.md)."""
