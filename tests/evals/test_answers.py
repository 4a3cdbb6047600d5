import dataclasses
import itertools

import numpy as np
import pytest

from starcoder_jax.data.tokenizer import Tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer
from starcoder_jax.evals.generation import GROUP, generate
from starcoder_jax.evals.problems import Problem
from starcoder_jax.inference.sampling import Sampling

SAMPLING = Sampling(max_tokens=30, temperature=0.5, seed=7)


class FakeCompletion:
    def __init__(self, text, sampling):
        self.to_come, self.text, self.finish_reason = text, "", None
        self.token_ids, self.sampling = [], sampling


class FakeEngine:
    """Completes by `reply(prompt, sampling, sample)`, a character a step."""

    def __init__(self, tokenizer: Tokenizer, reply, slots=3, max_length=400):
        self.tokenizer, self.reply, self.slots, self.max_length = (
            tokenizer,
            reply,
            slots,
            max_length,
        )
        self.line, self.requests, self.cancelled, self.most = [], [], [], 0

    def submit(self, prompt, sampling, *, samples=1):
        assert len(prompt) + sampling.max_tokens <= self.max_length
        text = self.tokenizer.decode(prompt)
        self.requests.append((text, sampling, samples))
        new = [
            FakeCompletion(self.reply(text, sampling, sample), sampling)
            for sample in range(samples)
        ]
        self.line += new
        self.most = max(self.most, len(self.line))
        return new

    def cancel(self, completion):
        if completion.finish_reason is not None:
            return
        completion.finish_reason = "cancelled"
        self.line.remove(completion)
        self.cancelled.append(completion)

    def step(self):
        active = self.line[: self.slots]
        for completion in active:
            number = len(completion.text)
            completion.text = completion.to_come[: number + 1]
            completion.token_ids.append(0)
            if number + 1 >= len(completion.to_come):
                completion.finish_reason = "stop"
            elif number + 1 == completion.sampling.max_tokens:
                completion.finish_reason = "length"
        self.line = [completion for completion in self.line if completion.finish_reason is None]
        return active


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["def f(x):\n    return x\n" * 9], kind="bpe", vocab_size=300)


def by_seed(prompt, sampling, sample):
    return f"{prompt[-3:]} {sampling.seed} {sample}"


def problem(number, **fields):
    return Problem(f"t/{number}", f"prompt {number}", "", "python", **fields)


def samples_of(engine, tokenizer, problems, samples, done=(), sampling=SAMPLING):
    groups = generate(engine, tokenizer, problems, sampling, samples, done)
    return {(s.task_id, s.index): s for group in groups for s in group}


def test_every_sample_comes_once_and_does_not_depend_on_the_others(tokenizer):
    problems = [problem(number, stop=("\n",) * (number % 2)) for number in range(9)]
    count = GROUP + 3
    engine = FakeEngine(tokenizer, by_seed)
    groups = list(generate(engine, tokenizer, problems, SAMPLING, count))
    assert sorted(map(len, groups)) == [3] * 9 + [GROUP] * 9
    found = [(sample.task_id, sample.index) for group in groups for sample in group]
    assert sorted(found) == sorted(itertools.product((f"t/{n}" for n in range(9)), range(count)))
    # Seeds differ from group to group, so that no two samples are the same by that.
    assert len({sampling.seed for _, sampling, _ in engine.requests}) == 18
    assert {sampling.stop for _, sampling, _ in engine.requests} == {(), ("\n",)}
    # Requests are handed over bit by bit.
    assert engine.most < 2 * engine.slots + 2 * GROUP
    texts = {(s.task_id, s.index): s.text for group in groups for s in group}

    alone = FakeEngine(tokenizer, by_seed, slots=1)
    again = samples_of(alone, tokenizer, problems[4:5], count)
    assert {key: s.text for key, s in again.items()} == {
        key: text for key, text in texts.items() if key[0] == "t/4"
    }
    other = dataclasses.replace(SAMPLING, seed=8)
    moved = samples_of(FakeEngine(tokenizer, by_seed), tokenizer, problems, count, (), other)
    assert all(moved[key].text != text for key, text in texts.items())


def test_what_is_done_is_not_generated(tokenizer):
    problems = [problem(0), problem(1)]
    whole = samples_of(FakeEngine(tokenizer, by_seed), tokenizer, problems, GROUP + 2)
    done = {key for key in whole if key[0] == "t/0" or key[1] < GROUP}
    engine = FakeEngine(tokenizer, by_seed)
    rest = samples_of(engine, tokenizer, problems, GROUP + 2, done)
    assert {key: s.text for key, s in rest.items()} == {
        key: s.text for key, s in whole.items() if key not in done
    }
    assert len(rest) == 2 and len(engine.requests) == 1
    # A group of which a part is there is drawn as a whole, so that its samples are the same.
    rest = samples_of(
        FakeEngine(tokenizer, by_seed), tokenizer, problems, GROUP + 2, list(whole)[:-1]
    )
    assert len(rest) in (2, GROUP)
    assert all(whole[key].text == sample.text for key, sample in rest.items())
    engine = FakeEngine(tokenizer, by_seed)
    assert samples_of(engine, tokenizer, problems, GROUP + 2, set(whole)) == {}
    assert engine.requests == []


def test_an_answer_ends_where_it_is_cut(tokenizer):
    def first_word(text):
        return text.partition(" ")[0]

    engine = FakeEngine(tokenizer, lambda *_: "word and more")
    found = samples_of(engine, tokenizer, [problem(0, cut=first_word)], 2)
    assert {sample.text for sample in found.values()} == {"word"}
    assert {sample.about["finish_reason"] for sample in found.values()} == {"cut"}
    assert len(engine.cancelled) == 2 and engine.line == []
    assert {len(completion.token_ids) for completion in engine.cancelled} == {5}
    engine = FakeEngine(tokenizer, lambda *_: "x" * 99)
    (sample,) = samples_of(engine, tokenizer, [problem(0, cut=first_word)], 1).values()
    assert sample.text == "x" * 30 and sample.about == {"tokens": 30, "finish_reason": "length"}


def test_a_second_question_is_made_of_the_first_answer(tokenizer):
    def reply(prompt, sampling, sample):
        return f"{sampling.seed % 1000}.{sample}" if prompt.startswith("prompt") else prompt[::-1]

    first = problem(
        0, then=lambda answer: Problem("t/0", f"write {answer}", "code ", "python", stop=("#",))
    )
    engine = FakeEngine(tokenizer, reply)
    found = samples_of(engine, tokenizer, [first], 3)
    for sample in found.values():
        answer = sample.about["first_answer"]
        assert answer.endswith(f".{sample.index}")
        assert sample.text == f"write {answer}"[::-1]
    assert [samples for _, _, samples in engine.requests] == [3, 1, 1, 1]
    assert len({sampling.seed for _, sampling, _ in engine.requests}) == 4


def test_prompts_hold_what_fits(tokenizer):
    long = "".join(f"line {number}\n" for number in range(99))
    problems = [
        Problem("t/0", long, long, None, suffix=None),
        Problem("t/1", long, long, None, suffix=long),
        Problem("t/2", "short", "short", None, suffix="end"),
    ]
    engine = FakeEngine(tokenizer, lambda *_: "x", max_length=100)
    found = samples_of(engine, tokenizer, problems, 1)
    prompts = [text for text, _, _ in engine.requests]
    assert long.endswith(prompts[0]) and len(prompts[0]) > 50
    before, after = prompts[1].split("<fim_suffix>")
    assert long.endswith(before.removeprefix("<fim_prefix>"))
    assert after.removesuffix("<fim_middle>") and long.startswith(
        after.removesuffix("<fim_middle>")
    )
    assert prompts[2] == "<fim_prefix>short<fim_suffix>end<fim_middle>"
    dropped = len(tokenizer.encode(long)) - 70
    assert found["t/0", 0].about["prompt_tokens_dropped"] == dropped
    assert found["t/1", 0].about["prompt_tokens_dropped"] > dropped
    assert "prompt_tokens_dropped" not in found["t/2", 0].about


def test_infilling_is_asked_in_either_order(tokenizer):
    engine = FakeEngine(tokenizer, by_seed)
    gap = Problem("t/0", "before", "before", None, suffix="after")
    list(generate(engine, tokenizer, [gap], SAMPLING, 1, order="spm"))
    assert [text for text, _, _ in engine.requests] == [
        "<fim_prefix><fim_suffix>after<fim_middle>before"
    ]


def test_without_a_prompt_a_text_begins(tokenizer):
    engine = FakeEngine(tokenizer, by_seed)
    samples_of(engine, tokenizer, [Problem("t/0", "", "", None)], 1)
    assert [text for text, _, _ in engine.requests] == ["<|endoftext|>"]


def test_names_of_special_tokens_are_text_unless_the_format_says_otherwise(tokenizer):
    class Recorder(FakeEngine):
        def submit(self, prompt, sampling, *, samples=1):
            self.prompts = [*getattr(self, "prompts", []), np.array(prompt)]
            return super().submit(prompt, sampling, samples=samples)

    engine = Recorder(tokenizer, lambda *_: "x")
    token = tokenizer.special_id("<repo_name>")
    samples_of(engine, tokenizer, [Problem("t/0", "<repo_name>x", "", "python")], 1)
    special = {"special_tokens": ("<repo_name>",)}
    samples_of(engine, tokenizer, [Problem("t/0", "<repo_name>x", "", "python", **special)], 1)
    assert [(prompt == token).sum() for prompt in engine.prompts] == [0, 1]
    with pytest.raises(ValueError, match="no special token '<commit_before>'"):
        special = {"special_tokens": ("<commit_before>",)}
        samples_of(engine, tokenizer, [Problem("t/0", "x", "", "python", **special)], 1)


def test_no_room_for_a_prompt_is_refused(tokenizer):
    engine = FakeEngine(tokenizer, by_seed, max_length=30)
    with pytest.raises(ValueError, match=r"--max_tokens=30 leaves no room for a prompt.*30"):
        samples_of(engine, tokenizer, [problem(0)], 1)
