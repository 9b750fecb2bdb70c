"""The rules over store and format: layout, catalog, leases, holds, retention."""
