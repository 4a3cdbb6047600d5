import importlib
import json
import pathlib
import subprocess
import sys
import zipfile

import pytest

from starcoder_jax.recipes import load_recipe

ROOT = pathlib.Path(__file__).parent.parent

LOADED = """
import json, sys, time
started = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - started, sorted(sys.modules)]))
"""


def imported(module, before="", **options):
    """Seconds to import a module in a fresh process, and the packages that are loaded then."""
    code = before + LOADED.format(module=module)
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, **options
    ).stdout
    seconds, modules = json.loads(output)
    return seconds, {name.partition(".")[0] for name in modules}, set(modules)


def test_importing_the_package_is_quick_and_loads_nothing_heavy():
    _, packages, modules = imported("starcoder_jax")
    heavy = {"jax", "flax", "orbax", "grain", "tensorflow", "seqio", "torch", "transformers"}
    assert packages & heavy == set()
    assert {name for name in modules if name.startswith("starcoder_jax")} == {"starcoder_jax"}
    seconds, _, _ = imported("starcoder_jax", before="import jax\n")
    assert seconds < 1


def test_training_loads_neither_tensorflow_nor_seqio_nor_pytorch():
    _, packages, _ = imported("starcoder_jax.training.loop, starcoder_jax.train")
    assert {"jax", "grain", "orbax"} <= packages
    assert packages & {"tensorflow", "seqio", "t5", "torch", "transformers"} == set()


def test_public_names():
    import starcoder_jax as sj

    assert set(sj.__all__) <= set(dir(sj))
    for name in sj.__all__:
        assert getattr(sj, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sj.nothing


def test_commands_do_not_hide_functions_of_their_names():
    import starcoder_jax as sj

    module = importlib.import_module("starcoder_jax.generate")
    assert callable(module.main) and module is not sj.generate
    assert sj.generate is sj.inference.completion.generate


FIND = """
import starcoder_jax
from starcoder_jax import gin_files, recipes
print(starcoder_jax.__file__)
print(recipes.load_recipe(["tiny"]).model.num_layers)
print(*gin_files.packaged_recipes())
"""


def test_a_wheel_carries_the_recipes(tmp_path):
    pytest.importorskip("setuptools", minversion="70")
    # A copy, as building leaves folders behind.
    source = tmp_path / "source"
    for part in ("starcoder_jax", "gin", "setup.py", "pyproject.toml", "README.md"):
        copy_tracked(ROOT / part, source / part)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    done = subprocess.run(
        [sys.executable, "-c", FIND],
        cwd=tmp_path / "installed",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    file, layers, names = done.stdout.splitlines()
    assert pathlib.Path(file).is_relative_to(tmp_path / "installed")
    assert layers == str(load_recipe([str(ROOT / "gin" / "tiny.gin")]).model.num_layers)
    recipes = {str(path.relative_to(ROOT / "gin")) for path in (ROOT / "gin").rglob("*.gin")}
    assert set(names.split()) == recipes


def copy_tracked(source, target):
    """Copies a file or a folder without what Python leaves in it."""
    for path in [source, *source.rglob("*")]:
        if path.is_file() and "__pycache__" not in path.parts:
            copy = target / path.relative_to(source) if source.is_dir() else target
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
