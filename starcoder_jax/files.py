"""Files that others may read while they are written."""

import errno
import os
import pathlib
import tempfile


def replace_file(path: pathlib.Path, content: bytes) -> None:
    """Puts `content` at `path` in one move: a reader sees the old file or the new one, whole.

    Raises:
      OSError: naming `path`, which is then as it was.
    """
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as file:
            try:
                # A temporary file is private to its owner; a run's files are for its team.
                os.fchmod(file.fileno(), path.stat().st_mode if path.exists() else 0o644)
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: pathlib.Path) -> OSError:
    """The same error with the file's name, which `os.write` and buffered files leave out."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    remedy = "; make room there and run again" if full else ""
    return OSError(error.errno, f"{error.strerror}{remedy}", str(path))
