"""`repository.json`: what a store is, made by the first writing command, checked by every command."""

from contextlib import suppress

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, NoRepositoryError, ObjectExistsError, ObjectMissingError, StoreError
from clipper_backup.format import names, physical_names
from clipper_backup.format.documents import FEATURES, FORMAT_VERSION, Repository, decode, encode
from clipper_backup.store.protocol import Store


def open_repository(store: Store, *, writing: bool = False) -> Repository:
    """Read what the store is; NoRepositoryError when it is none, StoreError when this version is too old for it.

    *writing* is for whoever will write or remove anything: an old version may be fit to read it and not to do that.

    IntegrityError where other objects of ours lie and it does not: with a new id, each would be another repository's (R1).
    """
    try:
        data = store.get(names.REPOSITORY)
    except ObjectMissingError as error:
        data = _look_again(store, error)
    repository = decode(data, Repository, names.REPOSITORY)
    needed = _to_write(repository) if writing else repository.min_reader_version
    _check_version(store, repository, needed)
    return repository


def open_or_create_repository(store: Store, clock: Clock, software: str) -> Repository:
    """For writing commands: make the repository by conditional create unless it exists."""
    try:
        return open_repository(store, writing=True)
    except NoRepositoryError:
        import uuid  # noqa: PLC0415  once in a repository's life

        made = Repository(id=uuid.uuid4().hex, created_at=clock.now(), created_by=software)
        with suppress(ObjectExistsError):  # somebody else was first: theirs it is
            store.put(names.REPOSITORY, encode(made), create=True)
        return open_repository(store, writing=True)


def check_same_repository(store: Store, repository_id: str) -> None:
    """Look again, before something is acknowledged or committed, that the store is what it was when the writer began.

    IntegrityError when it is not, or no longer, the repository of that id: another volume, or none, may lie there; and when this
    version may not write to it any more: a newer one asks for more than it knows, and an archiver runs for months.
    """
    try:
        repository = decode(store.get(names.REPOSITORY), Repository, names.REPOSITORY)
    except ObjectMissingError:
        repository = None
    if repository is None or repository.id != repository_id:
        found = "gone" if repository is None else repository.id
        raise IntegrityError(
            f"{store.url} is no longer the repository that it was: {names.REPOSITORY} is {found}, not {repository_id}",
            hints=[
                "a volume that is not mounted, or another one in its place? A bucket that was emptied?",
                "nothing that is stored there now is acknowledged",
            ],
        )
    try:
        _check_version(store, repository, _to_write(repository))
    except StoreError as error:
        raise IntegrityError(error.message, hints=[*error.hints, "nothing that is stored there now is acknowledged"]) from error


def _to_write(repository: Repository) -> int:
    """Which version of the format a writer must know."""
    return max(repository.min_reader_version, repository.min_writer_version)


def _look_again(store: Store, missing: ObjectMissingError) -> bytes:
    """What somebody else put there just now, and may have gone on to write more; else the error that says what is wrong."""
    try:
        _check_never_was(store)
    except IntegrityError:
        with suppress(ObjectMissingError):
            return store.get(names.REPOSITORY)
        raise
    raise NoRepositoryError(
        f"no repository at {store.url}",
        hints=[
            "check BACKUP_URL (or CLOUD_PROVIDER and BACKUP_BUCKET)",
            "the first `clipper-backup dump create` or `clipper-backup base create` makes one",
        ],
    ) from missing


def _check_never_was(store: Store) -> None:
    from clipper_backup.repository.dumps import list_dumps  # noqa: PLC0415  5 ms, for a store that is no repository

    committed = [listed for listed in list_dumps(store) if listed.committed]
    if committed:
        summary = names.dump_key(committed[-1].dump_id, names.SUMMARY)
        raise IntegrityError(
            f"{store.url} holds dumps, and its {names.REPOSITORY} is gone",
            hints=[
                f"put {names.REPOSITORY} back: a bucket that keeps versions has it still",
                f"or write it anew, with the `repository_id` of {summary} as its `id`; docs/design/dumps.md shows one",
                "then see what removed it: a bucket's rule that deletes by age must not reach beyond database/",
            ],
        )
    _check_nothing_physical(store)


def _check_nothing_physical(store: Store) -> None:
    present = set(store.folders(""))
    for folder in physical_names.OWN:
        # Some servers name folders that are empty by now.
        if folder.removesuffix("/") in present and any(True for _ in store.list(folder)):
            raise IntegrityError(
                f"{store.url} holds objects below {folder}, and its {names.REPOSITORY} is gone",
                hints=[
                    f"put {names.REPOSITORY} back: a bucket that keeps versions has it still",
                    "or write it anew with the old id: each backup.json has it, and so has a segment, from byte 48 on",
                    "then see what removed it: a bucket's rule that deletes by age must not reach beyond database/",
                ],
            )


def _check_version(store: Store, repository: Repository, needed: int) -> None:
    unknown = sorted(set(repository.required_features) - FEATURES)
    if needed > FORMAT_VERSION or unknown:
        what = f"needs {', '.join(unknown)}" if unknown else f"has format {needed}, this version knows {FORMAT_VERSION}"
        raise StoreError(
            f"the repository at {store.url} {what}",
            hints=["install the version of clipper-backup that writes to it, or a newer one"],
        )
