"""Sources of a small corpus, some of them hostile, and what has to become of each file."""

import io
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import tarfile
import zipfile

import micro
from identify.vendor.licenses import LICENSES

_LICENSES = dict(LICENSES)
_WORDS = re.findall(
    "[a-z]+",
    "angle basin cable delta ember fable grain hinge inlet joint knoll ledge maple north orbit "
    "pearl quill ridge spoke torch union valve wheel yield zonal",
)

# Put together here, so that nothing in this file looks like a secret.
EMAIL = "ada.reed" + "@" + "reed-works" + ".com"
KEY = "gh" + "p_" + "".join(random.Random(11).choices(_WORDS[0] + "QRSTUVWX123456789", k=36))
ADDRESS = ".".join(("93", "184", "216", "34"))
OUTSIDE = "this stands outside of every repository"
SCRIPT = "<script>alert('a file said this')</script>"
IMAGE = "<img src=x onerror=alert(1)>"
PROBLEM = "Fold the planks of a crooked pier in half and return how many of them still touch water."

SHARDS = 4
_MAX_FILE_BYTES = 60_000
_GIT = shutil.which("git")

# Why what was found must not be published, by repository and path.
GONE = {
    ("ada/parser", ".cache"): "hidden folder",
    ("ada/parser", "LICENSE"): "plain text",
    ("ada/parser", "binary.py"): "binary",
    ("ada/parser", "empty.py"): "empty",
    ("ada/parser", "generated.py"): "generated",
    ("ada/parser", "huge.py"): "too large",
    ("ada/parser", "long.py"): "long lines",
    ("ada/parser", "outside.py"): "symbolic link",
    ("ada/parser", "solution.py"): "benchmark",
    ("ada/parser", f"{IMAGE}.py"): "few letters",
    ("bob/copies", "exact.py"): "exact duplicate",
    ("bob/copies", "near.py"): "near duplicate",
    ("carol/tool", "LICENSE"): "plain text",
    ("dan/archived", "archived-1/../../escape.py"): "path climbs out",
    ("dan/archived", "passwd"): "link",
    ("eve/<b>copyleft<b>", "LICENSE"): "non-permissive license",
    ("eve/<b>copyleft<b>", "main.c"): "non-permissive license",
    ("ivan/viral", "viral.py"): "non-permissive license",
    ("judy/board", "issues/2"): "short issue",
    ("mallory/bomb", None): "archive too large",
    ("pages", "logo.svg"): "no page",
    ("rows/2", "2.1"): "no content",
    ("rows/3", None): "not JSON",
}

# What must be published: in which components, and under which license.
THERE = {
    ("ada/parser", "caf\\xe9.py"): ({"python"}, "MIT"),
    ("ada/parser", "contact.py"): ({"python"}, "MIT"),
    ("ada/parser", "latin.py"): ({"python"}, "MIT"),
    ("ada/parser", "notes.ipynb"): ({"notebook_script", "notebook_structured"}, "MIT"),
    ("ada/parser", "parser.py"): ({"python"}, "MIT"),
    ("ada/parser", "script.py"): ({"python"}, "MIT"),
    ("bob/copies", "own.py"): ({"python"}, None),
    ("carol/tool", "tool.py"): ({"python"}, "Apache-2.0"),
    ("dan/archived", "main.py"): ({"python"}, None),
    ("grace/memoir", "engine.go"): ({"go"}, None),
    ("heidi/lib", "lib.py"): ({"python"}, "MIT"),
    ("judy/board", "issues/1"): ({"issue"}, None),
    ("pages", "index.html"): ({"documentation"}, None),
}


def module(seed: int, lines: int = 30) -> str:
    """Python code that is like that of no other seed."""
    rng = random.Random(seed)
    name, *words = (rng.choice(_WORDS) for _ in range(4))
    text = f'"""How to {name} a {words[0]}, in {seed} steps."""\n\n\ndef {name}({words[1]}):\n'
    for _ in range(lines):
        left, right, other = (rng.choice(_WORDS) for _ in range(3))
        text += f"    {left}_{right} = {other}({words[1]}, {rng.choice(_WORDS)!r})\n"
    return text + f"    return {rng.choice(_WORDS)}\n"


def write_sources(folder: pathlib.Path) -> None:
    """Makes all sources, a benchmark and `corpus.gin`, a recipe of a corpus of them."""
    _folders(folder / "folders", folder)
    _repository(folder / "git" / "carol" / "tool")
    _archives(folder / "archives")
    _rows(folder / "rows.jsonl")
    _events(folder / "events.jsonl")
    _pages(folder / "pages")
    problem = {
        "task_id": "HumanEval/0",
        "prompt": f'def planks(pier):\n    """{PROBLEM}\n    """\n',
        "canonical_solution": "    return sum(plank.wet for plank in pier[: len(pier) // 2 + 1])\n",
        "entry_point": "planks",
    }
    (folder / "benchmark.jsonl").write_text(json.dumps(problem) + "\n")
    (folder / "corpus.gin").write_text(
        f"""
collect.sources = (
    "folders:{folder}/folders/*/*",
    "{"git" if _GIT else "folders"}:{folder}/git/*/*",
    "archive:{folder}/archives/*/*",
    "jsonl:{folder}/rows.jsonl",
    "events:{folder}/events.jsonl",
    "pages:{folder}/pages",
)
collect.shards = {SHARDS}
collect.max_file_bytes = {_MAX_FILE_BYTES}
collect.max_repository_bytes = 500_000
decontaminate.benchmarks = {{"humaneval": "{folder}/benchmark.jsonl"}}
publish.shards = 2
runner.workers = 2
runner.memory_bytes = 20_000  # so that shuffles spill
"""
    )


def _write(folder: pathlib.Path, contents: dict[str, str | bytes]) -> None:
    for path, content in contents.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)


def _folders(folder: pathlib.Path, outside: pathlib.Path) -> None:
    mit = _LICENSES["MIT"]
    contact = f'AUTHOR = "{EMAIL}"\nTOKEN = "{KEY}"\nHOST = "{ADDRESS}"\n'
    cells = [
        {"cell_type": "markdown", "source": ["# Tides\n", "How they turn."], "metadata": {}},
        {"cell_type": "code", "source": module(5), "outputs": [], "metadata": {}},
    ]
    python = {"kernelspec": {"language": "python"}}
    notebook = {"cells": cells, "metadata": python, "nbformat": 4, "nbformat_minor": 5}
    # A special token of the vocabulary, written by somebody who would like it to become one.
    forged = module(6) + "# <|endoftext|><repo_name>ada/forged\n"
    _write(
        folder / "ada" / "parser",
        {
            "LICENSE": mit,
            "parser.py": module(1),
            "contact.py": module(2) + contact,
            "latin.py": (
                module(3) + "# Garçon, voilà un café très serré, déjà payé à l'été\n"
            ).encode("latin-1"),
            "script.py": forged + f"# {SCRIPT}\n",
            "notes.ipynb": json.dumps(notebook),
            "solution.py": f'{module(7)}\n\ndef f(planks):\n    """\n{PROBLEM.upper()}"""\n',
            "binary.py": b"\x7fELF\0\0\1",
            "empty.py": "\n",
            "generated.py": f"# This file is generated. {EMAIL} {KEY}\n{module(8)}",
            "huge.py": "# filler\n" * (_MAX_FILE_BYTES // 9 + 1),
            "long.py": f"VALUES = '{'many words ' * 200}'\n",
            f"{IMAGE}.py": f"</pre>{SCRIPT}" + "\n+-*/=%&|^~<>()[]{}" * 40,
            ".cache/kept.py": module(9),
        },
    )
    (folder / "ada" / "parser" / os.fsdecode(b"caf\xe9.py")).write_text(module(10))
    _write(outside, {"secret.py": f"# {OUTSIDE}\n{module(11)}"})
    (folder / "ada" / "parser" / "outside.py").symlink_to(outside / "secret.py")
    near = module(12, lines=60).replace("return", "return not", 1)
    _write(
        folder / "bob" / "copies",
        {"exact.py": module(1), "near.py": near, "own.py": module(13)},
    )
    _write(
        folder / "eve" / "<b>copyleft<b>",
        {"LICENSE": _LICENSES["GPL-3.0"], "main.c": f"/* {SCRIPT} */\nint main(void);\n"},
    )
    _write(
        folder / "grace" / "memoir",
        {"engine.go": f"package engine\n\n/*\n{module(19)}*/\nfunc Start() {{}}\n"},
    )


def _repository(folder: pathlib.Path) -> None:
    _write(folder, {"LICENSE": _LICENSES["Apache-2.0"], "tool.py": module(12, lines=60)})
    who = {
        f"GIT_{role}_{what}": value
        for role in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "C"), ("EMAIL", "c@c.test"), ("DATE", "1700000000 +0000"))
    }
    quiet = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    for command in ("init -q -b main", "add -A", "commit -q -m Begin") if _GIT else ():
        subprocess.run(
            ["git", "-C", str(folder), *command.split()],
            env={"PATH": os.environ["PATH"], **who, **quiet},
            check=True,
        )


def _archives(folder: pathlib.Path) -> None:
    for owner in ("dan", "mallory"):
        (folder / owner).mkdir(parents=True)
    with tarfile.open(folder / "dan" / "archived.tar.gz", "w:gz") as archive:
        top = tarfile.TarInfo("archived-1")
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        files = {"archived-1/main.py": module(15), "archived-1/../../escape.py": module(16)}
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content.encode())
            archive.addfile(member, io.BytesIO(content.encode()))
        link = tarfile.TarInfo("archived-1/passwd")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with zipfile.ZipFile(folder / "mallory" / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"bomb/{number}.txt", b"\0" * (_MAX_FILE_BYTES - 1))


def _rows(path: pathlib.Path) -> None:
    """As in The Stack v1."""
    lib = {
        "content": module(17),
        "lang": "Python",
        "hexsha": "c" * 40,
        "max_stars_repo_name": "heidi/lib",
        "max_stars_repo_path": "lib.py",
        "max_stars_repo_licenses": ["MIT"],
        "max_stars_count": 50,
    }
    viral = {
        "content": module(18),
        "lang": "Python",
        "max_stars_repo_name": "ivan/viral",
        "max_stars_repo_path": "viral.py",
        "max_stars_repo_licenses": ["GPL-3.0"],
    }
    lines = [json.dumps(lib), json.dumps({"lang": "Python"}), '{"content": ', json.dumps(viral)]
    path.write_text("\n".join(lines) + "\n")


def _events(path: pathlib.Path) -> None:
    def event(type: str, user: str, number: int, minute: int, body: str, comment: str = "") -> dict:
        time = f"2024-05-01T10:{minute:02}:00Z"
        author = {"login": "judy", "type": "User"}
        issue = {"number": number, "title": "The gate sticks when it rains", "body": body}
        payload = {"action": "opened", "issue": issue | {"user": author, "created_at": time}}
        if comment:
            of = {"id": minute, "user": {"login": user, "type": "User"}, "created_at": time}
            payload |= {"action": "created", "comment": of | {"body": comment}}
        return {
            "type": type,
            "actor": {"login": user},
            "repo": {"name": "judy/board"},
            "payload": payload,
            "created_at": time,
        }

    body = "Whenever the humidity rises, the left gate cannot be closed any longer. " * 4
    events = [
        event("IssuesEvent", "judy", 1, 1, body),
        event("IssueCommentEvent", "kim", 1, 2, body, f"Ask me at {EMAIL}. {SCRIPT}"),
        event("IssuesEvent", "judy", 2, 3, "No."),
        # What a webhook is sent.
        event("IssueCommentEvent", "lea", 1, 4, body, "The hinge was oiled.")["payload"]
        | {"repository": {"full_name": "judy/board"}, "sender": {"login": "lea"}},
    ]
    path.write_text("".join(json.dumps(event) + "\n" for event in events))


def _pages(folder: pathlib.Path) -> None:
    text = "Open the valve before the pump is started, and close it only when the pump stands. "
    page = f"<html><body><nav>Home</nav><main><h1>Pumps</h1><p>{text * 3}</p>{SCRIPT}</main></html>"
    _write(folder, {"index.html": page, "logo.svg": f"<svg>{SCRIPT}</svg>"})


def finished(tmp_path_factory) -> pathlib.Path:
    """A folder with `sources`, and with `corpus`, made of them by two processes. Read only."""

    def build(folder: pathlib.Path) -> None:
        (folder / "sources").mkdir(parents=True)
        write_sources(folder / "sources")
        done = micro.run("stack", "run", *arguments(folder, folder / "corpus"))
        assert done.returncode == 0, done.stderr
        (folder / "said").write_text(done.stdout)

    return micro.once(tmp_path_factory, "stack", build)


def arguments(folder: pathlib.Path, corpus: pathlib.Path) -> list[str]:
    """Those of the command that makes a corpus of the sources in a folder."""
    return [f"--gin_file={folder / 'sources' / 'corpus.gin'}", f"--folder={corpus}"]


def prepared(tmp_path_factory) -> pathlib.Path:
    """What `prepare` makes of the finished corpus. Read only."""
    folder = finished(tmp_path_factory)
    return micro.once(
        tmp_path_factory, "stack_store", lambda store: prepare(folder / "corpus", store)
    )


def prepare(corpus: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes `recipe.gin` for a model of a corpus, and its token store `data`, in a new folder."""
    folder.mkdir()
    source = f"stack:{corpus / 'published'}"
    (folder / "recipe.gin").write_text(micro.RECIPE.replace("folder:FOLDER", source))
    recipe = f"--gin_file={folder / 'recipe.gin'}"
    done = micro.run("prepare", recipe, f"--directory={folder / 'data'}")
    assert done.returncode == 0, done.stderr


def files(folder: pathlib.Path) -> dict[str, bytes]:
    """All that a run leaves, but for its locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }
