import os
import sys

import pytest

from starcoder_jax.stack.stages.collect import CollectConfig, steps

METADATA = "Metadata-Version: 2.1\nName: Some-Package\nVersion: 1.2\nLicense-Expression: MIT\n"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, the only one that there is."""
    files = {
        "some_package/__init__.py": "x = 1\n",
        "some_package/deep/module.py": "y = 2\n",
        "some_package/__pycache__/module.pyc": "\0",
        "top.py": "z = 3\n",
        "some_package-1.2.dist-info/METADATA": METADATA,
        "../outside.py": "secret = 1\n",
    }
    root = tmp_path / "site-packages"
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    record = [*files, "some_package/removed.py"]
    (root / "some_package-1.2.dist-info/RECORD").write_text("".join(f"{x},,\n" for x in record))
    os.symlink(tmp_path / "outside.py", root / "some_package/link.py")
    with (root / "some_package-1.2.dist-info/RECORD").open("a") as file:
        file.write("some_package/link.py,,\n")
    monkeypatch.setattr(sys, "path", [str(root)])
    stdlib = tmp_path / "stdlib"
    (stdlib / "site-packages").mkdir(parents=True)
    (stdlib / "site-packages/no.py").write_text("no")
    (stdlib / "json.py").write_text("import re\n")
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(stdlib))
    return root


def test_packages_and_the_standard_library_are_repositories(package, run_steps):
    (outputs,) = run_steps(steps(CollectConfig(("environment:",), shards=1))).values()
    rows = {row["path"]: row for row in outputs[0].table.to_pylist()}
    assert set(rows) == {
        "json.py",
        "some_package/__init__.py",
        "some_package/deep/module.py",
        "top.py",
        "some_package-1.2.dist-info/METADATA",
    }
    row = rows["some_package/deep/module.py"]
    assert row["repository"] == "Some-Package 1.2" and row["declared_licenses"] == ["MIT"]
    assert rows["json.py"]["declared_licenses"] == ["PSF-2.0"]
    (drop,) = outputs[0].drops.to_pylist()
    assert (drop["path"], drop["reason"]) == ("some_package/link.py", "symbolic link")


def test_a_package_is_read_again_when_it_changed(package):
    config = CollectConfig(("environment:",))
    before = [item.fingerprint for item in steps(config)[0].items]
    assert before == [item.fingerprint for item in steps(config)[0].items]
    (package / "top.py").write_text("z = 44\n")
    after = [item.fingerprint for item in steps(config)[0].items]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_nothing_may_follow():
    with pytest.raises(ValueError, match="nothing may follow 'environment:', but 'x' does"):
        steps(CollectConfig(("environment:x",)))
