"""`restore`: a base backup and WAL become a server's data folder at a chosen instant."""
