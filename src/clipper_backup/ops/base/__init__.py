"""Base backups: create, list, verify, delete (docs/design/repository-format.md)."""
