"""Dumps: create, list, verify, fetch, restore, delete, prune (docs/design/dumps.md)."""
