"""What every restore needs must not lie in what one removes: the repository, and the keys that open it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from clipper_backup.errors import UsageError
from clipper_backup.kinds import NONE
from clipper_backup.ops.restore.work_dir import holds
from clipper_backup.ops.work import Work


def refuse_needed(work: Work, removed: Iterable[Path]) -> None:
    """UsageError where the repository or a key of *work* lies in a folder whose content is *removed* first."""
    removed = tuple(removed)
    for what, place in _needed(work):
        for folder in removed:
            if holds(folder, place):
                raise UsageError(
                    f"{what}, {place}, lies in {folder}, which is emptied first: it would be gone for good",
                    hints=["move it elsewhere, and say where it is then", "or restore beside it: --target-dir another folder"],
                )


def _needed(work: Work) -> Iterator[tuple[str, Path]]:
    """What it is, and where it lies here."""
    url = urlsplit(work.store.url)
    if url.scheme == "file":
        yield "the repository", Path(unquote(url.path))
    settings = work.settings
    for name, file in (
        ("the key in ENCRYPTION_IDENTITY_FILE", settings.encryption_identity_file),
        ("the key in SIGNING_KEY_FILE", settings.signing_key_file),
    ):
        if file is not None and file != Path(NONE):
            yield name, file
