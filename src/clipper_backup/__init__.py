"""clipper-backup: backup and recovery for PostgreSQL on Kubernetes that knows whether it would work."""

__version__ = "0.1.0"
