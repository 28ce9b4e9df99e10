"""The page's files: how they are served, and that nothing in them comes from elsewhere or breaks their own policy."""

import re
from html.parser import HTMLParser

import pytest

pytest.importorskip("starlette")

from mobileo_mlx.serving.page_api import FOLDER, page_files

FILES = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
MODULES = {name: text for name, text in FILES.items() if name.endswith(".js")}
NAMES = (FOLDER.parents[2] / "docs" / "page.md").read_text(encoding="utf-8")


class Tags(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.inside: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        if self.found[-1:] and self.found[-1][0] in ("script", "style") and data.strip():
            self.inside.append(data)


TAGS = Tags(FILES["index.html"])


def test_every_file_is_served_with_its_type_and_the_policy(client) -> None:
    types = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "svg": "image/svg+xml"}
    assert set(page_files()) == set(FILES)
    for name, text in FILES.items():
        answer = client.get(f"/page/{name}")
        assert answer.status_code == 200
        assert answer.text == text
        assert answer.headers["content-type"] == types.get(name.split(".")[1], "text/javascript; charset=utf-8")
        assert "default-src 'self';" in answer.headers["content-security-policy"]
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get("/").text == FILES["index.html"]
    assert client.head("/").status_code == 200


def test_a_file_that_the_browser_has_is_not_sent_again(client) -> None:
    tag = client.get("/page/main.js").headers["etag"]
    for known in (tag, f'"other", W/{tag}', "*"):
        answer = client.get("/page/main.js", headers={"If-None-Match": known})
        assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", tag)
        assert "content-security-policy" in answer.headers
    assert client.get("/page/main.js", headers={"If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", ["none.js", "..%2fpage_api.py", "%2e%2e/page_api.py", "index.html%00", "INDEX.HTML"])
def test_there_is_nothing_else(client, path: str) -> None:
    answer = client.get(f"/page/{path}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "not_found"


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    assert TAGS.inside == []
    for tag, attributes in TAGS.found:
        assert not [name for name in attributes if name == "style" or name.startswith("on")], tag
        for name in ("src", "href"):
            if link := attributes.get(name):
                assert link.startswith("#") or link.removeprefix("/page/") in FILES, link
    for name, text in FILES.items():
        for address in re.findall(r"\b(?:https?:)?//[\w.-]+\.\w+[^\s\"')]*", text):
            assert address == "http://www.w3.org/2000/svg", (name, address)
        if name.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
            ), name


def test_modules_import_what_is_there_and_use_what_they_import() -> None:
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:function\*?|const|class|let) (\w+)", text, re.MULTILINE))
        for name, text in MODULES.items()
    }
    reached, todo = set(), ["main.js", "theme.js"]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        for names, source in re.findall(r'^import \{ ([^}]+) \} from "\./([\w.]+)";', MODULES[name], re.MULTILINE):
            todo.append(source)
            body = re.sub(r"^import .*$", "", MODULES[name], flags=re.MULTILINE)
            for each in names.split(", "):
                assert each in exported[source], (name, each)
                assert re.search(rf"\b{each}\b", body), (name, each)
    assert reached == set(MODULES)


def test_modules_are_small_and_the_first_visit_is_light() -> None:
    for name, text in MODULES.items():
        assert text.count("\n") <= 200, name
    assert sum(len(data) for data, _, _ in page_files().values()) < 200_000


def test_ids_are_unique_and_labels_point_to_them() -> None:
    ids = [attributes["id"] for _, attributes in TAGS.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in TAGS.found:
        for name in ("for", "aria-controls", "aria-labelledby", "popovertarget"):
            if target := attributes.get(name):
                assert target in [*ids, "keys-title"], target


def test_the_icons_that_are_used_are_drawn() -> None:
    drawn = set(re.findall(r'<symbol id="(\w+)"', FILES["icons.svg"]))
    code = "".join(MODULES.values())
    used = set(re.findall(r'\bicon(?:Button)?\("(\w+)"', code))
    others = {"left", "right", "system", "sun", "moon", "lock"}  # chosen by a condition
    assert used | others == drawn


def test_the_names_in_the_docs_are_those_of_the_page() -> None:
    rows = [row for row in NAMES.splitlines() if row.startswith("| ") and "---" not in row]
    sources = FILES["index.html"] + "".join(MODULES.values())
    names = {name for row in rows for name in re.findall(r"`((?!data-)[a-z_-]+)`", row)}
    assert len(names) > 30
    prefixes = {"draw", "ask", "edit", "chat", "viewer", "server"}
    for name in names - prefixes:
        first, _, rest = name.partition("-")
        parts = [name, rest, name.replace("-", "_")] if first in prefixes else [name]
        assert any(re.search(rf"\b{re.escape(part)}\b", sources) for part in parts if part), name
