"""What a model has written is run apart from everything, or not at all."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from merit.errors import MeritError
from merit.eval.answering import sandbox
from merit.eval.answering.sandbox import check_isolation, passes


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        check_isolation(tmp_path_factory.mktemp("probe"))
    except MeritError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(
    ("program", "passed"),
    [
        ("assert 1 + 1 == 2", True),
        ("def f(:", False),
        ("raise SystemExit(3)", False),
        ("open('/tmp/x', 'w').write('a'); assert open('/tmp/x').read() == 'a'", True),
        ("x = bytearray(1 << 31)", False),
        ("import os; assert not {'HOME', 'USER', 'PYTEST_CURRENT_TEST'} & set(os.environ)", True),
        ("import os; os.system('mount -o remount,rw /') and exit(1)", False),
        ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", False),
        ("import socket; socket.getaddrinfo('localhost.localdomain', 80)", False),
        ("for i in range(40): print('x' * 10**6, flush=True)", False),  # 16 MiB of output
        ("for i in range(9): open(str(i), 'wb').write(bytes(10**7))", False),  # 64 MiB in all
        ("open('/dev/shm/x', 'w')", False),
    ],
)
def test_a_program_passes_or_fails(program: str, passed: bool) -> None:
    assert passes(program) is passed


@pytest.mark.usefixtures("isolated")
def test_files_outside_are_neither_written_nor_deleted(tmp_path: Path) -> None:
    kept = Path(__file__)
    before = kept.read_bytes()
    assert passes(f"open({str(kept)!r}).read()")  # Python's own library has to be read, too
    assert not passes(f"open({str(kept)!r}, 'a')")
    assert not passes(f"import os; os.remove({str(kept)!r})")
    assert kept.read_bytes() == before
    assert not passes(f"open({str(tmp_path / 'x')!r}, 'w').close()")  # /tmp is another one
    assert list(tmp_path.iterdir()) == []
    assert not passes(f"open('/proc/{os.getpid()}/environ').read()")


@pytest.mark.usefixtures("isolated")
def test_time_is_limited_for_children_too() -> None:
    began = time.monotonic()
    assert not passes("import os, time\nos.fork()\ntime.sleep(60)", timeout=1.0)
    assert time.monotonic() - began < 10


def test_nothing_runs_if_it_cannot_be_isolated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "PROBE", "print('the network can be reached')")
    with pytest.raises(MeritError, match=r"isolated"):
        check_isolation(tmp_path)
    monkeypatch.setattr(sandbox, "TOOLS", ("unshare", "no-such-tool"))
    with pytest.raises(MeritError, match="`no-such-tool`"):
        check_isolation(tmp_path)
