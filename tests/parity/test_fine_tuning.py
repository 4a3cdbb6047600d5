"""Two stories: ours goes on in transformers, and transformers' goes on here."""

import json
import math

import micro
import numpy as np
import pytest
import reference

import starcoder_jax as sj

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-4  # of the largest absolute logit


def convert(source, target):
    done = micro.run("convert", f"--source={source}", f"--target={target}", "--format=hf")
    assert done.returncode == 0, done.stderr


def opened_by_transformers(directory):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        directory, output_loading_info=True
    )
    assert not any(report.values()), report
    return model, transformers.AutoTokenizer.from_pretrained(directory)


def assert_same_logits(ours, theirs, ids):
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)[None].long()).logits.numpy()
    actual = np.asarray(reference.jit(ours.__call__)(np.array(ids, np.int32)[None]))
    assert np.abs(actual - expected).max() < TOLERANCE * np.abs(expected).max()


def test_what_was_trained_here_goes_on_in_transformers(tmp_path_factory, tmp_path):
    trained = micro.trained(tmp_path_factory)
    convert(trained, tmp_path / "hf")
    theirs, tokenizer = opened_by_transformers(tmp_path / "hf")
    ours, our_tokenizer = sj.load_model(trained)
    corpus = micro.folder(tmp_path_factory) / "code"
    text = (corpus / "module_0.py").read_text()

    ids = tokenizer(text).input_ids
    assert ids == our_tokenizer.encode(text).tolist()
    assert tokenizer.decode(ids) == text
    assert_same_logits(ours, theirs, ids[: ours.config.max_length])
    prompt = tokenizer("def read_", return_tensors="pt")
    output = theirs.generate(
        **prompt, do_sample=False, max_new_tokens=24, eos_token_id=tokenizer.all_special_ids
    )
    continuation = tokenizer.decode(output[0, prompt.input_ids.shape[1] :])
    expected = sj.generate(ours, our_tokenizer, ["def read_"], max_tokens=24)[0]
    assert len(expected) > 3 and continuation.startswith(expected)

    # Files in the order of their numbers; a model that had lost its training would start at 5.8.
    batch = tokenizer(
        [(corpus / f"module_{number}.py").read_text() for number in range(8)],
        truncation=True, max_length=64, padding=False,
    ).input_ids  # fmt: skip
    batch = torch.tensor([row for row in batch if len(row) == 64])
    assert len(batch) > 4
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3)
    losses = []
    theirs.train()
    for _ in range(8):
        loss = theirs(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(map(math.isfinite, losses))
    assert losses[0] < 3.5 and losses[-1] < losses[0] - 0.1


def test_a_model_of_transformers_is_fine_tuned_here(tmp_path_factory, tmp_path):
    torch.manual_seed(0)
    initial = tmp_path / "initial"
    theirs = transformers.AutoModelForCausalLM.from_config(reference.starcoder2())
    theirs.save_pretrained(initial)
    reference.tokenizer().save(tmp_path)
    transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), eos_token="<|endoftext|>"
    ).save_pretrained(initial)

    # The model and the tokenizer are those of the checkpoint: the recipe says nothing of them.
    lines = (micro.folder(tmp_path_factory) / "micro.gin").read_text().splitlines()
    kept = [line for line in lines if not line.startswith(("model.", "tokenizer."))]
    assert len(kept) < len(lines)
    (tmp_path / "tune.gin").write_text("\n".join(kept))
    done = micro.run(
        "train",
        f"--gin_file={tmp_path / 'tune.gin'}",
        f"--gin.train.initial_checkpoint={initial}",
        "--gin.train.total_steps=20",
        f"--workdir={tmp_path / 'run'}",
    )
    assert done.returncode == 0, done.stderr
    records = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    losses = [record["loss"] for record in records]
    assert len(losses) == 20 and losses[-1] < losses[0] - 1

    convert(tmp_path / "run", tmp_path / "tuned")
    tuned, tokenizer = opened_by_transformers(tmp_path / "tuned")
    before, after = theirs.state_dict(), tuned.state_dict()
    assert before.keys() == after.keys()
    unchanged = [name for name in before if torch.equal(before[name], after[name])]
    assert not unchanged
    text = reference.TEXT * 2
    ids = tokenizer(text).input_ids
    assert ids == transformers.AutoTokenizer.from_pretrained(initial)(text).input_ids
    assert len(ids) > 16  # starcoder2's window
    for directory in (tmp_path / "tuned", tmp_path / "run"):
        ours, our_tokenizer = sj.load_model(directory, dtype="float32")
        assert our_tokenizer.encode(text).tolist() == ids
        assert_same_logits(ours, tuned, ids)
