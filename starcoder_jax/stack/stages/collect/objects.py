"""JSON objects that `render` makes texts of: GitHub's events, questions, notebooks, IR pairs."""

import functools
import json
import os
import re
import xml.etree.ElementTree
from collections.abc import Callable, Iterator, Mapping

from starcoder_jax.stack.stages.collect.columns import columns_of
from starcoder_jax.stack.stages.collect.config import CollectConfig
from starcoder_jax.stack.stages.collect.files import (
    decompressed,
    file_fingerprint,
    matching_files,
    read_up_to,
)
from starcoder_jax.stack.stages.collect.rows import (
    Item,
    drop_row,
    object_row,
    printable,
)
from starcoder_jax.stack.stages.collect.tables import json_lines, parsed, stem

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_ROW = re.compile(rb"\s*<row\s")
_MARKUP = re.compile(rb"\s*</?(\?xml|posts)")
_NUMBER = re.compile(r"[0-9]{1,19}")

# A JSON object, its bytes, and what to call it where it has no name itself.
_MakeRow = Callable[[Mapping, bytes, str, CollectConfig], dict]


def event_items(location: str, config: CollectConfig) -> list[Item]:
    """`events:GLOB`: events of GitHub as GHArchive has them, one a line, or payloads of webhooks.

    A file that is one JSON object, or a list of such, over several lines is read as a whole.

    Raises:
        ValueError: no file matches.
    """
    return _items(location, "event", _event)


def question_items(location: str, config: CollectConfig) -> list[Item]:
    """`questions:GLOB`: Posts.xml of Stack Exchange's dumps, or its rows as JSON lines.

    The site is the name of the folder if the file is called Posts, else the file's without -Posts.

    Raises:
        ValueError: no file matches.
    """
    return [
        Item(functools.partial(_read_posts, path), file_fingerprint(path, "questions"))
        for path in matching_files(location)
    ]


def kaggle_items(location: str, config: CollectConfig) -> list[Item]:
    """`kaggle:GLOB`: notebooks of Kaggle, JSON lines.

    Raises:
        ValueError: no file matches.
    """
    return _items(location, "kaggle_event", functools.partial(_named, "kaggle_event"))


def ir_items(location: str, config: CollectConfig) -> list[Item]:
    """`ir:GLOB`: pairs of code and LLVM's intermediate representation, JSON lines.

    Raises:
        ValueError: no file matches.
    """
    return _items(location, "ir_event", functools.partial(_named, "ir_event"))


def _items(location: str, kind: str, make_row: _MakeRow) -> list[Item]:
    return [
        Item(functools.partial(_read, path, kind, make_row), file_fingerprint(path, kind))
        for path in matching_files(location)
    ]


def _read(path: str, kind: str, make_row: _MakeRow, config: CollectConfig) -> Iterator[dict]:
    try:
        for number, value in _values(path, config):
            name = f"{stem(path)}/{number}"
            found = parsed(value) if isinstance(value, bytes) else value
            if isinstance(found, str):
                yield drop_row(found, kind=kind, repository=name)
            else:
                yield make_row(found, value, name, config)
    except OSError as error:
        yield drop_row("damaged table", kind=kind, repository=stem(path), detail=str(error))


def _values(path: str, config: CollectConfig) -> Iterator[tuple[int, bytes | str]]:
    with decompressed(path) as stream:
        whole = read_up_to(stream.read, config.max_file_bytes + 1)
    if len(whole) <= config.max_file_bytes and whole.strip().count(b"\n"):
        try:
            value = json.loads(whole)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            yield 1, whole
            return
        if isinstance(value, list):
            for number, one in enumerate(value, start=1):
                yield number, json.dumps(one).encode()
            return
    yield from json_lines(path, config)


def _event(event: Mapping, content: bytes, name: str, config: CollectConfig) -> dict:
    repository = _text(event, "repository", "full_name") or _text(event, "repo", "name")
    payload = event["payload"] if isinstance(event.get("payload"), dict) else event
    path = "event"
    for field, folder in (("issue", "issues"), ("pull_request", "pull")):
        subject = payload.get(field)
        if isinstance(subject, dict) and type(subject.get("number")) is int:
            path = f"{'pull' if 'pull_request' in subject else folder}/{subject['number']}"
    if repository is None:
        return drop_row("no repository", kind="event", repository=name, size=len(content))
    return object_row(content, config, kind="event", repository=repository, path=path)


def _text(value: Mapping, *names: str) -> str | None:
    for name in names:
        value = value.get(name) if isinstance(value, dict) else None
    return printable(value) if isinstance(value, str) and value else None


def _named(kind: str, row: Mapping, content: bytes, name: str, config: CollectConfig) -> dict:
    columns = columns_of(row, name, kind.partition("_")[0])
    return object_row(content, config, kind=kind, **columns)


def _read_posts(path: str, config: CollectConfig) -> Iterator[dict]:
    site = _site(path)
    try:
        for number, line in json_lines(path, config):
            if number == 1 and isinstance(line, bytes):
                line = line.removeprefix(_BYTE_ORDER_MARK)
            post = _post(line) if isinstance(line, bytes) else line
            if isinstance(post, str):
                name = f"stackexchange/{site}/line {number}"
                yield drop_row(post, kind="question_event", repository=name)
            elif post is not None:
                yield _post_row(post, site, config)
    except OSError as error:
        repository = f"stackexchange/{site}"
        yield drop_row(
            "damaged table", kind="question_event", repository=repository, detail=str(error)
        )


def _site(path: str) -> str:
    folder, name = os.path.split(path)
    name = name.partition(".xml")[0].partition(".json")[0]
    site = os.path.basename(folder) if name == "Posts" else name.removesuffix("-Posts")
    return printable(os.fsencode(site)).removesuffix(".com").removesuffix(".stackexchange")


def _post(line: bytes) -> Mapping | str | None:
    """The attributes of a row; a reason to drop it; None for what is around the rows."""
    if _ROW.match(line):
        # Entities can only be declared before the first element: here are none to expand.
        try:
            return xml.etree.ElementTree.fromstring(line).attrib
        except xml.etree.ElementTree.ParseError:
            return "not XML"
    return None if _MARKUP.match(line) else parsed(line)


def _post_row(post: Mapping, site: str, config: CollectConfig) -> dict:
    values = {name: str(post[name]) for name in ("PostTypeId", "Id", "ParentId") if name in post}
    kind = values.get("PostTypeId")
    question = values.get("Id" if kind == "1" else "ParentId", "")
    about = {"kind": "question_event", "repository": f"stackexchange/{site}"}
    if kind not in ("1", "2"):
        return drop_row("neither question nor answer", **about)
    if not all(_NUMBER.fullmatch(number) for number in (question, values.get("Id", ""))):
        return drop_row("no number", **about)
    about["repository"] += f"/{question}"
    about["path"] = f"questions/{question}"
    if kind == "2":
        about["path"] += f"/answers/{values['Id']}"
    content = json.dumps({**post, "site": site}, sort_keys=True).encode()
    return object_row(content, config, **about)
