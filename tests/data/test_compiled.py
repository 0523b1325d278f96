import pytest
from numba.core.caching import CacheImpl

from data.compiled import compiled


def test_where_nothing_can_be_kept_it_is_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CacheImpl, "_locator_classes", [])

    @compiled
    def total(n: int) -> int:
        found = 0
        for i in range(n):
            found += i
        return found

    assert total(5) == 10
