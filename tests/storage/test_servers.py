"""That the stores which tests share can be left and taken up again."""

import urllib.error
import urllib.request
from pathlib import Path

import pytest
import servers


def listens(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=10).close()
    except urllib.error.HTTPError:  # it refuses who says no name
        return True
    except urllib.error.URLError:
        return False
    return True


@pytest.mark.slow
def test_who_comes_after_the_last_has_left_gets_new_stores(tmp_path: Path) -> None:
    with servers.shared(tmp_path) as first:
        assert all(listens(server.url) for server in first.values())
    assert not any(listens(server.url) for server in first.values())
    with servers.shared(tmp_path) as second:
        assert all(listens(server.url) for server in second.values())
    assert {server.url for server in first.values()}.isdisjoint(
        server.url for server in second.values()
    )
