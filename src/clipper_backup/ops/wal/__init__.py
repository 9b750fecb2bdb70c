"""The WAL archive: written by PostgreSQL's archive_command, read by its restore_command."""
