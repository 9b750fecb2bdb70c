"""What PostgreSQL says and does: connections, snapshots, its client programs, a private server."""
