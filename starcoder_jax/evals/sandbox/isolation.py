"""Which walls this machine can put around generated code."""

import dataclasses
import glob
import os
import pathlib
import shutil
import sys
from collections.abc import Iterable

from starcoder_jax.evals.sandbox.inside.walls import DEVICES

# Programs and libraries, without what a machine's users and services keep.
_SYSTEM = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/nix/store",
    "/etc/alternatives",
    "/etc/ld.so.cache",
    "/etc/java*",
)
_PACKAGE = pathlib.Path(__file__).parent / "inside"
_NOBODY = 65534
CHOICES = ("bubblewrap", "namespaces")  # in the order of preference
NONE = "none"


@dataclasses.dataclass(frozen=True)
class Isolation:
    """How a worker is started.

    Attributes:
        name: of `CHOICES`, or `NONE`.
        wrapper: a command that runs the worker's command behind walls.
        visible: what the worker builds walls around itself with; None: it does not.
        enclose: whether each sample gets namespaces of its own.
        folder: that of the package `inside`, as the worker sees it.
        user: to start it as, if not the present one.
    """

    name: str
    wrapper: tuple[str, ...] = ()
    visible: tuple[str, ...] | None = None
    enclose: bool = True
    folder: str = str(_PACKAGE.parent)
    user: int | None = None


def isolation_of(name: str, tools: Iterable[str]) -> Isolation:
    """How a worker is started.

    Args:
        name: of `CHOICES`, or `NONE`.
        tools: paths of the programs to be seen inside.

    Raises:
        ValueError: something is missing.
    """
    if name == NONE:
        return Isolation(NONE, enclose=False)
    if sys.platform != "linux":
        raise ValueError("namespaces are a part of Linux")
    visible = _visible(tools)
    if name == "namespaces":
        return Isolation(name, visible=visible)
    program = shutil.which("bwrap")
    if program is None:
        raise ValueError("bwrap is not installed")
    binds = []
    for path in visible:
        if os.path.islink(path):
            binds += ["--symlink", os.readlink(path), path]
        else:
            binds += ["--ro-bind", path, path]
    # Not --dev, which can be written to.
    devices = [f"/dev/{name}" for name in DEVICES]
    wrapper = (
        *(program, "--unshare-all", "--unshare-user", "--uid", "0", "--gid", "0"),
        *("--cap-add", "ALL", "--hostname", "sandbox"),
        *("--proc", "/proc", "--dir", "/tmp", *binds),
        *(part for path in devices for part in ("--dev-bind", path, path)),
        *("--symlink", "/tmp", "/dev/shm", "--symlink", "/proc/self/fd", "/dev/fd"),
        *("--ro-bind", str(_PACKAGE), f"/sandbox/{_PACKAGE.name}", "--remount-ro", "/", "--"),
    )
    # The kernel exempts the host's root from limits on processes.
    user = _NOBODY if os.geteuid() == 0 else None
    return Isolation(name, wrapper, folder="/sandbox", user=user)


def _visible(tools: Iterable[str]) -> tuple[str, ...]:
    paths = [path for pattern in _SYSTEM for path in sorted(glob.glob(pattern))]
    for path in (
        sys.base_prefix,
        sys.prefix,
        *(os.path.dirname(os.path.dirname(t)) for t in tools),
    ):
        if not any(os.path.commonpath([path, seen]) == seen for seen in paths):
            paths.append(path)
    return tuple(paths)
