"""Tells random characters from words and identifiers, by how rare their pairs of letters are."""

import math
import re

# How surprising letter b is after letter a: row a, column b, a = 0, b = 0.4, ... z = 10, in units
# of -ln(p(b | a)). Counted in the lower-cased words of Python's standard library (3.11, without its
# tests), plus ten of each pair.
_ROWS = (
    *("ujhhsnjuitmfgfxjwfgfklnnlu", "fokmeqprigtfoohltijnftotgp", "grlofprgjwhgmoepqjmfjpsunv"),
    *("gnmicnmqfqsipnhotjilirqqlu", "inhhkhmrovqfjfnjmfggplmhlu", "gsmlhhpsdvvionemsgkjhupumx"),
    *("jpnpdqjigvuilhjowhfkhnputo", "etrpcrurfxqnooftxknjlvuwpw", "lkijkgkwpwphidgktjfgvlxlzl"),
    *("jrnpbprqmqnpqqemrojqgrqror", "hpnlcnkrgtqipjmlplgnlpgups", "gnojeessfwsgqngnyphiiqqwjt"),
    *("ejqmcrttixqljogfypimjttwox", "gqhffkgrjvmlplfnsqhfklrwnv", "mjihoilvmwljhekiyeihhljosr"),
    *("ernmeorniypgpqfhtflgjopwjy", "oponppqppqrlqinlnkkoaqpqrr", "gokkdnisgwmmjggnzhhhjmoujy"),
    *("jskpcpmjhvmlooiirngeiqntkw", "gplmenuefxolnpglvgijhrnrjq", "ljkmfklwjyughfmhxegfqvxswv"),
    *("dqntcpsqgvusnokqupoqtrqttu", "epokgpsfdutloigqrgioqrmqvt", "inenglrogutljpnguoldppojkp"),
    *("olkmhmnoiutjjhidsleepnjrop", "hqopbmrnfrrlkmimroonprprnp"),
)
_UNIT = 0.4
_SURPRISE = {
    chr(97 + first) + chr(97 + second): (ord(letter) - 97) * _UNIT
    for first, row in enumerate(_ROWS)
    for second, letter in enumerate(row)
}

# 98 of 100 identifiers of 20 letters and more are below, 99 of 100 random strings of 20 characters
# (letters and digits) above.
THRESHOLD = 3.5

_LETTERS = re.compile("[^a-z]+")
_HEX = re.compile("[0-9a-fA-F]+")


def surprise(text: str) -> float:
    """Mean of -ln(p) over the pairs of letters of a text, whatever stands between the letters.

    The rule of `gibberish-detector`, which StarCoder used, with a table of identifiers and the
    English of their comments. 0 where there are fewer than two letters.
    """
    letters = _LETTERS.sub("", text.lower())
    pairs = map(str.__add__, letters, letters[1:])
    return sum(map(_SURPRISE.__getitem__, pairs)) / max(1, len(letters) - 1)


def is_gibberish(text: str) -> bool:
    """Whether a text looks random.

    Of hexadecimal digits, where pairs of letters say little, letters and digits make it so.
    """
    if _HEX.fullmatch(text):
        return not text.isdigit() and not text.isalpha() and entropy(text) > 2.5
    return surprise(text) > THRESHOLD


def entropy(text: str) -> float:
    """Shannon's, in bits a character."""
    shares = [text.count(character) / len(text) for character in set(text)]
    # In order: sums of floating-point numbers depend on it, and sets have none.
    return -sum(share * math.log2(share) for share in sorted(shares))
