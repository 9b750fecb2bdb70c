"""The whole story on one machine: a real database, its loss, and its recovery."""
