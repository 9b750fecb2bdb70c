"""Fixtures are plugins, one theme a file, listed here."""

pytest_plugins = [
    "fixtures.monitoring",
    "fixtures.postgres",
]
