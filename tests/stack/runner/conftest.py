import pytest


@pytest.fixture
def log(tmp_path, monkeypatch):
    """Where the functions of the small pipeline note that they were called."""
    path = tmp_path / "calls"
    monkeypatch.setenv("CALLS", str(path))
    return path


@pytest.fixture
def called(log):
    """What was called since this was asked last."""

    def ask() -> list[str]:
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return lines

    return ask
