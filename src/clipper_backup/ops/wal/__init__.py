"""`wal …`: what PostgreSQL's archive_command and restore_command ask for, and those who look after the archive."""
