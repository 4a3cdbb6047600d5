"""BUILD.md's table of folders says who may import whom, and nobody else does."""

import ast
import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "starcoder_jax"
# Modules beside the commands that everybody may import, as BUILD.md says.
SHARED = {"command", "files", "gin_files", "pages", "progress", "recipes"}


def allowed():
    """Folder to the folders that it may import, by the table."""
    lines = (ROOT / "BUILD.md").read_text(encoding="utf-8").splitlines()
    rows = [re.fullmatch(r"\| `starcoder_jax/(\w+)` \| .* \| (.*) \|", line) for line in lines]
    return {
        row[1]: {*re.findall(r"\w+", row[2])} - {"nothing", "of", "these"} for row in rows if row
    }


def imported(path):
    """First parts of what a module imports of the package."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "starcoder_jax" and rest:
                yield rest.split(".")[0]


def test_imports_are_those_of_the_table():
    table = allowed()
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert table.keys() == folders
    found = {folder: set() for folder in folders}
    for folder in folders:
        for path in (PACKAGE / folder).rglob("*.py"):
            for name in imported(path):
                if name != folder and name in folders:
                    found[folder].add(name)
                elif name != folder and (PACKAGE / f"{name}.py").exists():
                    assert name in SHARED, f"{path} imports a command, {name}"
    assert found == table


def test_imports_go_one_way():
    table = allowed()
    while table:
        free = [folder for folder, others in table.items() if not others & table.keys()]
        assert free, f"these import each other: {sorted(table)}"
        for folder in free:
            del table[folder]
