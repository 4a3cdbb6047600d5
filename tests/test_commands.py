import importlib

import micro
import pytest

from starcoder_jax import prepare, train
from starcoder_jax.data.tokenizer_training import train_tokenizer

# By its name: `starcoder_jax.generate` is the function.
generate = importlib.import_module("starcoder_jax.generate")

COMMANDS = {"train": train, "prepare": prepare, "generate": generate}


@pytest.fixture
def refused(capfd):
    """Runs a command that must exit with status 2 and one line, which it returns."""

    def call(command, *arguments):
        with pytest.raises(SystemExit) as raised:
            COMMANDS[command].main([str(argument) for argument in arguments])
        error = capfd.readouterr().err
        assert raised.value.code == 2, error
        lines = [line for line in error.splitlines() if not line.startswith(("usage:", " "))]
        assert len(lines) == 1, error
        return lines[0]

    return call


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as raised:
        COMMANDS[command].main(["--help"])
    assert raised.value.code == 0
    output = capsys.readouterr().out
    assert f"python -m starcoder_jax.{command}" in output
    if command != "generate":
        assert "--gin_file" in output and "--gin.SECTION.FIELD=VALUE" in output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --gin_file"),
        (["--gin_file=tiny.gin", "--wrkdir=x"], "unknown argument '--wrkdir=x'"),
        (["--gin_file=tiny.gin", "x"], "unknown argument 'x'"),
        (["--gin_file=tinny.gin"], "no recipe 'tinny.gin' (did you mean 'tiny.gin'?)"),
        (["--gin_file=tiny.gin", "--gin.model.num_layer=3"], "did you mean 'model.num_layers'"),
        (["--gin_file=tiny.gin", "--gin.modle.num_layers=3"], "did you mean 'model'"),
        (["--gin_file=tiny.gin", "--gin.model.num_layers=x"], "model.num_layers is 'x', a str"),
        (["--gin_file=tiny.gin", "--gin.model.num_layers=%x"], "no recipe given defines %x"),
        (["--gin_file=tiny.gin", "--gin.train.total_steps"], "--gin.section.field=value"),
    ],
)
@pytest.mark.parametrize("command", ["train", "prepare"])
def test_a_bad_command_line_is_refused(refused, tmp_path, monkeypatch, command, arguments, message):
    monkeypatch.chdir(tmp_path)
    directory = {"train": "--workdir=run", "prepare": "--directory=data"}[command]
    assert message in refused(command, directory, *arguments)
    assert list(tmp_path.iterdir()) == []


def test_sources_that_hold_nothing_are_refused(refused, micro_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    recipe = f"--gin_file={micro_folder / 'micro.gin'}"
    for name, message in (("empty", "no document to train on"), ("absent", "absent")):
        source = f"--gin.data.sources={{'code': 'folder:{tmp_path / name}'}}"
        assert message in refused("prepare", recipe, source, f"--directory={tmp_path / 'data'}")
        assert not (tmp_path / "data").exists()
    # The same through train, whose data is prepared by another process.
    line = refused("train", recipe, source, f"--workdir={tmp_path / 'run'}")
    assert line.startswith("prepare: ") and "absent" in line


def test_a_working_directory_that_cannot_be_is_refused(refused, micro_folder, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = micro.arguments(micro_folder, tmp_path / "file" / "run")
    assert str(tmp_path / "file") in refused("train", *arguments)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("mesh.fsdp=3", "mesh.fsdp=3"),
        ("train.micro_batches=3", "train.batch_size=8 does not divide"),
        ("model.vocab_size=300", "model.vocab_size=300, but the tokenizer"),
        ("tokenizer.vocab_size=321", "made from other values of tokenizer.vocab_size"),
        ("data.heldout_fraction=0.5", "made from other values of heldout_fraction"),
    ],
)
def test_what_does_not_fit_is_refused(refused, micro_folder, tmp_path, override, message):
    arguments = micro.arguments(micro_folder, tmp_path / "run")
    assert message in refused("train", *arguments, f"--gin.{override}")


def test_a_store_of_another_tokenizer_is_refused(refused, micro_folder, tmp_path):
    train_tokenizer(["def other(text):\n" * 9], kind="bpe", vocab_size=300).save(tmp_path)
    arguments = micro.arguments(micro_folder, tmp_path / "run")
    line = refused("train", *arguments, f"--gin.tokenizer.path={tmp_path}")
    assert "made from other values of tokenizer" in line


def test_a_run_of_another_recipe_is_refused(refused, trained, micro_folder):
    before = (trained / "config.gin").read_bytes()
    arguments = micro.arguments(micro_folder, trained)
    assert "train.seed: 0 -> 5" in refused("train", *arguments, "--gin.train.seed=5")
    assert (trained / "config.gin").read_bytes() == before


def test_divergence_has_its_own_status(micro_folder, tmp_path):
    arguments = micro.arguments(micro_folder, tmp_path / "run")
    done = micro.run("train", *arguments, "--gin.optimizer.peak_learning_rate=1e38")
    assert done.returncode == 3
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("train: loss or gradient was not finite at step")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt=x"], "required: --checkpoint"),
        (["--checkpoint=RUN"], "one of the arguments --prompt --file is required"),
        (["--checkpoint=RUN", "--prompt=x", "--file=FILE"], "not allowed with"),
        (["--checkpoint=RUN", "--file=FILE"], "--file and --cursor go together"),
        (["--checkpoint=RUN", "--prompt=x", "--cursor=1:1"], "--file and --cursor go together"),
        (["--checkpoint=RUN", "--prompt=x", "--max_tokens=0"], "max_tokens=0 is out of range"),
        (["--checkpoint=RUN", "--prompt=x", "--max_tokens=x"], "--max_tokens"),
        (["--checkpoint=RUN", "--prompt=x", "--max_tokens=128"], "more than the 128 tokens"),
        (["--checkpoint=RUN", "--prompt=x", "--top_p=2"], "top_p=2.0 is out of range"),
        (["--checkpoint=RUN", "--prompt=x", "--stop="], "strings that are not empty"),
        (["--checkpoint=RUN", "--prompt=x", "--samples=0"], "--samples=0 must be at least 1"),
        (["--checkpoint=RUN", "--prompt=x", "--order=spm"], "--order and --context go with --file"),
        (["--checkpoint=RUN", "--prompt=x", "--context=."], "--order and --context go with --file"),
        (["--checkpoint=RUN", "--prompt="], "the prompt is empty"),
        (["--checkpoint=ABSENT", "--prompt=x"], "no checkpoint in"),
        (["--checkpoint=RUN", "--file=ABSENT", "--cursor=1:1"], "absent"),
        (["--checkpoint=RUN", "--file=FILE", "--cursor=9:1"], "outside the file of 3 lines"),
        (["--checkpoint=RUN", "--file=FILE", "--cursor=x"], "must be LINE:COLUMN"),
        (["--checkpoint=RUN", "--file=FILE", "--cursor=1:1", "--order=x"], "invalid choice: 'x'"),
        (
            ["--checkpoint=RUN", "--file=FILE", "--cursor=1:1", "--max_tokens=125"],
            "0 tokens are left",
        ),
        (
            ["--checkpoint=RUN", "--file=FILE", "--cursor=1:1", "--context=RUN"],
            "is not in the folder",
        ),
        (["--checkpoint=RUN", "--file=BYTES", "--cursor=1:1"], "bytes: not UTF-8 text: "),
    ],
)
def test_generate_refuses(refused, trained, tmp_path, arguments, message):
    (tmp_path / "file.py").write_text("one\ntwo\n")
    (tmp_path / "bytes").write_bytes(b"one\xff")
    places = {"RUN": trained, "FILE": tmp_path / "file.py"}
    places |= {name: tmp_path / name.lower() for name in ("ABSENT", "BYTES")}
    for name, path in places.items():
        arguments = [argument.replace(name, str(path)) for argument in arguments]
    assert message in refused("generate", *arguments)
