"""The site is built without a warning, fetches nothing, and has no link that leads nowhere."""

import html.parser
import pathlib
import re
import subprocess
import sys
import urllib.parse

import pytest
import site_commands
import site_recipes
import site_settings
from documented import PAGES, ROOT

import starcoder_jax

for module in ("sphinx", "myst_parser", "furo"):
    pytest.importorskip(module, reason="the site's generator is not installed (the extra docs)")


def build(source: pathlib.Path, target: pathlib.Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", ROOT / "docs"]
    return subprocess.run([*command, source, target], capture_output=True, text=True, timeout=240)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    done = build(ROOT, target)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return target


class Page(html.parser.HTMLParser):
    """What a page links to, what it loads, and where it can be linked to."""

    def __init__(self, path: pathlib.Path):
        super().__init__()
        self.links, self.loads, self.ids = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids.add(given.get("id"))
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        if tag in ("script", "img", "link", "iframe") and (given.keys() & {"src", "href"}):
            self.loads.add(given.get("src") or given["href"])


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in site.rglob("*.html")}


def text_of(site: pathlib.Path, name: str) -> str:
    """The text of a page's article."""
    source = (site / name).read_text()
    article = source[source.index("<article") : source.index("</article>")]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", "", article)))


def test_every_page_is_there_and_can_be_reached(site, pages):
    for path in PAGES:
        assert (site / path.relative_to(ROOT)).with_suffix(".html") in pages
    start = site / "docs" / "index.html"
    shown = {(start.parent / link.partition("#")[0]).resolve() for link in pages[start].links}
    shown.add(start)
    assert pages.keys() - shown <= {
        site / name for name in ("index.html", "genindex.html", "search.html")
    }
    assert "url=docs/index.html" in (site / "index.html").read_text()


def test_every_link_leads_somewhere(pages):
    followed = 0
    for path, page in pages.items():
        for link in page.links | page.loads:
            url = urllib.parse.urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = path
            if url.path:
                target = (path.parent / urllib.parse.unquote(url.path)).resolve()
            assert target.exists(), (path, link)
            if url.fragment and target in pages:
                anchor = urllib.parse.unquote(url.fragment)
                assert anchor in pages[target].ids, (path, link)
                followed += 1
    assert followed > 100


def test_nothing_is_fetched(site, pages):
    for path, page in pages.items():
        assert [load for load in page.loads if "//" in load] == [], path
    styles = list(site.rglob("*.css"))
    assert styles
    for path in styles:
        assert re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)]*", path.read_text()) == []


def test_drawings_are_there_and_described(site, pages):
    drawings = sorted((ROOT / "docs" / "concepts").glob("*.svg"))
    assert len(drawings) > 3
    shown = (site / "docs" / "concepts").glob("*.html")
    images = {pathlib.Path(load).name for path in shown for load in pages[path].loads}
    for path in drawings:
        assert path.name in images
        text = path.read_text()
        assert "<title" in text and "<desc" in text
        assert "prefers-color-scheme: dark" in text and "http" not in text.replace(
            'xmlns="http://www.w3.org/2000/svg"', ""
        )


def test_the_reference_has_everything(site, pages):
    commands = text_of(site, "docs/reference/commands.html")
    assert {"train", "stack"} <= set(site_commands.commands())
    for name in site_commands.commands():
        parser = site_commands.command_parser(name)
        for each in (parser, *site_commands.subcommands(parser).values()):
            for action in each._actions:
                for flag in action.option_strings[:1]:
                    assert flag in commands or flag == "-h", (name, flag)
    settings = text_of(site, "docs/reference/settings.html")
    for kind, _ in site_settings.KINDS.values():
        for section, cls in kind.__annotations__.items():
            for field in cls.__dataclass_fields__:
                assert f"{section}.{field} " in settings
    recipes = text_of(site, "docs/reference/recipes.html")
    for path in site_recipes.recipes():
        assert f"{path.relative_to(site_recipes.RECIPES)}¶" in recipes
    for name in starcoder_jax.__all__:
        assert f"starcoder_jax.{name}" in pages[site / "docs/reference/python.html"].ids


def test_no_page_tells_where_it_was_built(site):
    for path in site.rglob("*.html"):
        assert str(ROOT) not in path.read_text(), path


def test_a_broken_link_or_anchor_fails(tmp_path):
    (tmp_path / "source" / "docs").mkdir(parents=True)
    (tmp_path / "source" / "README.md").write_text("# There\n\nSomething.\n")
    (tmp_path / "source" / "docs" / "index.md").write_text(
        "# Here\n\n[a](absent.md) [b](../README.md#nowhere) [c](../README.md#there) [d](#here)\n"
    )
    done = build(tmp_path / "source", tmp_path / "target")
    assert done.returncode != 0
    missing = [line for line in done.stderr.splitlines() if "myst.xref_missing" in line]
    assert len(missing) == 2
    assert "absent.md" in missing[0] and "nowhere" in missing[1]
