import json
import subprocess
import sys

import pytest

from starcoder_jax import train_tokenizer as command
from starcoder_jax.data.tokenizer import load_tokenizer
from starcoder_jax.data.tokenizer_training import train_tokenizer

CORPUS = [
    "class Point:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n" * 20,
    "int main(void) {\n\tif (argc > 12345) {\n\t\treturn 1;\n\t}\n}\r\n" * 20,
    "# naïve café 中文\nfor index, row in enumerate(table):\n        print(index, row)\n" * 20,
]
KINDS = ("bpe", "sentencepiece")


@pytest.mark.parametrize("kind", KINDS)
def test_command_trains_and_refuses_to_overwrite(kind, tmp_path, capsys):
    corpus = tmp_path / "corpus"
    (corpus / "inner").mkdir(parents=True)
    (corpus / "a.py").write_text(CORPUS[0], encoding="utf-8")
    (corpus / "inner" / "b.c").write_text(CORPUS[1], encoding="utf-8")
    (corpus / "inner" / "binary.py").write_bytes(b"\xff\xfe\x00")
    (corpus / "ignored.txt").write_text("zzz" * 1000)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"content": CORPUS[2]}) + "\n", encoding="utf-8")
    output = tmp_path / "out"
    flags = [f"--kind={kind}", "--vocab_size=380", f"--output={output}", "--extensions=.py,.c"]
    assert command.main([*flags, str(corpus), str(rows)]) == 0
    printed = capsys.readouterr().out
    tokenizer = load_tokenizer(output)
    expected = train_tokenizer(CORPUS, kind=kind, vocab_size=380)
    assert tokenizer.fingerprint == expected.fingerprint
    size = sum(len(text.encode()) for text in CORPUS)
    ratio = size / sum(map(len, tokenizer.encode_batch(CORPUS)))
    assert "vocabulary size: 380" in printed and f"bytes per token: {ratio:.3f}" in printed
    assert str(output) in printed

    with pytest.raises(SystemExit) as exit_status:
        command.main([*flags, str(corpus)])
    assert exit_status.value.code == 2
    message = capsys.readouterr().err
    assert "exists already" in message and message.count("\n") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_command_names_the_bad_line(kind, tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "x = 1"}\n\n{"body": "x"}\n')
    with pytest.raises(SystemExit) as exit_status:
        command.main([f"--kind={kind}", f"--output={tmp_path / 'out'}", str(rows)])
    assert exit_status.value.code == 2
    message = capsys.readouterr().err
    assert "rows.jsonl:3:" in message and message.count("\n") == 1


def test_command_reports_bad_input_in_one_line(tmp_path):
    arguments = [f"--output={tmp_path / 'out'}", str(tmp_path / "nowhere")]
    done = subprocess.run(
        [sys.executable, "-m", "starcoder_jax.train_tokenizer", *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "no such file or folder" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_tokenizers_load_no_tensorflow():
    code = (
        "import sys, starcoder_jax.train_tokenizer\n"
        "print(sorted({'tensorflow', 'seqio', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
