"""`verify`: dumps, base backups and WAL, looked at together and read in turn (docs/design/verify.md)."""
