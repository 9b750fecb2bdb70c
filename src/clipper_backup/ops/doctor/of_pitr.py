"""Checks before archiving is switched on in Kubernetes, which restarts the database: `doctor --for-pitr`.

The server is asked from outside, as it runs without the manifest. Which StatefulSet the cluster has is not looked at.
"""

import shutil
from pathlib import Path, PurePosixPath

from clipper_backup.ops.doctor import of_server, of_store
from clipper_backup.ops.doctor.declared import Check, Declaring, Surroundings
from clipper_backup.ops.findings import Finding, green, red, yellow
from clipper_backup.ops.wal.shims import HBA_FILE
from clipper_backup.ops.work import login_of
from clipper_backup.postgres.data_folder import WAL_FOLDER
from clipper_backup.postgres.pitr_facts import PitrFacts, missing_rules, parse_hba, read_hba_rules, read_pitr_facts
from clipper_backup.values import show_bytes, show_names

_LEAST_SENDERS = 3
"""Two for a base backup, and one for whoever else streams."""
_MOUNT = PurePosixPath("/var/lib/postgresql/data")
_OURS = "/clipper-backup/"
_NAMED = 5
_CONFIG_MAP = "add them to pg_hba.conf in the ConfigMap postgres-pitr-config (infrastructure/k8s/base/postgres-pitr-config.yaml)"
_WHO_MAY = "as a superuser, or as a role with pg_read_all_data: PGUSER"

check = Declaring()


def _facts(here: Surroundings) -> PitrFacts:
    with here.session() as connection:
        return read_pitr_facts(connection)


@check(
    "primary",
    "whether the server is the primary: a standby archives nothing with archive_mode = on",
    "set PGHOST to the primary",
    needs=["database server"],
)
def _primary(here: Surroundings) -> Finding:
    return red("the server is a standby") if here.facts.in_recovery else green("the server is in production")


@check(
    "image",
    "whether the server's image is Alpine's, whose user the sidecar is (70), or a Debian one (999), and where the data folder is",
    "edit a copy of the patch: the sidecar mounts the server's volume at the server's path",
    needs=["database server"],
)
def _image(here: Surroundings) -> Finding:
    facts = _facts(here)
    folder = facts.settings.get("data_directory")
    if folder is not None and not PurePosixPath(folder).is_relative_to(_MOUNT):
        return red(f"the data folder is {folder}, and the sidecar looks below {_MOUNT}")
    if not facts.is_musl:
        return yellow(
            "the image is no Alpine one: its user is 999, the sidecar's 70; and base has an Alpine image, with another C library",
            "never apply base's StatefulSet over it; after the patch apply infrastructure/k8s/components/debian-image",
        )
    if folder is None:
        return yellow("an Alpine image; this role may not know where the data folder is", "GRANT pg_monitor TO the role")
    return green(f"an Alpine image, and the data folder is {folder}")


@check(
    "max_wal_senders",
    f"whether base backups are let in beside other streams: max_wal_senders of {_LEAST_SENDERS} or more",
    "ALTER SYSTEM SET max_wal_senders = 10; the restart that archiving needs makes it valid",
    needs=["database server"],
)
def _senders(here: Surroundings) -> Finding:
    facts = _facts(here)
    senders = int(facts.settings["max_wal_senders"])
    text = f"max_wal_senders is {senders}, wal_level {facts.settings['wal_level']}"
    return green(text) if senders >= _LEAST_SENDERS else red(text)


@check(
    "another archive",
    "whether another tool archives (archive_command, archive_library): flags of the command line override it",
    "decide which one archives; what only the other one has ends at the restart",
    needs=["database server"],
)
def _another_archive(here: Surroundings) -> Finding:
    settings = _facts(here).settings
    if settings["archive_mode"] == "off":
        return green("archive_mode is off")
    library, command = settings.get("archive_library", ""), settings.get("archive_command", "")
    if library:
        return red(f"archive_library is {library}: it would archive no more")
    if command and _OURS not in command:
        return red(f"archive_command is {command}: it would be run no more")
    return green("it archives by our own command already" if command else "nothing is archived")


@check(
    "pg_hba.conf",
    "whether the pg_hba.conf of the ConfigMap, which replaces the server's own, lets in all whom that lets in",
    _CONFIG_MAP,
    needs=["database server"],
)
def _hba(here: Surroundings) -> Finding:
    with here.session() as connection:
        theirs = read_hba_rules(connection)
    if theirs is None:
        return yellow("this role may not read pg_hba_file_rules", "look as a superuser: PGUSER")
    missing = missing_rules(theirs, parse_hba(HBA_FILE.read_text(encoding="utf-8")))
    if not missing:
        return green("it lets in all whom the server's own lets in")
    return red(f"{len(missing)} of the server's {len(theirs)} lines are not in it", *(rule.line for rule in missing), _CONFIG_MAP)


@check(
    "stored passwords",
    "whether every role with a password has one that scram-sha-256 takes: the ConfigMap's pg_hba.conf asks for it",
    "set them anew: \\password ROLE in psql, with password_encryption = scram-sha-256; or have their lines ask for md5",
    needs=["database server"],
)
def _stored_passwords(here: Surroundings) -> Finding:
    roles = _facts(here).md5_roles
    if roles is None:
        return yellow("this role may not read pg_authid", _WHO_MAY)
    if roles:
        more = "" if len(roles) <= _NAMED else f" and {len(roles) - _NAMED} more"
        return red(f"stored as md5, and refused after the restart: {show_names(roles[:_NAMED])}{more}")
    return green("all are scram-sha-256")


@check(
    "replication",
    "whether this role may take base backups: REPLICATION",
    "`clipper-backup setup database` prints what is missing; the line of pg_hba.conf for it is in the ConfigMap",
    needs=["database server"],
)
def _replication(here: Surroundings) -> Finding:
    facts = _facts(here)
    return green(f"{facts.user} has it") if facts.may_replicate else red(f"{facts.user} has it not")


@check(
    "room for WAL",
    "whether pg_wal has room for an hour of WAL, which stays there while the store is away; only seen beside the server",
    "see how full the volume is: a full pg_wal stops the server",
    needs=["database server"],
)
def _room(here: Surroundings) -> Finding:
    facts = _facts(here)
    if facts.wal_bytes_per_hour is None:
        return yellow("the server's statistics begin just now: nobody knows how much an hour writes")
    text = f"an hour writes {show_bytes(facts.wal_bytes_per_hour)} on average"
    folder = facts.settings.get("data_directory")
    local = login_of(here.settings).keywords.get("host", "/").startswith("/")
    if folder is None or not local or not Path(folder, WAL_FOLDER).is_dir():
        return yellow(f"{text}; how much room its volume has is not seen from here")
    free = shutil.disk_usage(Path(folder, WAL_FOLDER)).free
    text = f"{text}, and the volume of pg_wal has {show_bytes(free)} left"
    return green(text) if free > facts.wal_bytes_per_hour else red(text)


_BEFORE = ("settings", "store", "write", "conditional create", "database server")
CHECKS: tuple[Check, ...] = (
    *(each for each in (*of_store.CHECKS, *of_server.CHECKS) if each.name in _BEFORE),
    *check.all,
)
"""What `doctor --for-pitr` looks at: of the usual checks those of the store and the server, and its own."""
