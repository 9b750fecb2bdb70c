"""Checks of this machine and of who is told: programs and room for a restore, and the Pushgateway."""

import shutil

from clipper_backup.ops.doctor.declared import Declaring, Surroundings
from clipper_backup.ops.findings import Finding, green, red, yellow
from clipper_backup.ops.keys import trusted_of
from clipper_backup.ops.scratch import scratch_folder
from clipper_backup.ops.work import login_of
from clipper_backup.postgres.binaries import find_binaries
from clipper_backup.values import show_bytes

check = Declaring()


@check(
    "restore programs",
    "whether pg_restore is there, of the major version that reads the newest dumps",
    "install postgresql-client of that major version or a newer one, or set PG_BINDIR",
    needs=["repository"],
)
def _restore_programs(here: Surroundings) -> Finding:
    needed = max((each.summary.versions.needed_major for each in here.status.newest if each.wanted), default=None)
    found = find_binaries(
        tools=("pg_restore",),
        bindir=here.settings.pg_bindir,
        environment=login_of(here.settings).environment(),
        at_least=needed,
    )
    return green(f"{found.version} in {found.bindir}" + ("" if needed is None else f", the newest dumps need {needed}"))


@check(
    "scratch",
    "whether SCRATCH_DIR can be written and has room for the largest archive of the newest dumps",
    "set SCRATCH_DIR to a folder with more room",
    needs=["repository"],
)
def _scratch(here: Surroundings) -> Finding:
    with scratch_folder(here.settings.scratch_dir, 0, "a restore") as folder:
        place = folder.parent
    found = [each.summary.archive_of(each.database) for each in here.status.newest if each.wanted]
    archives = [archive for archive in found if archive is not None]
    needed = max((archive.plain_bytes for archive in archives), default=0)
    by_folder = max((archive.plain_bytes for archive in archives if archive.archive == "directory"), default=0)
    free = shutil.disk_usage(place).free
    used = trusted_of(here.settings) or here.settings.dump_jobs > 1 or by_folder
    if free >= needed and used and "KUBERNETES_SERVICE_HOST" in here.environment:
        # A Pod sees its node's disk; one that outgrows its volume is evicted.
        return yellow(
            f"the disk of {place} has {show_bytes(free)}, the largest archive takes {show_bytes(needed)};"
            " a volume's sizeLimit, which cannot be seen from here, must hold that too",
            "compare it with the sizeLimit of the Pod's volume `scratch`, and raise that and the request for ephemeral-storage",
        )
    if free >= needed:
        return green(f"{place} has {show_bytes(free)}, a restore needs {show_bytes(needed)}")
    text = f"{place} has {show_bytes(free)}, the largest archive takes {show_bytes(needed)}"
    if trusted_of(here.settings):
        return red(f"{text}: with SIGNATURE_KEYS every restore needs that room")
    if here.settings.dump_jobs > 1:
        return red(f"{text}: with DUMP_JOBS > 1 every dump needs that room")
    if free < by_folder:
        return red(f"{text}: one that was made with DUMP_JOBS > 1 needs that room for every restore")
    return yellow(f"{text}: restore with --jobs 1, which needs none")


@check(
    "pushgateway",
    "whether the Pushgateway of PROMETHEUS_PUSHGATEWAY answers; nothing is reported to it",
    "set PROMETHEUS_PUSHGATEWAY, and check its Service, its Pod and network policies",
    needs=["settings"],
)
def _pushgateway(here: Surroundings) -> Finding:
    if here.settings.prometheus_pushgateway is None:
        return yellow("PROMETHEUS_PUSHGATEWAY is not set: no alert can fire when dumps stop")
    from clipper_backup.telemetry.pushgateway import Pushgateway  # noqa: PLC0415  70 ms that only this needs

    gateway = Pushgateway.parse(here.settings.prometheus_pushgateway)
    return green(f"{gateway.url} answers, version {gateway.version()}")


CHECKS = check.all
