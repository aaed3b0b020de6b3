"""How much memory an object takes on its way."""

import tracemalloc

import pytest

from job import storage
from job.storage import MEBIBYTE, Place, objects


def test_a_large_object_is_put_together_in_one_place(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 64 * MEBIBYTE
    monkeypatch.setattr(objects, "FIRST_BYTES", MEBIBYTE)
    monkeypatch.setattr(objects, "PIECE_BYTES", MEBIBYTE)
    storage.create(place / "object", b"0123456789abcdef" * (size // 16))
    tracemalloc.start()
    try:
        content = storage.read(place / "object", size)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(content) == size
    assert content[-16:] == b"0123456789abcdef"
    # Itself, and the pieces that are under way, each as it comes and as it is handed on; and on a
    # busy machine one more that waits for its turn.
    assert peak < size + objects.CONCURRENT * 4 * MEBIBYTE
