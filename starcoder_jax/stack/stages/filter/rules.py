"""The filters: each looks at one row and says why it is dropped, or None."""

import dataclasses
import functools
import posixpath
from collections.abc import Callable

from starcoder_jax.data.documents import is_alphabetic
from starcoder_jax.data.tokenizer import Tokenizer, load_tokenizer
from starcoder_jax.stack.stages.filter.comments import comment_fraction
from starcoder_jax.stack.stages.filter.config import FilterConfig
from starcoder_jax.stack.stages.filter.content import encoded_data, visible_characters
from starcoder_jax.stack.stages.identify.language import enry

_XML_CHARACTERS = 100
_LICENSE_REASONS = {
    "permissive": "permissive license",
    "no_license": "no license",
    "non_permissive": "non-permissive license",
}


@dataclasses.dataclass(frozen=True)
class Row:
    """What the filters know of a row.

    Attributes:
        kind: See `record.KINDS`.
        path: "" where there is none.
        language: Its Linguist name, "" where not known.
        license_type: See `record.RECORD`.
        stars: 0 where not known.
        content: UTF-8.
    """

    kind: str
    path: str
    language: str
    license_type: str
    stars: int
    content: bytes

    @functools.cached_property
    def text(self) -> str:
        """The content as characters."""
        return self.content.decode()

    @functools.cached_property
    def line_lengths(self) -> list[int]:
        """The number of characters of each line."""
        return list(map(len, self.text.splitlines()))


Rule = Callable[[FilterConfig, Row], str | None]


def _license(config: FilterConfig, row: Row) -> str | None:
    if config.license_types is None or row.license_type in config.license_types:
        return None
    return _LICENSE_REASONS[row.license_type]


def _stars(config: FilterConfig, row: Row) -> str | None:
    return "few stars" if config.min_stars is not None and row.stars < config.min_stars else None


def _unknown(config: FilterConfig, row: Row) -> str | None:
    return None if config.unknown_languages or row.language else "unknown language"


def _empty(config: FilterConfig, row: Row) -> str | None:
    return "empty" if not row.content or row.content.isspace() else None


def _vendored(config: FilterConfig, row: Row) -> str | None:
    return None if config.vendored or not enry().is_vendor(row.path) else "vendored"


def _generated(config: FilterConfig, row: Row) -> str | None:
    if config.generated_markers:
        lines = row.content.split(b"\n", config.generated_lines)[: config.generated_lines]
        beginning = b"\n".join(lines).lower()
        if any(marker.encode() in beginning for marker in config.generated_markers):
            return "generated"
    if config.generated or not row.path:
        return None
    return "generated" if enry().is_generated(row.path, row.content) else None


def _plain_text(config: FilterConfig, row: Row) -> str | None:
    if row.language != "Text" or config.text_names is None:
        return None
    name = posixpath.basename(row.path).lower()
    stem = posixpath.splitext(name)[0]
    if stem in config.text_names or any(part in name for part in config.text_name_parts):
        return None
    return "plain text"


def _xml(config: FilterConfig, row: Row) -> str | None:
    if config.xml or b"<?xml version=" not in row.content[: 4 * _XML_CHARACTERS]:
        return None
    return "XML" if "<?xml version=" in row.text[:_XML_CHARACTERS] else None


def _lines(config: FilterConfig, row: Row) -> str | None:
    count = len(row.line_lengths)
    if config.max_lines is not None and count > config.max_lines:
        return "too many lines"
    if (
        config.max_data_lines is not None
        and count > config.max_data_lines
        and row.kind == "file"
        and row.language in config.data_languages
    ):
        return "long data file"
    return None


def _line_lengths(config: FilterConfig, row: Row) -> str | None:
    if row.kind != "file" or row.language in config.long_line_languages:
        return _exceeds(max(row.line_lengths), config.max_long_line_length)
    mean = sum(row.line_lengths) / len(row.line_lengths)
    return _exceeds(max(row.line_lengths), config.max_line_length) or _exceeds(
        mean, config.max_mean_line_length
    )


def _exceeds(length: float, limit: float | None) -> str | None:
    return "long lines" if limit is not None and length > limit else None


def _letters(config: FilterConfig, row: Row) -> str | None:
    fraction = config.alphabetic_fractions.get(row.language, config.min_alphabetic_fraction)
    if fraction is not None:
        if row.language in config.alphanumeric_languages:
            enough = _is_alphanumeric(row.text, fraction)
        else:
            enough = is_alphabetic(row.text, row.content, fraction)
        if not enough:
            return "few letters"
    if config.min_alphanumeric_fraction is not None:
        # Letters are alphanumeric, and quicker to count.
        fraction = config.min_alphanumeric_fraction
        if not is_alphabetic(row.text, row.content, fraction):
            return None if _is_alphanumeric(row.text, fraction) else "few letters and digits"
    return None


def _is_alphanumeric(text: str, fraction: float) -> bool:
    return sum(map(str.isalnum, text)) >= fraction * len(text)


def _encoded(config: FilterConfig, row: Row) -> str | None:
    if config.max_encoded_run is None and config.max_encoded_fraction is None:
        return None
    longest, total = encoded_data(row.content)
    if config.max_encoded_run is not None and longest > config.max_encoded_run:
        return "encoded data"
    if config.max_encoded_fraction is None or not total:
        return None
    return "encoded data" if total > config.max_encoded_fraction * len(row.text) else None


def _html(config: FilterConfig, row: Row) -> str | None:
    limits = (config.min_html_text, config.min_html_text_fraction)
    if row.language != "HTML" or limits == (None, None):
        return None
    shown = visible_characters(row.content)
    if shown < (config.min_html_text or 0):
        return "little visible text"
    wanted = (config.min_html_text_fraction or 0) * len(row.text)
    return "little visible text" if shown < wanted else None


def _data_size(config: FilterConfig, row: Row) -> str | None:
    limits = config.data_sizes.get(row.language)
    if limits is None or limits[0] <= len(row.text) <= limits[1]:
        return None
    return "small data file" if len(row.text) < limits[0] else "large data file"


def _comments(config: FilterConfig, row: Row) -> str | None:
    limits = config.comment_fractions.get(row.language)
    fraction = comment_fraction(row.language, row.content) if limits else None
    if fraction is None or limits[0] <= fraction <= limits[1]:
        return None
    return "few comments" if fraction < limits[0] else "mostly comments"


def _tokens(config: FilterConfig, row: Row) -> str | None:
    least = config.min_characters_per_token.get(row.language)
    if least is None:
        return None
    tokens = len(_tokenizer(config.tokenizer).encode(row.text))
    return "many tokens" if len(row.text) < least * tokens else None


@functools.lru_cache(maxsize=1)
def _tokenizer(path: str) -> Tokenizer:
    return load_tokenizer(path)


# Cheap ones first; none but those before `_plain_text` may see an empty content.
_FILE_RULES: tuple[Rule, ...] = (
    *(_license, _stars, _empty, _unknown, _plain_text, _vendored, _generated, _xml, _lines),
    *(_line_lengths, _data_size, _letters, _encoded, _html, _comments, _tokens),
)
# Code beside prose: an output or a paragraph is one long line.
_CODE_RULES: tuple[Rule, ...] = (_license, _empty, _lines, _line_lengths, _letters, _encoded)
_PROSE_RULES: tuple[Rule, ...] = (_empty, _letters, _encoded)
_RULES = {
    "file": _FILE_RULES,
    "notebook_script": _CODE_RULES,
    "notebook_structured": _CODE_RULES,
    "commit": _CODE_RULES,
    "pull_request": _CODE_RULES,
    "ir": _CODE_RULES,
    "kaggle": _CODE_RULES,
    "issue": _PROSE_RULES,
    "question": _PROSE_RULES,
    "documentation": _PROSE_RULES,
}


def reason_to_drop(config: FilterConfig, row: Row) -> str | None:
    """The first rule's reason that does not keep the row; None to keep it.

    All rules hold for files. Notebooks, commits, pull requests, IR and Kaggle notebooks are
    filtered by license, number of lines, longest line (`max_long_line_length`), letters and
    encoded data; issues, questions and documentation, which are no one's code, by letters and
    encoded data.

    Raises:
        ValueError: the row is of a kind that `render` should have made another of.
    """
    rules = _RULES.get(row.kind)
    if rules is None:
        raise ValueError(f"filter cannot judge rows of kind {row.kind!r}: run render before it")
    for rule in rules:
        if (reason := rule(config, row)) is not None:
            return reason
    return None
