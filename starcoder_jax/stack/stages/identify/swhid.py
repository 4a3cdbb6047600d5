"""Software Heritage's identifiers of contents and directories, which are git's hashes."""

import hashlib
from collections.abc import Mapping

# StarCoder2 walked directories down to this depth (arXiv:2402.19173, section 2). Limits keep a
# hostile path from costing more than its length.
_MAX_DEPTH = 64
_MAX_PATH_BYTES = 4096


def content_swhid(content: bytes) -> str:
    """The swh:1:cnt: of a content: the SHA-1 of the git blob."""
    return f"swh:1:cnt:{_git_hash(b'blob', content).hex()}"


def directory_swhid(contents: Mapping[str, str]) -> str | None:
    """The swh:1:dir: of a root directory.

    This is the identifier of the files at hand, as regular files that are not executable. It equals
    the archive's only if nothing was left out (links, binary or large files, empty folders) and no
    file is executable.

    Args:
        contents: From paths, with "/" between folders, to their swh:1:cnt:.

    Returns:
        None where paths are no tree: a name is both file and folder, is empty, ".", ".." or
        ".git", or lies deeper than 64 folders.
    """
    folders: dict[str, dict[bytes, bytes]] = {"": {}}
    for path, swhid in contents.items():
        parts = path.split("/")
        if len(parts) > _MAX_DEPTH + 1 or len(path.encode()) > _MAX_PATH_BYTES:
            return None
        if any(part in ("", ".", "..", ".git") for part in parts):
            return None
        for depth in range(len(parts)):
            folders.setdefault("/".join(parts[:depth]), {})
        folder, _, name = path.rpartition("/")
        folders[folder][name.encode()] = bytes.fromhex(swhid.rpartition(":")[2])
    if any(path in contents for path in folders):
        return None
    trees: dict[str, dict[bytes, bytes]] = {folder: {} for folder in folders}
    hashes = {}
    for folder in sorted(folders, key=lambda folder: (-folder.count("/"), folder)):
        if folder:
            hashes[folder] = _tree(folders[folder], trees[folder])
            parent, _, name = folder.rpartition("/")
            trees[parent][name.encode()] = hashes[folder]
    return f"swh:1:dir:{_tree(folders[''], trees['']).hex()}"


def _tree(files: Mapping[bytes, bytes], folders: Mapping[bytes, bytes]) -> bytes:
    # Git orders a folder as if its name ended in "/".
    entries = [(name, b"100644", name, value) for name, value in files.items()]
    entries += [(name + b"/", b"40000", name, value) for name, value in folders.items()]
    lines = [mode + b" " + name + b"\0" + value for _, mode, name, value in sorted(entries)]
    return _git_hash(b"tree", b"".join(lines))


def _git_hash(kind: bytes, content: bytes) -> bytes:
    header = b"%s %d\0" % (kind, len(content))
    digest = hashlib.sha1(header, usedforsecurity=False)
    digest.update(content)
    return digest.digest()
