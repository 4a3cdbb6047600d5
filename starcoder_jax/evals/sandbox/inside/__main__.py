"""Starts a worker: the only argument is its configuration, as JSON."""

import collections  # noqa: F401 (what programs under test import most often, and most others)
import copy  # noqa: F401
import datetime  # noqa: F401
import fractions  # noqa: F401
import functools  # noqa: F401
import hashlib  # noqa: F401
import heapq  # noqa: F401
import itertools  # noqa: F401
import json
import math  # noqa: F401
import os
import random  # noqa: F401
import re  # noqa: F401
import string  # noqa: F401
import sys
import typing  # noqa: F401

from . import walls
from .keeper import Keeper


def main() -> None:
    """Goes behind the walls, and serves."""
    config = json.loads(sys.argv[1])
    # The package is on no path of the programs under test.
    sys.path.remove(os.environ.pop("PYTHONPATH"))
    if config["visible"] is not None:
        walls.enclose_worker(config["visible"])
    keeper = Keeper(config["tools"], config["limits"], config["enclose"])
    keeper.serve()


main()
