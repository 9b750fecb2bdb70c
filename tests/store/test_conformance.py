"""Every store does what every store must do."""

import pytest

from clipper_backup.clock import SystemClock
from clipper_backup.store.conformance import CHECKS, Check, in_a_room, name_of
from clipper_backup.store.protocol import Store


@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_every_store_conforms(store: Store, check: Check) -> None:
    with in_a_room(store, SystemClock()) as room:
        check(room)
    assert list(store.list("")) == []
