"""A page of a report as tests read it: what is in it, and that it keeps what every page must."""

import re
from html.parser import HTMLParser

VOID = {"meta", "link", "br", "img"}
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)
_BESIDE = r"[A-Za-z0-9_.%-]+(/[A-Za-z0-9_.%-]+)*$"  # another page: no scheme, no host


class Page(HTMLParser):
    """A page that was read: what is in it, and that it keeps what every page must keep."""

    def __init__(self, content: bytes) -> None:
        super().__init__()
        self.content = content
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(content.decode())
        self.close()
        assert self._open == []
        self.check()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"{tag} has an attribute twice: {attrs}"
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f" {data}"

    def check(self) -> None:
        """See that the page is one file without a script, and can be read out."""
        content = self.content.decode()
        assert len(self.content) < 2_000_000
        assert content.startswith('<!doctype html>\n<html lang="en">')
        assert "http://" not in content
        assert "https://" not in content
        assert "@import" not in content
        assert set(re.findall(r"url\(([^)]{,5})", content)) <= {"data:", *_fragments(content)}
        assert re.search(r"[\x00-\x08\x0b-\x1f\x7f]", content) is None
        assert self.named("script", "iframe", "object", "embed", "form", "base") == []
        assert len(self.named("h1")) == 1
        [policy] = [each for each in self.named("meta") if each.get("http-equiv")]
        assert policy["content"] == POLICY
        for tag, attributes in self.tags:
            assert not any(name.startswith("on") for name in attributes), (tag, attributes)
            for name in ("src", "href"):
                value = attributes.get(name)
                allowed = _BESIDE if tag == "a" else "data:|#"
                assert value is None or re.match(allowed, value), (tag, value)
        ids = [attributes["id"] for _, attributes in self.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        led_to = {each["aria-labelledby"] for _, each in self.tags if "aria-labelledby" in each}
        led_to |= {each["href"][1:] for _, each in self.tags if (each.get("href") or "")[:1] == "#"}
        assert led_to <= set(ids)
        for attributes in self.named("svg"):
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        assert all(each.get("alt") for each in self.named("img"))
        assert all(each.get("scope") in {"col", "row"} for each in self.named("th"))
        assert len(self.named("caption")) == len(self.named("table"))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of these names."""
        return [attributes for tag, attributes in self.tags if tag in names]

    def classed(self, name: str) -> list[dict[str, str | None]]:
        """Return the attributes of all elements of a class."""
        return [each for _, each in self.tags if name in (each.get("class") or "").split()]

    @property
    def headings(self) -> set[str]:
        """The identifiers of the page's parts."""
        return {str(each["id"]) for each in self.named("h2")}

    @property
    def words(self) -> str:
        """All text, in one line."""
        return " ".join(self.text.split())


def _fragments(content: str) -> set[str]:
    return {f"#{name[:4]}" for name in re.findall(r"<clipPath id=\"([^\"]+)", content)}
