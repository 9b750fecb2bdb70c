"""`bucket check`: does this very store do what every store must, how fast, and what does its provider do behind our back."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from os import urandom
from urllib.parse import SplitResult, urlsplit

from clipper_backup.buckets.facts import BucketFacts, ExtraMissingError, Known, LifecycleRule, Unread, Way
from clipper_backup.config import repository_url
from clipper_backup.errors import ClipperError
from clipper_backup.format import names
from clipper_backup.ops.findings import Finding, green, red, yellow
from clipper_backup.ops.work import Work, step
from clipper_backup.store.conformance import CHECKS, ROOM_PREFIX, in_a_room, run_checks
from clipper_backup.store.credentials import aws_credentials, aws_region, azure_credentials, google_credentials
from clipper_backup.store.opening import by_virtual_host, is_on_this_machine
from clipper_backup.store.protocol import STREAM_CHUNK_BYTES, Store
from clipper_backup.values import show_bytes, show_count

_LEFTOVER_AGE = timedelta(days=1)
_ROOM = re.compile(rf"{ROOM_PREFIX}[0-9a-f]{{16}}/")
_SDK_SECONDS = 20
_FOLDER = Unread("a folder has none")


@dataclass(frozen=True, slots=True)
class Looked:
    """One line: what was looked at, and what was found."""

    name: str
    finding: Finding


@dataclass(frozen=True, slots=True)
class Speed:
    """Bytes a second, of one stream of random bytes."""

    write_bytes_per_second: float
    read_bytes_per_second: float


def sweep_leftovers(store: Store) -> tuple[list[Looked], int | None]:
    """Remove what checks have left that were killed more than a day ago; how many objects that were, None where that failed."""
    try:
        now = store.now()
        left = [info.key for info in store.list("") if _ROOM.match(info.key) and now - info.modified_at > _LEFTOVER_AGE]
        if left:
            store.delete(left)
    except ClipperError as error:
        return [Looked("leftovers", _wrong(error))], None
    return [], len(left)


def check_behaviour(work: Work, *, many_objects: int) -> Iterator[Looked]:
    """The conformance suite, each check in a folder of its own that is emptied afterwards."""
    running = run_checks(work.store, work.clock, many_objects=many_objects)
    for number in range(len(CHECKS)):
        with step(work, "conformance", f"check {number + 1} of {len(CHECKS)}") as told:
            name, error = next(running)
            told.done = name
        yield Looked(name, green("so it is") if error is None else _wrong(error))


def _wrong(error: Exception) -> Finding:
    hints = error.hints if isinstance(error, ClipperError) else ()
    return red(str(error), *(hints or ("this store does not keep what it promises: use another, or tell its makers",)))


def measure_speed(work: Work, size_bytes: int) -> tuple[Looked, Speed | None]:
    """Write and read one object of *size_bytes*, as a dump is written and read; None where that failed."""
    try:
        return _measured(work, size_bytes)
    except ClipperError as error:
        return Looked("speed", _wrong(error)), None


def _measured(work: Work, size_bytes: int) -> tuple[Looked, Speed]:
    block = urandom(min(size_bytes, STREAM_CHUNK_BYTES))
    sizes = [min(len(block), size_bytes - start) for start in range(0, size_bytes, len(block))]
    with in_a_room(work.store, work.clock) as room, step(work, "speed", f"write and read {show_bytes(size_bytes)}") as told:
        key, began = room.key("speed"), work.clock.monotonic()
        work.store.put_stream(key, told.metered((block[:size] for size in sizes), size_bytes), expected_bytes=size_bytes)
        written = work.clock.monotonic()
        read = sum(len(piece) for piece in work.store.get_stream(key))
        ended = work.clock.monotonic()
        told.done = f"{show_bytes(read)} written and read"
    speed = Speed(size_bytes / max(written - began, 1e-6), size_bytes / max(ended - written, 1e-6))
    text = (
        f"writes {show_bytes(speed.write_bytes_per_second)}/s, reads {show_bytes(speed.read_bytes_per_second)}/s, by one stream"
    )
    return Looked("speed", green(text) if read == size_bytes else red(f"{read} of {size_bytes} bytes came back")), speed


def read_facts(work: Work, environment: Mapping[str, str]) -> BucketFacts | Unread:
    """What the provider says of the bucket, asked as the store asks it; Unread where nobody can be asked.

    Azure tells some of it of a blob only: one is put for that, and removed again.
    """
    settings = work.settings
    parts = urlsplit(repository_url(settings))
    if parts.scheme == "file":
        return _FOLDER
    read, found = {
        "s3": (_read_s3, aws_credentials),
        "gs": (_read_gcs, google_credentials),
        "az": (_read_azure, azure_credentials),
    }[parts.scheme]
    way = Way(
        endpoint=settings.backup_endpoint.rstrip("/") if settings.backup_endpoint else None,
        timeout_seconds=_SDK_SECONDS,
        credentials=found(environment),
        ca_file=settings.store_ca_file,
        direct=is_on_this_machine(settings.backup_endpoint),
    )
    try:
        return read(work, parts, way, environment)
    except ExtraMissingError as error:
        return Unread(f"{error.message}; {error.hints[0]}")
    except ClipperError as error:
        return Unread(error.message)
    except Exception as error:  # noqa: BLE001  whatever an SDK raises, the other lines are still wanted
        return Unread(f"the provider's SDK failed: {type(error).__name__}: {' '.join(str(error).split())}")


def _read_s3(work: Work, parts: SplitResult, way: Way, environment: Mapping[str, str]) -> BucketFacts:
    from clipper_backup.buckets.s3 import read_s3  # noqa: PLC0415  an extra

    virtual_host = by_virtual_host(work.settings.s3_addressing_style, way.endpoint)
    return read_s3(parts.netloc, way, region=aws_region(environment), virtual_host=virtual_host)


def _read_gcs(work: Work, parts: SplitResult, way: Way, environment: Mapping[str, str]) -> BucketFacts:
    del work, environment
    from clipper_backup.buckets.gcs import read_gcs  # noqa: PLC0415  an extra

    return read_gcs(parts.netloc, way)


def _read_azure(work: Work, parts: SplitResult, way: Way, environment: Mapping[str, str]) -> BucketFacts:
    del environment
    from clipper_backup.buckets.azure import read_azure  # noqa: PLC0415  an extra

    account = work.settings.azure_storage_account or ""  # without one no store would be open
    with in_a_room(work.store, work.clock) as room:
        key = room.key("newest")
        work.store.put(key, b"")
        return read_azure(parts.netloc, way, account=account, written=f"{parts.path.strip('/')}/{key}".lstrip("/"))


def judge_facts(facts: BucketFacts | Unread, prefix: str, retention_days: int) -> list[Looked]:
    """A line for each thing a provider can say; *prefix* is the repository's folder in the bucket, with its `/`, or empty."""
    if isinstance(facts, Unread):
        return [
            Looked(name, green(facts.why) if facts is _FOLDER else _unread(facts))
            for name in ("lifecycle rules", "versioning", "encryption", "public access")
        ]
    return [
        *(
            [Looked("lifecycle rules", _unread(facts.rules))]
            if isinstance(facts.rules, Unread)
            else judge_rules(
                facts.rules.value,
                prefix,
                retention_days,
                versioned=isinstance(facts.versioning, Known) and facts.versioning.value,
            )
        ),
        Looked("versioning", _versioning(facts)),
        Looked("encryption", _encryption(facts)),
        Looked("public access", _public(facts)),
    ]


def _unread(unread: Unread) -> Finding:
    return yellow(f"not known: {unread.why}", _look(unread))


def _look(unread: Unread) -> str:
    return f"look yourself: {unread.look}" if unread.look else "let this identity read it, or look yourself"


def _versioning(facts: BucketFacts) -> Finding:
    if isinstance(facts.versioning, Unread):
        return _unread(facts.versioning)
    if facts.versioning.value:
        return green("on: what is deleted or written over can be brought back")
    if isinstance(facts.kept_days, Known) and facts.kept_days.value:
        return green(
            f"off, but what is deleted or written over can be brought back for {show_count(facts.kept_days.value, 'day')}"
        )
    todo = ["switch versioning on, with a rule that removes old versions"]
    if isinstance(facts.kept_days, Unread):
        return yellow(
            f"off; whether soft delete keeps what is deleted is not known: {facts.kept_days.why}", _look(facts.kept_days), *todo
        )
    return yellow("off: what is deleted or written over is gone", *todo)


def _encryption(facts: BucketFacts) -> Finding:
    if isinstance(facts.encryption, Unread):
        return _unread(facts.encryption)
    if facts.encryption.value:
        return green(f"by the provider: {facts.encryption.value}")
    return yellow("the bucket encrypts nothing by itself", "switch it on; ENCRYPTION_RECIPIENTS seals dumps before they leave us")


def _public(facts: BucketFacts) -> Finding:
    if isinstance(facts.public, Unread):
        return _unread(facts.public)
    if facts.public.value:
        return red(f"it is public: {facts.public.value}", "block all public access of this bucket now")
    if isinstance(facts.public_blocked, Unread):
        return yellow(
            f"not public; whether it can be made so is not known: {facts.public_blocked.why}", _look(facts.public_blocked)
        )
    if not facts.public_blocked.value:
        return yellow("not public, and nothing keeps it so", "block all public access of this bucket")
    return green("blocked")


def judge_rules(rules: Sequence[LifecycleRule], prefix: str, retention_days: int, *, versioned: bool) -> list[Looked]:
    """Lifecycle rules by what they would do to a repository in the folder *prefix* (rules 79 and 104).

    Only dumps, below `database/`, may go by age: a repository without its other objects is none. They alone are uploaded in
    parts. Rules for other folders of the bucket are nobody's harm.
    """
    ours = [rule for rule in rules if not rule.narrowed and _reaches(rule, prefix, names.OWN)]
    findings = [finding for rule in ours for finding in _harm(rule, prefix, retention_days)]
    if versioned and not any(rule.deletes_old_versions_after_days is not None for rule in ours):
        findings.append(yellow("no rule removes old versions: the bucket grows for ever", "add one, after 7 days for instance"))
    if not any(rule.ends_uploads_after_days and (prefix + names.DATABASE_FOLDER).startswith(rule.prefix) for rule in ours):
        todo = "add one that aborts incomplete multipart uploads after 7 days"
        findings.append(yellow("no rule removes unfinished uploads, which no listing shows", todo))
    return [
        Looked("lifecycle rules", each)
        for each in findings or [green(f"{show_count(len(ours), 'rule')}, none of which does harm")]
    ]


def _reaches(rule: LifecycleRule, prefix: str, own: Iterable[str]) -> bool:
    """Whether a rule is for any of these objects and folders of the repository at *prefix*."""
    return any((prefix + each).startswith(rule.prefix) or rule.prefix.startswith(prefix + each) for each in own)


def _harm(rule: LifecycleRule, prefix: str, retention_days: int) -> Iterator[Finding]:
    """What one rule does that it should not."""
    days, dumps = rule.deletes_after_days, names.DATABASE_FOLDER
    when = f"after {show_count(days, 'day')}" if days else "at a date or at once"
    if days is not None and _reaches(rule, prefix, set(names.OWN) - {dumps}):
        todo = f"narrow it to the prefix {prefix}{dumps}, or remove it"
        yield red(f"rule {rule.name!r} deletes beyond {dumps} {when}: what makes it a repository goes too, and holds do", todo)
    elif days is not None and days < retention_days:
        text = f"rule {rule.name!r} deletes dumps {when}, before RETENTION_DAYS ({retention_days})"
        yield red(text, "raise its days, or remove it")
    elif days is not None:
        text = f"rule {rule.name!r} deletes dumps {when}: it knows neither holds nor RETENTION_MIN_DUMPS"
        yield yellow(text, "remove it: `clipper-backup prune` does the same and knows both")
    if rule.archives_after_days is not None:
        text = f"rule {rule.name!r} moves objects where they cannot be read for hours"
        yield red(text, "leave them in a class that is read at once")
