"""What to do when PostgreSQL denies something, by its own words: the server's and those that its client programs repeat."""

_REMEDIES = {
    "row-level security": "rows hidden by row-level security would be missing: ALTER ROLE … BYPASSRLS",
    # pg_read_all_data does not reach them (PostgreSQL's page "Predefined Roles").
    "permission denied for large object": "as a superuser: ALTER ROLE … SET lo_compat_privileges = on, or GRANT SELECT on each",
    "permission denied to create database": "ALTER ROLE … CREATEDB, or restore as a role that has it",
    "permission denied to create role": "restore as a superuser, or leave roles and owners out: --no-roles",
    "must be member of role": "restore as a superuser, or leave roles and owners out: --no-roles",
    "must be able to SET ROLE": "restore as a superuser, or leave roles and owners out: --no-roles",
    "permission denied for": "grant the role pg_read_all_data",
}


def privilege_hints(words: str) -> list[str]:
    """Hints for an error message about privileges; none for one that is not known."""
    return [remedy for denied, remedy in _REMEDIES.items() if denied in words][:1]
