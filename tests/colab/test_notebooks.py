"""The notebooks: what is committed of them, and that every cell runs.

nbclient runs the cells in a fresh process of ipykernel, as Jupyter and Colab do: shell lines,
magics and displayed HTML are the real ones.
"""

import json
import pathlib
import re

import pytest

import starcoder_jax

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOKS = {path.stem: path for path in sorted((ROOT / "colab").glob("*.ipynb"))}
PACKAGE = pathlib.Path(starcoder_jax.__file__).parent

# Settings that are smaller than those in the notebooks.
SETTINGS = {
    "quickstart": {
        "STEPS": 4,
        "MAX_SOURCE_BYTES": 1_000_000,
        "SOURCES": {"python": f"folder:{PACKAGE}"},
    },
    "finetune": {"STEPS": 4, "FOLDER": str(PACKAGE)},
    # For a recipe this small, no overlay fits: it is laid over itself.
    "plan_a_pod": {
        "RECIPE": "tiny.gin",
        "TPUS": {},
        "GPUS": {"h100:4": "tiny.gin", "cpu:2": "tiny.gin"},
    },
    "look_into_data": {"PACKAGES": ["optax"], "STEPS": 3},
    "ablate": {"STEPS": 2, "SEEDS": (0,), "SOURCES": {"python": f"folder:{PACKAGE}"}},
}


def source(cell) -> str:
    return "".join(cell["source"])


def cells(name: str) -> dict[str, dict]:
    notebook = json.loads(NOTEBOOKS[name].read_text(encoding="utf-8"))
    return {cell["id"]: cell for cell in notebook["cells"]}


def test_every_notebook_has_smaller_settings():
    assert SETTINGS.keys() == NOTEBOOKS.keys()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_what_is_committed_holds_no_output_and_nothing_of_a_machine(name):
    text = NOTEBOOKS[name].read_text(encoding="utf-8")
    ran = [c for c in cells(name).values() if c.get("outputs") or c.get("execution_count")]
    assert not ran
    assert not re.findall(r"""(?<![\w.:/}])/(?:home|tmp|root|usr|opt|content|work|mnt)\b""", text)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_opens_with_its_path_and_links_to_what_is_there(name):
    first, *others = cells(name).values()
    assert f"[`colab/{name}.ipynb`]({name}.ipynb)" in source(first)
    links = re.findall(r"\]\(([^)#]+)", "".join(map(source, [first, *others])))
    relative = [link for link in links if "://" not in link]
    assert len(relative) > 1
    assert [link for link in relative if not (ROOT / "colab" / link).exists()] == []


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_smaller_settings_are_settings_of_the_notebook(name):
    bound = re.findall(r"^([A-Z]\w*) =", source(cells(name)["settings"]), re.MULTILINE)
    assert set(SETTINGS[name]) <= set(bound)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder; returns its folder and the outputs of cells, by id."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    import nbformat

    for variable in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(variable, str(tmp_path / "jupyter"))
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    # Without it a shell line may fail and the notebook goes on.
    profile = tmp_path / "jupyter" / "profile_default"
    profile.mkdir(parents=True)
    strict = "get_config().InteractiveShell.system_raise_on_error = True\n"
    (profile / "ipython_kernel_config.py").write_text(strict)
    folder = tmp_path / "colab"
    folder.mkdir()

    def run(name: str, settings: dict) -> tuple[pathlib.Path, dict[str, str]]:
        notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
        nbformat.validate(notebook)
        (place,) = [i for i, cell in enumerate(notebook.cells) if cell.id == "settings"]
        text = "\n".join(f"{key} = {value!r}" for key, value in settings.items())
        notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(text))
        resources = {"metadata": {"path": str(folder)}}
        client = nbclient.NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources=resources
        )
        client.execute()
        return folder, {c.id: shown(c) for c in notebook.cells if c.cell_type == "code"}

    return run


def shown(cell) -> str:
    """All text and HTML that a cell put out."""
    parts = []
    for output in cell.outputs:
        data = output.get("data", {})
        parts.append(output.get("text") or data.get("text/html") or data.get("text/plain", ""))
    return "\n".join(parts)


@pytest.mark.notebooks
def test_a_shell_line_that_fails_fails_the_test(execute, monkeypatch):
    from nbclient.exceptions import CellExecutionError

    settings = SETTINGS["plan_a_pod"] | {"RECIPE": "no_such_recipe.gin"}
    with pytest.raises(CellExecutionError, match="no_such_recipe"):
        execute("plan_a_pod", settings)


@pytest.mark.notebooks
def test_quickstart(execute):
    folder, outputs = execute("quickstart", SETTINGS["quickstart"])
    assert "step 4/4" in outputs["train"]
    assert "Training loss" in outputs["report"] and "&lt;svg" in outputs["report"]
    assert outputs["infill"].count("<mark>") == 2
    assert outputs["complete"].count("def read_lines(path):<mark>") == 3
    assert (folder / "runs" / "quickstart-4" / "report.html").exists()


@pytest.mark.notebooks
def test_finetune(execute):
    folder, outputs = execute("finetune", SETTINGS["finetune"])
    assert "starcoder2 {" in outputs["checkpoint"]
    assert "eval/bits_per_byte" in outputs["report"]
    before, after = map(float, re.findall(r"([\d.]+) bits a byte", outputs["compare"]))
    assert after < before
    assert "<mark>" in outputs["infill"]
    config = json.loads((folder / "runs/finetune-small/tuned-hf/config.json").read_text())
    assert config["model_type"] == "starcoder2"


@pytest.mark.notebooks
def test_plan_a_pod(execute):
    _, outputs = execute("plan_a_pod", SETTINGS["plan_a_pod"])
    cells = re.findall(r"<td>(.*?)</td>", outputs["table"])
    gpus, cpus = cells[:9], cells[9:]
    assert gpus[:4] == ["h100:4", "4", "fsdp 4", "not known"]
    assert all(re.match(r"[\d.,]+", cell) for cell in gpus[4:])
    assert cpus[:3] == ["cpu:2", "2", "fsdp 2"]
    assert cpus[5:] == ["not known"] * 4
    assert outputs["pictures"].count("background:#2667b8") == 2  # nothing is known of a CPU's


@pytest.mark.notebooks
def test_look_into_data(execute):
    _, outputs = execute("look_into_data", SETTINGS["look_into_data"])
    assert "From stage to stage" in outputs["report"] and "class=&quot;kept" in outputs["report"]
    assert "Apache-2.0" in outputs["licenses"]
    assert re.search(r"and [1-9]\d* near duplicates", outputs["duplicates"])
    assert "kept: optax/" in outputs["duplicates"]
    assert "<td>optax</td>" in outputs["trace"]
    batch, row = re.search(r"batch (\d+), row (\d+)", outputs["trace"]).groups()
    assert re.search(rf"in \d+ rows of batches .*\b{batch}:{row}\b", outputs["lookup"])


@pytest.mark.notebooks
def test_ablate(execute):
    folder, outputs = execute("ablate", SETTINGS["ablate"])
    assert "multi-query" in outputs["report"] and "&lt;svg" in outputs["report"]
    assert "eval/bits_per_byte: multi-query: " in outputs["words"]
    found = json.loads((folder / "runs/heads-2-steps/ablation.json").read_text())
    assert found["complete"] and len(found["runs"]) == 2
