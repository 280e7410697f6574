"""A commit of five files in a tree of 1,000: volumes, durable, against pygit2 and git itself.

Ours goes through the kernel's door into a journal on the disk: it is durable, in the call's own
transaction, with the words of the texts indexed. ``pygit2`` writes loose objects and moves a branch
with no index file and no work tree; by default it syncs nothing. ``pygit2_synced`` is the same with
fsync of its objects. ``git`` is the command line in a work tree: write, add, commit. They take
turns; of the rounds' medians the lowest counts, for the machine may be busy. Sizes are what the
store took on the disk for the tree and all commits: ours the growth of the whole journal, search
index and transcript included; ``chunks_kb`` is what the contents of files take of that.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pygit2
import uvloop

from aios.abi.calls import FileDraft, SpawnAgent, StoCommit, StoRead
from aios.config import Config
from aios.drivers.journal.sqlite import SqliteJournal
from aios.testing import machine

GOAL = 3.0
FILES, CHANGED = 1_000, 5
BYTES = 960  # of a file
ROUNDS, COMMITS, SLOW_COMMITS = 8, 20, 3  # a round's commits; of git's command line
SEED = 7

Tree = dict[str, bytes]


def tree_of(chance: random.Random) -> Tree:
    words = [f"word{n:03}" for n in range(400)]
    return {
        f"src/part{number % 50}/file{number}.txt": (
            " ".join(chance.choices(words, k=BYTES // 8)).encode()[:BYTES]
        )
        for number in range(FILES)
    }


def changes_of(tree: Tree) -> Iterator[Tree]:
    """Five files at a time, each with a line more than before."""
    chance, held = random.Random(SEED), dict(tree)
    for number in range(1 << 30):
        changed = {}
        for path in chance.sample(sorted(held), CHANGED):
            held[path] += f"\nchange {number} {chance.random()}".encode()
            changed[path] = held[path]
        yield changed


class PyGit2:
    """A bare repository, as a program would use it as a store."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self.folder = folder
        self._repository = pygit2.init_repository(str(folder), bare=True)
        self._index = pygit2.Index()
        self._author = pygit2.Signature("bench", "bench@example.org")
        self._parents: list[Any] = []
        self.commit(tree)

    def commit(self, changed: Tree) -> None:
        for path, data in changed.items():
            blob = self._repository.create_blob(data)
            self._index.add(pygit2.IndexEntry(path, blob, pygit2.enums.FileMode.BLOB))
        tree = self._index.write_tree(self._repository)
        made = self._repository.create_commit(
            "refs/heads/main", self._author, self._author, "five", tree, self._parents
        )
        self._parents = [made]


class Git:
    """The command line, in a work tree."""

    def __init__(self, folder: Path, tree: Tree) -> None:
        self.folder = folder
        folder.mkdir()
        self._run("init", "-q")
        self._run("config", "user.name", "bench")
        self._run("config", "user.email", "bench@example.org")
        self._run("config", "gc.auto", "0")
        self.commit(tree)

    def _run(self, *arguments: str) -> None:
        subprocess.run(["git", *arguments], cwd=self.folder, check=True)

    def commit(self, changed: Tree) -> None:
        for path, data in changed.items():
            file = self.folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(data)
        self._run("add", *(changed if len(changed) == CHANGED else ["."]))
        self._run("commit", "-q", "-m", "five")


def timed(work: Callable[[Tree], object], changes: Iterator[Tree], count: int) -> list[float]:
    """Milliseconds of each commit."""
    found = []
    for _ in range(count):
        changed = next(changes)
        began = time.perf_counter()
        work(changed)
        found.append((time.perf_counter() - began) * 1e3)
    return found


def kilobytes(folder: Path) -> int:
    """What its files take on the disk, which gives out whole blocks."""
    return sum(file.lstat().st_blocks for file in folder.rglob("*") if file.is_file()) * 512 // 1024


async def measure(place: Path) -> dict[str, Any]:
    tree = tree_of(random.Random(SEED))
    rounds: dict[str, list[float]] = {
        name: [] for name in ("aios", "pygit2", "pygit2_synced", "git")
    }
    synced = pygit2.enums.Option.ENABLE_FSYNC_GITDIR
    pygit2.option(synced, False)
    stores: dict[str, PyGit2 | Git] = {
        "pygit2": PyGit2(place / "pygit2", tree),
        "pygit2_synced": PyGit2(place / "synced", tree),
        "git": Git(place / "git", tree),
    }
    file = place / "aios" / "journal.db"
    async with machine(journal=SqliteJournal(file), config=Config()) as kernel:
        login = kernel.identify(kernel.user_key)
        pid = (await kernel.trap(login, SpawnAgent(program="bench"))).aid  # type: ignore[attr-defined]
        started = kilobytes(file.parent)

        async def commit(changed: Tree) -> None:
            drafts = tuple(FileDraft(path, content=data) for path, data in changed.items())
            await kernel.trap(pid, StoCommit(changes=drafts, message="five"))

        await commit(tree)
        changes = {name: changes_of(tree) for name in rounds}
        for _ in range(ROUNDS):
            spent = []
            for _ in range(COMMITS):
                changed = next(changes["aios"])
                began = time.perf_counter()
                await commit(changed)
                spent.append((time.perf_counter() - began) * 1e3)
            rounds["aios"].append(median(spent))
            for name, store in stores.items():
                pygit2.option(synced, name == "pygit2_synced")
                count = SLOW_COMMITS if name == "git" else COMMITS
                rounds[name].append(median(timed(store.commit, changes[name], count)))
        path, data = next(iter(changed.items()))
        found = await kernel.trap(pid, StoRead(path=path, binary=True))
        wrong = int(found.content != data)  # type: ignore[attr-defined]
        kernel.journal._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[attr-defined]
        grown = kilobytes(file.parent) - started
        query = "SELECT sum(length(body)) FROM chunks"
        chunks = await kernel.journal.read(lambda connection: connection.execute(query).get)  # type: ignore[attr-defined]
    best = {name: min(found) for name, found in rounds.items()}
    return {
        **{f"vs_{name}": round(best[name] / best["aios"], 1) for name in stores},
        "commit_ms": {name: round(spent, 2) for name, spent in best.items()},
        "commits": {
            name: 1 + ROUNDS * (SLOW_COMMITS if name == "git" else COMMITS) for name in best
        },
        "wrong": wrong,
        "store_kb": {
            "aios": grown,
            "pygit2": kilobytes(stores["pygit2"].folder),
            "git": kilobytes(stores["git"].folder / ".git"),
        },
        "chunks_kb": chunks // 1024,
    }


def run() -> dict[str, Any]:
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with tempfile.TemporaryDirectory() as place, runner:
        figures = runner.run(measure(Path(place)))
    return {
        "name": "files",
        **figures,
        "goal": f"vs_pygit2 >= {GOAL:g} though pygit2 syncs nothing and ours is durable; wrong 0",
        "met": figures["vs_pygit2"] >= GOAL and not figures["wrong"],
    }
