"""What must hold for backups to work, looked at before they are needed: one check, one function, one line."""
