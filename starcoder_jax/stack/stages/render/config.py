"""What `render` is asked for."""

import dataclasses

STYLES = ("starcoder", "starcoder2")


@dataclasses.dataclass(frozen=True)
class RenderConfig:
    """Formats and thresholds; the defaults are those published (StarCoder2: arXiv:2402.19173).

    Lengths are in characters, rates in [0, 1].

    Attributes:
        style: "starcoder" or "starcoder2": whose special tokens and formats.
        seed: of all random choices.
        max_text_lines: of a comment; of longer ones the first and the last 20 lines stay, so
            many in all.
        min_issue_characters: in all texts of an issue.
        max_single_user_characters: an issue with more, but one user, is dropped.
        max_single_user_events: likewise.
        min_title_characters: of a pull request.
        max_title_characters: longer titles are cut.
        min_text_characters: of a pull request's description and comments; not of reviews.
        max_text_characters: longer ones are cut.
        min_pull_request_characters: of all that is rendered.
        max_pull_request_characters: likewise.
        require_approval: drops pull requests that were neither approved nor merged.
        require_diff: drops pull requests whose first state has no files (see `pull_requests`).
        sample_pull_requests: keeps fewer of a repository with many: of n up to 1000, each with the
            probability 0.8007 - 0.0007 n; of more, 100.
        max_hunk_characters: a review comment's longer hunk is omitted.
        min_diff_context: least number of unchanged lines around a change.
        max_diff_context: greatest number; one is drawn for each file.
        whole_file_rate: how often a pull request's base file or a commit's file stands there whole.
        max_extra_lines: around what changed, if not; up to one less is drawn for either side.
        data_file_rate: of pull requests' YAML and JSON files that are large or generated: kept.
        max_commit_characters: of the file before the commit; one that has as many is dropped.
        small_commit_rate: of commits that change 2 lines at most: kept.
        large_commit_rate: of commits that change 200 lines at least: kept.
        short_subject_rate: of commits whose subject has less than 5 words: kept.
        data_commit_rate: of commits to JSON, YAML, XML and HTML files: kept.
        max_output_characters: of a notebook cell's output, which is cut.
        min_answers: of a question.
        size_optimized_rate: of code compiled with -Oz and with -O3, how often the former is taken.

    Raises:
        ValueError: a value that makes no sense.
    """

    style: str = "starcoder2"
    seed: int = 0
    max_text_lines: int = 80
    min_issue_characters: int = 200
    max_single_user_characters: int = 7000
    max_single_user_events: int = 10
    min_title_characters: int = 10
    max_title_characters: int = 500
    min_text_characters: int = 20
    max_text_characters: int = 1000
    min_pull_request_characters: int = 200
    max_pull_request_characters: int = 100_000
    require_approval: bool = True
    require_diff: bool = True
    sample_pull_requests: bool = True
    max_hunk_characters: int = 10_000
    min_diff_context: int = 3
    max_diff_context: int = 9
    whole_file_rate: float = 0.2
    max_extra_lines: int = 32
    data_file_rate: float = 0.1
    max_commit_characters: int = 100_000
    small_commit_rate: float = 0.1
    large_commit_rate: float = 0.1
    short_subject_rate: float = 0.5
    data_commit_rate: float = 0.5
    max_output_characters: int = 1000
    min_answers: int = 3
    size_optimized_rate: float = 0.8

    def __post_init__(self):
        if self.style not in STYLES:
            raise ValueError(f"render.style is {self.style!r}: it must be {' or '.join(STYLES)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is float and not 0 <= value <= 1:
                raise ValueError(f"render.{field.name} is {value}: it must be from 0 to 1")
            if field.type is int and not 0 <= value < 2**63:
                raise ValueError(f"render.{field.name} is {value}: it must not be negative")
        if self.max_text_lines <= TAIL_LINES:
            raise ValueError(
                f"render.max_text_lines is {self.max_text_lines}: it must be above {TAIL_LINES}"
            )
        if self.max_extra_lines < 1:
            raise ValueError("render.max_extra_lines is 0: it must be positive")
        if self.min_diff_context > self.max_diff_context:
            raise ValueError(
                f"render.min_diff_context is {self.min_diff_context}: "
                f"it must not exceed max_diff_context, {self.max_diff_context}"
            )


# Lines at the end of a text that is cut in its middle.
TAIL_LINES = 20
