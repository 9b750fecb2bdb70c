"""What can be known of a bucket beside its objects, in words that fit every provider. What could not be read says why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from clipper_backup.errors import ClipperError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """An answer of the provider."""

    value: T


@dataclass(frozen=True, slots=True)
class Unread:
    """No answer, and why: a permission that is missing, a question the server does not know.

    `look` is the command with which a person who may can see for himself, empty where there is none.
    """

    why: str
    look: str = ""


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """One rule that is in force. `prefix` is that of the keys it is for, empty for all.

    `narrowed` rules are for objects with certain tags only; ours have none. Days count from an object's last change, or from when
    it became an old version; None where the rule does not do that. `archives_after_days` is for storage classes that cannot be
    read at once. A rule that names a date instead of days, or no days at all, has 0.
    """

    name: str
    prefix: str
    narrowed: bool
    deletes_after_days: int | None
    deletes_old_versions_after_days: int | None
    archives_after_days: int | None
    ends_uploads_after_days: int | None


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What a provider says of a bucket.

    `versioning`: whether older versions of objects are kept. `kept_days`: for how many days what was deleted can be brought back
    without versioning (soft delete), 0 for not at all. `encryption`: with what new objects are encrypted at rest and by whose
    key, as far as it is told, empty for not at all. `public`: how strangers may read or list it, empty when they may not.
    `public_blocked`: whether nobody can open it to strangers by mistake.
    """

    versioning: Known[bool] | Unread
    kept_days: Known[int] | Unread
    encryption: Known[str] | Unread
    public: Known[str] | Unread
    public_blocked: Known[bool] | Unread
    rules: Known[tuple[LifecycleRule, ...]] | Unread


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How a provider is asked: as the store reaches it.

    *endpoint* None means the provider's own. *credentials* are obstore's names, and hold secrets; empty means the identity of
    the machine or pod. *direct* means that no proxy is used. *ca_file* holds authorities (PEM) that are trusted besides the
    system's. *timeout_seconds* is for each request; a person waits, so few are tried again.
    """

    endpoint: str | None
    timeout_seconds: int
    credentials: Mapping[str, str] = field(repr=False)
    ca_file: Path | None = None
    direct: bool = False


class ExtraMissingError(ClipperError):
    """The provider's SDK is not installed; the hint says which extra holds it."""


def extra_missing(package: str, extra: str) -> ExtraMissingError:
    """The error for *package* of the extra *extra*."""
    hints = [f"pip install 'clipper-backup[{extra}]'"]
    return ExtraMissingError(f"{package} is not installed: nothing is known of the bucket itself", hints=hints)
