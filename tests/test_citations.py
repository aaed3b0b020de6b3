"""What the code cites is there to be read."""

import re

from conftest import REPOSITORY

CODE = [
    path
    for folder in ("job", "scripts", "tests", "k8s")
    for path in sorted((REPOSITORY / folder).rglob("*"))
    if path.suffix in {"", ".py", ".yaml", ".json"} and path.is_file()
] + [REPOSITORY / name for name in ("Makefile", "Dockerfile", "pyproject.toml")]


def test_every_document_that_code_cites_exists():
    cited = {
        (path.relative_to(REPOSITORY), name)
        for path in CODE
        for name in re.findall(r"(?<![\w/*.-])[\w./-]+\.md\b", path.read_text())
    }
    assert len(cited) > 5
    missing = {
        (str(path), name)
        for path, name in cited
        if not ((REPOSITORY / name).is_file() or (REPOSITORY / path.parent / name).is_file())
    }
    assert not missing
