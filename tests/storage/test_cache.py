"""The cache of data sets: never needed, never wrong."""

import shutil
from pathlib import Path
from typing import Any

import faults
import pytest

from job import storage
from job.errors import DataError
from job.storage import Place, parse
from job.storage.cache import Cache

VERSION = '"5d41402abc4b2a76"'
URI = parse("s3://bucket/data.npz")


class Notes(list[tuple[str, dict[str, Any]]]):
    def __call__(self, event: str, **details: Any) -> None:
        self.append((event, details))


@pytest.fixture
def notes() -> Notes:
    return Notes()


def only(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_what_was_kept_is_found(tmp_path: Path, notes: Notes) -> None:
    Cache(Place.of(tmp_path / "new"), notes).keep(URI, VERSION, b"content")
    assert Cache(Place.of(tmp_path / "new"), notes).find(URI, VERSION, 7) == b"content"
    assert notes == []


def test_another_uri_or_version_is_not_found(tmp_path: Path, notes: Notes) -> None:
    cache = Cache(Place.of(tmp_path), notes)
    cache.keep(URI, VERSION, b"content")
    assert cache.find(URI, '"other"', 10) is None
    assert cache.find(parse("s3://bucket/other.npz"), VERSION, 10) is None


def test_content_is_kept_once_however_many_places_have_it(tmp_path: Path, notes: Notes) -> None:
    cache = Cache(Place.of(tmp_path), notes)
    for uri in ("s3://bucket/a", "gs://bucket/b"):
        cache.keep(parse(uri), "1", b"content")
        assert cache.find(parse(uri), "1", 10) == b"content"
    only(tmp_path / "objects")


def test_more_than_the_limit_is_not_found(tmp_path: Path, notes: Notes) -> None:
    Cache(Place.of(tmp_path), notes).keep(URI, VERSION, b"content")
    assert Cache(Place.of(tmp_path), notes).find(URI, VERSION, 6) is None


@pytest.mark.parametrize("damage", [b"", b"conten!", b"content and more"])
def test_damaged_content_is_removed_and_replaced(
    tmp_path: Path, notes: Notes, damage: bytes
) -> None:
    cache = Cache(Place.of(tmp_path), notes)
    cache.keep(URI, VERSION, b"content")
    only(tmp_path / "objects").write_bytes(damage)
    assert cache.find(URI, VERSION, 100) is None
    cache.keep(URI, VERSION, b"content")
    assert cache.find(URI, VERSION, 100) == b"content"


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"../../etc/passwd", b"/etc/passwd", b"0" * 64]
)
def test_a_damaged_entry_finds_nothing(tmp_path: Path, notes: Notes, damage: bytes) -> None:
    cache = Cache(Place.of(tmp_path), notes)
    cache.keep(URI, VERSION, b"content")
    only(tmp_path / "versions").write_bytes(damage)
    assert cache.find(URI, VERSION, 10_000) is None
    cache.keep(URI, VERSION, b"content")
    assert cache.find(URI, VERSION, 100) == b"content"


def test_without_room_nothing_is_kept(
    tmp_path: Path, notes: Notes, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=13))
    Cache(Place.of(tmp_path), notes).keep(URI, VERSION, b"content")
    assert list(tmp_path.iterdir()) == []
    assert notes == [("cache_skipped", {"reason": f"{tmp_path} is short of room"})]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=14))
    Cache(Place.of(tmp_path), notes).keep(URI, VERSION, b"content")
    assert Cache(Place.of(tmp_path), notes).find(URI, VERSION, 7) == b"content"


def test_a_folder_that_cannot_be_made_is_no_reason_to_fail(tmp_path: Path, notes: Notes) -> None:
    (tmp_path / "file").touch()
    cache = Cache(Place.of(tmp_path / "file" / "cache"), notes)
    assert cache.find(URI, VERSION, 10) is None
    cache.keep(URI, VERSION, b"content")
    [(event, details)] = notes
    assert event == "cache_skipped"
    assert "not a directory" in details["reason"].lower()


# --- with a store behind it -------------------------------------------------------------------


def fetched(faulty: faults.Proxy) -> int:
    """Return how many requests came by since the last look."""
    count = len(faulty.requests)
    faulty.clear()
    return count


def test_a_data_set_is_fetched_once_per_version(
    faulty: faults.Proxy, place: Place, tmp_path: Path
) -> None:
    settings = storage.Settings(cache=str(tmp_path))
    storage.configure(settings)
    storage.create(place / "data", b"first")
    fetched(faulty)
    assert storage.read_cached(place / "data", 100) == b"first"
    assert fetched(faulty) == 2  # its version, then all of it
    storage.configure(settings)
    assert storage.read_cached(place / "data", 100) == b"first"
    assert fetched(faulty) == 1
    storage.remove(place / "data")
    storage.create(place / "data", b"other")  # of the same size
    assert storage.read_cached(place / "data", 100) == b"other"
    with pytest.raises(DataError):
        storage.read_cached(place / "data", 4)


def test_no_cache_means_none(faulty: faults.Proxy, place: Place) -> None:
    storage.configure(storage.Settings(cache=storage.NO_CACHE))
    storage.create(place / "data", b"first")
    fetched(faulty)
    for _ in range(2):
        assert storage.read_cached(place / "data", 100) == b"first"
        assert fetched(faulty) == 1


def test_files_are_not_cached(tmp_path: Path) -> None:
    storage.configure(storage.Settings(cache=str(tmp_path / "cache")))
    (tmp_path / "data").write_bytes(b"x")
    assert storage.read_cached(parse(str(tmp_path / "data")), 10) == b"x"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"XDG_CACHE_HOME": "/x"}, "/x/mnist-job"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/x"}, "/home/x/.cache/mnist-job"),
        ({"XDG_CACHE_HOME": "relative"}, None),
    ],
)
def test_the_cache_is_the_users_own_unless_told(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert storage.Settings().cache_folder == (None if folder is None else Place.of(Path(folder)))
