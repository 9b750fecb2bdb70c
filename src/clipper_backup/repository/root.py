"""`repository.json`: what a store is, made by the first writing command, checked by every command."""

import uuid
from contextlib import suppress

from clipper_backup.clock import Clock
from clipper_backup.errors import IntegrityError, NoRepositoryError, ObjectExistsError, ObjectMissingError, StoreError
from clipper_backup.format import names
from clipper_backup.format.documents import FEATURES, FORMAT_VERSION, Repository, decode, encode
from clipper_backup.repository.dumps import list_dumps
from clipper_backup.store.protocol import Store


def open_repository(store: Store, *, writing: bool = False) -> Repository:
    """Read what the store is; NoRepositoryError when it is none, StoreError when this version is too old for it.

    *writing* is for whoever will write or remove anything: an old version may be fit to read it and not to do that.

    IntegrityError where dumps lie and it does not: with a new id, each of them would be another repository's.
    """
    try:
        data = store.get(names.REPOSITORY)
    except ObjectMissingError as error:
        _check_never_was(store)
        raise NoRepositoryError(
            f"no repository at {store.url}",
            hints=["check BACKUP_URL (or CLOUD_PROVIDER and BACKUP_BUCKET)", "the first `clipper-backup dump create` makes one"],
        ) from error
    repository = decode(data, Repository, names.REPOSITORY)
    needed = max(repository.min_reader_version, repository.min_writer_version) if writing else repository.min_reader_version
    _check_version(store, repository, needed)
    return repository


def open_or_create_repository(store: Store, clock: Clock, software: str) -> Repository:
    """For writing commands: make the repository by conditional create unless it exists."""
    try:
        return open_repository(store, writing=True)
    except NoRepositoryError:
        made = Repository(id=uuid.uuid4().hex, created_at=clock.now(), created_by=software)
        with suppress(ObjectExistsError):  # somebody else was first: theirs it is
            store.put(names.REPOSITORY, encode(made), create=True)
        return open_repository(store, writing=True)


def _check_never_was(store: Store) -> None:
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


def _check_version(store: Store, repository: Repository, needed: int) -> None:
    unknown = sorted(set(repository.required_features) - FEATURES)
    if needed > FORMAT_VERSION or unknown:
        what = f"needs {', '.join(unknown)}" if unknown else f"has format {needed}, this version knows {FORMAT_VERSION}"
        raise StoreError(
            f"the repository at {store.url} {what}",
            hints=["install the version of clipper-backup that writes to it, or a newer one"],
        )
