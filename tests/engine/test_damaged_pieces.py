"""A folder of snapshots that was torn, damaged, mixed up or left by a killed process: never a wrong token.

What is not whole and right is refused, and its tokens are read. SASH_CHAOS=1 (`make test-chaos`) plays 1,000 damages
and 200 kills.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sash.engine.request import Request
from sash.engine.snapshot_files import SUFFIX
from sash.engine.snapshots import Snapshots
from sash.network.packed import Network
from tests.engine.runs import PATHS, Taken, alone, finish, heard, network_on, request_of, service_over, submit

ROOT = Path(__file__).parents[2]
CHAOS = os.environ.get("SASH_CHAOS") == "1"
DAMAGES, KILLS = (1000, 200) if CHAOS else (12, 3)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs in blocks of 16 tokens, so that prompts are several files."""
    monkeypatch.setattr("sash.network.sizing.LOG_BLOCK", 16)


def asked(index: int = 1) -> Request:
    return request_of(index, 100, temperature=0)


def answer(network: Network, folder: Path, request: Request) -> tuple[Taken, Snapshots]:
    """The answer of a service that starts over a folder."""
    snapshots = Snapshots(2**28, folder=folder, fingerprint="one")
    service = service_over(network, snapshots=snapshots)
    _, taken = submit(service, request)
    finish(service)
    snapshots.flush()
    snapshots.close()
    return taken, snapshots


def damaged(folder: Path, chance: random.Random) -> None:
    """Do something to a file or two."""
    files = sorted(folder.glob("*" + SUFFIX))
    victim, other = chance.choice(files), chance.choice(files)
    data = bytearray(victim.read_bytes())
    match chance.randrange(6):
        case 0 | 1 | 2:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            victim.write_bytes(data)
        case 3:
            victim.write_bytes(data[: chance.randrange(len(data))])
        case 4:
            victim.write_bytes(other.read_bytes() if other != victim else b"")
        case 5:
            victim.unlink()
            if chance.random() < 0.5:
                victim.symlink_to(other) if chance.random() < 0.5 else victim.mkdir()


@pytest.mark.parametrize("path", PATHS[-1:])
def test_damage_is_never_a_wrong_token(path: str, tmp_path: Path) -> None:
    network, chance = network_on(path), random.Random(5)
    first, again, refused = tmp_path / "first", tmp_path / "again", 0
    cold, _ = answer(network, first, asked())
    warm, whole = answer(network, first, asked())
    assert warm.sequence.n_reused > 80
    assert heard(network, warm) == heard(network, cold) == heard(network, alone(network, asked()))
    assert whole.figures().disk.refused == 0  # type: ignore[union-attr]
    for _ in range(DAMAGES):
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(first, again)
        damaged(again, chance)
        taken, _ = answer(network, again, asked())
        assert heard(network, taken) == heard(network, cold)
        refused += taken.sequence.n_reused < warm.sequence.n_reused
    assert refused > DAMAGES // 10  # damage was met, not passed by


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import sash.network.sizing
sash.network.sizing.LOG_BLOCK = 16
from sash.engine import snapshot_folder
from sash.engine.snapshots import Snapshots
from tests.engine.runs import PATHS, alone, finish, heard, network_on, service_over, submit
from tests.engine.test_damaged_pieces import answer, asked

folder, kills, chance, torn, reused = Path(sys.argv[1]), int(sys.argv[2]), random.Random(3), 0, 0
network = network_on("torch")  # no threads of its own, so that it can be forked
cold = [heard(network, alone(network, asked(index))) for index in range(4)]
for kill in range(kills):
    if kill % 10 == 9:
        for path in folder.iterdir():
            path.unlink()
    ready, begun = os.pipe()
    child = os.fork()
    if child == 0:
        def told(*arguments, write=snapshot_folder.write):
            os.write(begun, b"1")
            return write(*arguments)

        snapshot_folder.write = told
        snapshots = Snapshots(2**28, folder=folder, fingerprint="one")
        for count in range(10_000):  # those that are asked later, and others, so that there is always more to write
            service = service_over(network, snapshots=snapshots)
            submit(service, asked((kill + count // 2) % 4 if count % 2 == 0 else 1000 * (kill + 1) + count))
            finish(service)
            snapshots.flush()
        os._exit(0)
    for _ in range(chance.randint(1, 12)):  # it is killed soon after it began to write a file, however slow the machine
        os.read(ready, 1)
    time.sleep(chance.random() * 0.003)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready), os.close(begun)
    torn += len(list(folder.glob(".*.tmp")))
    for index in (kill % 4, (kill + 1) % 4):
        taken, snapshots = answer(network, folder, asked(index))
        assert heard(network, taken) == cold[index]
        assert snapshots.figures().disk.refused == 0
        reused += taken.sequence.n_reused
    assert not list(folder.glob(".*.tmp")), "what was half written was left"
print(torn, reused)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_services_leave_what_is_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(KILLS)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=2500)
    assert result.returncode == 0, result.stderr
    torn, reused = map(int, result.stdout.split())
    assert reused > 40  # what was whole was used
    assert torn >= KILLS // 20  # it was killed in the midst of writing, not only between two files
