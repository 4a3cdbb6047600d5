"""Questions and answers of Stack Exchange, as StarCoder2 read those of Stack Overflow.

    <issue_start>username_0: question<issue_comment>username_1: answer
    Upvotes: 3 [selected answer]<issue_comment>...

A `question_event` is a row of Posts.xml: `Id`, `PostTypeId`, `ParentId`, `AcceptedAnswerId`,
`Score`, `Title`, `Body` (HTML), `OwnerUserId`, `OwnerDisplayName`, and `site`. StarCoder2 chose
questions by a classifier of their quality, too, which is not done here.
"""

from collections.abc import Sequence

from starcoder_jax.stack import chance
from starcoder_jax.stack.stages.render import values
from starcoder_jax.stack.stages.render.config import RenderConfig
from starcoder_jax.stack.stages.render.pages import html_text
from starcoder_jax.stack.stages.render.result import Part, RejectedError, Rendered
from starcoder_jax.stack.stages.render.texts import Pseudonyms


def render_question(contents: Sequence[bytes], repository: str, config: RenderConfig) -> Rendered:
    """A question from its posts; the answers stand in random order.

    Raises:
        RejectedError: it is dropped.
    """
    posts = [values.parsed(content) for content in contents]
    question = next((post for post in posts if values.number(post, "PostTypeId") == 1), None)
    if question is None:
        raise RejectedError("answers without a question")
    answers = [post for post in posts if values.number(post, "PostTypeId") == 2]
    if len(answers) < config.min_answers:
        raise RejectedError("few answers")
    answers.sort(
        key=lambda post: chance.order(
            repository, str(values.number(post, "Id")), "answer", seed=config.seed
        )
    )
    shown = [question, *answers]
    users = [_user(post, index) for index, post in enumerate(shown)]
    names = Pseudonyms(users)
    display_names = [name for post in shown if (name := values.text(post, "OwnerDisplayName"))]
    parts: list[Part] = []
    for post, user in zip(shown, users, strict=True):
        text = f"{names.of(user)}: {names.replaced(_text(post))}"
        if post is question:
            parts.append(("<issue_start>", text))
            continue
        text += f"\nUpvotes: {values.number(post, 'Score') or 0}"
        chosen = values.number(question, "AcceptedAnswerId")
        if chosen is not None and chosen == values.number(post, "Id"):
            text += " [selected answer]"
        parts.append(("<issue_comment>", text))
    return Rendered("question", parts, authors=list(dict.fromkeys(display_names)))


def _user(post: dict, index: int) -> str:
    name = values.text(post, "OwnerDisplayName")
    number = values.number(post, "OwnerUserId")
    # No text names these, nor does anything say that two authors who are not known are the same.
    return name or (f"\0{number}" if number is not None else f"\0nobody {index}")


def _text(post: dict) -> str:
    title = values.text(post, "Title")
    body = html_text(values.text(post, "Body"))
    return f"{title}\n{body}" if title else body
