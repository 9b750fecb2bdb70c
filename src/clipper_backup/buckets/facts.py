"""What can be known of a bucket beside its objects, in words that fit every provider. What could not be read says why."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from clipper_backup.errors import ClipperError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Known(Generic[T]):
    """An answer of the provider."""

    value: T


@dataclass(frozen=True, slots=True)
class Unread:
    """No answer, and why: a permission that is missing, a question the server does not know."""

    why: str


@dataclass(frozen=True, slots=True)
class LifecycleRule:
    """One rule that is in force. `prefix` is that of the keys it is for, empty for all.

    `narrowed` rules are for objects with certain tags only; ours have none. Days count from an object's last change, or from when
    it became an old version; None where the rule does not do that. `archives_after_days` is for storage classes that cannot be
    read at once. A rule that names a date instead of days has 0.
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

    `versioning`: whether older versions of objects are kept. `encryption`: with what new objects are encrypted at rest, empty for
    not at all. `public`: how strangers may read or list it, empty when they may not. `public_blocked`: whether nobody can open it
    to strangers by mistake.
    """

    versioning: Known[bool] | Unread
    encryption: Known[str] | Unread
    public: Known[str] | Unread
    public_blocked: Known[bool] | Unread
    rules: Known[tuple[LifecycleRule, ...]] | Unread


class ExtraMissingError(ClipperError):
    """The provider's SDK is not installed; the hint says which extra holds it."""
