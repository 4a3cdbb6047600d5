"""Real payloads of GitHub and real notebooks, in the published formats."""

import json
import pathlib

import pytest

DATA = pathlib.Path(__file__).parents[5] / "shared" / "data"


def _folder(name):
    folder = DATA / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    return folder


def _payloads(*names):
    folder = _folder("github-events")
    contents = [(folder / f"{name}payload.json").read_bytes() for name in names]
    return [
        {
            "kind": "event",
            "content": content,
            "path": name,
            "repository": json.loads(content)["repository"]["full_name"],
        }
        for name, content in zip(names, contents, strict=True)
    ]


EXAMPLES = "payload-examples_api.github.com_"
ISSUE = (
    "<issue_start>Title: Spelling error in the README file\n"
    "username_0: It looks like you accidently spelled 'commit' with two 't's."
)


@pytest.mark.parametrize("style", ["starcoder", "starcoder2"])
def test_issue(render, style):
    for names, expected in [
        (["opened."], ISSUE),
        (
            ["created.", "opened."],
            f"{ISSUE}<issue_comment>username_0: You are totally right! "
            "I'll get this fixed right away.",
        ),
        (
            [f"{EXAMPLES}issue_comment_edited.", "created.", "opened.", "edited."],
            f"{ISSUE}<issue_comment>username_0: You are totally right! I'll get this fixed today.",
        ),
        (
            ["opened.with-empty-body."],
            "<issue_start>Title: Spelling error in the README file\nusername_0: ",
        ),
    ]:
        texts, _ = render(_payloads(*names), style=style)
        assert texts == {("issue", "issues/1"): expected}


def test_published_thresholds_drop_what_is_short(render):
    _, drops = render(_payloads("created.", "opened."), lenient=False)
    assert drops == {"created.": "short issue", "opened.": "short issue"}


def test_pull_request(render):
    rows = _payloads(
        "closed.",
        "submitted.",
        f"{EXAMPLES}pull_request_review_comment_created.",
        f"{EXAMPLES}pull_request_opened.",
    )
    texts, drops = render(rows)
    assert texts == {
        ("pull_request", "pull/2"): "<pr>Title: Update the README with new information.\n"
        "username_0: This is a pretty simple change that we need to pull into master."
        "<pr_status>opened<repo_name>Codertocat/Hello-World"
        "<pr_review_comment><pr_event_id>284312630<pr_in_reply_to_review_id>237895671"
        "<pr_file>README.md<pr_diff_hunk_comment_line>1<pr_diff_hunk>@@ -1 +1 @@\n-# Hello-World"
        "<pr_comment>username_0: Maybe you should use more emoji on this line."
        "<pr_review>username_0\n<pr_event_id>237895671<pr_review_state>commented"
        "<pr>username_0<pr_status>closed<pr_is_merged>False"
    }
    assert drops == {}
    assert set(render(rows, require_approval=True)[1].values()) == {"neither approved nor merged"}


def test_pull_request_with_the_files_it_changes(render):
    rows = _payloads(f"{EXAMPLES}pull_request_opened.", "submitted.")
    event = json.loads(rows[0]["content"])
    event["files"] = [{"path": "README.md", "base": "# Hello-World", "head": "# Hello World\n"}]
    rows[0]["content"] = json.dumps(event).encode()
    texts, _ = render(rows)
    assert (
        "<pr_status>opened<repo_name>Codertocat/Hello-World"
        "<pr_base><pr_file>README.md<pr_base_code># Hello-World"
        "<pr_diff><pr_file>README.md<pr_diff_hunk>@@ -1,1 +1,2 @@\n-# Hello-World\n+# Hello World"
        "\n+<pr_review>username_0\n"
    ) in texts["pull_request", "pull/2"]


def test_pushes_are_dropped(render):
    texts, drops = render(_payloads("", "1."))
    assert texts == {} and len(drops) == 2


def _notebooks():
    paths = sorted(_folder("notebooks").glob("*.ipynb"))
    return [
        {
            "kind": "file",
            "language": "Jupyter Notebook",
            "path": path.name,
            "content": path.read_bytes(),
        }
        for path in paths
    ]


def test_notebooks_as_scripts(render):
    texts, _ = render(_notebooks())
    assert texts["notebook_script", "profile_mqa.ipynb"] == (
        "<jupyter_script># !python --version\n\n# !pip install -r requirements.txt\n\n"
        "import multi_query_experiments.profile_hf_generate\n"
    )
    plain, _ = render(_notebooks(), style="starcoder")
    scripts = {path: text for (kind, path), text in texts.items() if kind == "notebook_script"}
    assert len(scripts) == 6
    for path, text in scripts.items():
        assert text == "<jupyter_script>" + plain["notebook_script", path]
        compile(text.removeprefix("<jupyter_script>"), path, "exec")


def test_notebooks_as_text_code_and_output(render):
    rows = [row for row in _notebooks() if row["path"] == "quickstart.ipynb"]
    cells = json.loads(rows[0]["content"])["cells"]
    first, code, second, more = ("".join(cell["source"]) for cell in cells)
    outputs = ["".join(cells[n]["outputs"][0]["text"]) for n in (1, 3)]
    texts, _ = render(rows)
    assert texts["notebook_structured", "quickstart.ipynb"] == (
        f"<jupyter_start><jupyter_text>{first}<jupyter_code>{code}<jupyter_output>{outputs[0]}"
        f"<jupyter_text>{second}<jupyter_code>{more}<jupyter_output>{outputs[1]}"
    )


def test_every_block_of_a_notebook_follows_on_the_one_before_it(render):
    texts, _ = render(_notebooks())
    structured = [text for (kind, _), text in texts.items() if kind == "notebook_structured"]
    assert len(structured) == 5
    for text in structured:
        blocks = text.removeprefix("<jupyter_start>").split("<jupyter_text>")
        assert blocks[0] == "" and len(blocks) > 1
        for block in blocks[1:]:
            assert block.count("<jupyter_code>") == block.count("<jupyter_output>") == 1
            output = block.partition("<jupyter_output>")[2]
            assert output == "<empty_output>" or (output and len(output) <= 1005)
