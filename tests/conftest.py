"""Fixtures are plugins, one theme a file, listed here."""

pytest_plugins = [
    "fixtures.azurite",
    "fixtures.cli",
    "fixtures.golden",
    "fixtures.keys",
    "fixtures.memory",
    "fixtures.monitoring",
    "fixtures.postgres",
    "fixtures.driven",
    "fixtures.sweeps",
    "fixtures.properties",  # after what it imports
    "fixtures.stores",
    "fixtures.wal_restore",
    "fixtures.wal_world",
    "fixtures.buckets",
    "fixtures.clipper",  # after what it imports
    "fixtures.gcs",
    "fixtures.oracle",
    "fixtures.dump",
    "fixtures.doctor",
    "fixtures.base",
    "fixtures.restore",
    "fixtures.standby",
    "fixtures.wal_server",
    "fixtures.kube_cluster",
]
