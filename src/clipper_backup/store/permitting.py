"""The wrapper through which only what was proven may be removed."""

from collections.abc import Callable, Sequence

from clipper_backup.errors import IntegrityError
from clipper_backup.store.protocol import Store
from clipper_backup.store.wrapper import WrapperStore


class PermittingStore(WrapperStore):
    """`delete` of a key of which *permitted* does not say so is an IntegrityError; none of the call's keys is removed then."""

    def __init__(self, inner: Store, permitted: Callable[[str], bool]) -> None:
        super().__init__(inner)
        self._permitted = permitted

    def delete(self, keys: Sequence[str]) -> None:
        """See `Store.delete`."""
        for key in keys:
            if not self._permitted(key):
                raise IntegrityError(
                    f"{key} was to be removed, and nothing showed that it may be: it stays",
                    hints=[
                        "run it again: it decides anew; when it happens again, it is a fault of clipper-backup, please report it"
                    ],
                )
        super().delete(keys)
