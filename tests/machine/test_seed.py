"""`python main.py`, the seed's command line: real agents on tiny models, and what it refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch

from aios.cli import seed
from aios.errors import InvalidCall

MAIN = Path(__file__).parents[2] / "main.py"
NO_HUB = "http://127.0.0.1:9"  # nothing listens there


def run(tmp_path: Path, *arguments: str, timeout: float = 100) -> subprocess.CompletedProcess[str]:
    """In a folder of its own for what is temporary, so that what is left behind is seen."""
    place = tmp_path / "t"
    place.mkdir(exist_ok=True)
    mine = {name: value for name, value in os.environ.items() if not name.startswith("AIOS_")}
    return subprocess.run(
        [sys.executable, MAIN, *arguments],
        env={**mine, "TMPDIR": str(place), "HF_ENDPOINT": NO_HUB, "HF_HOME": str(tmp_path / "hf")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gemma")
    return tiny_models.make(folder, "gemma", max_position_embeddings=4096)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", ["gemma", "mixtral"])
def test_the_papers_agents_answer_on_a_tiny_model(kind: str, tmp_path: Path) -> None:
    folder = tiny_models.make(tmp_path / kind, kind, max_position_embeddings=4096)
    ran = run(
        tmp_path,
        *("--llm_name", str(folder), "--eval_device", "cpu", "--max_new_tokens", "256"),
    )
    assert (ran.returncode, ran.stderr) == (0, ""), ran.stdout
    answers = dict(line.split(": ", 1) for line in ran.stdout.splitlines() if ": " in line)
    assert {"math", "narrative", "rec"} <= answers.keys()
    assert answers["rec"].partition(":")[0].rstrip(".") in seed.TASKS["rec"]
    assert [*(tmp_path / "t").iterdir()] == []  # nothing is left behind


@pytest.mark.timeout(120)
def test_tasks_and_the_cap_come_from_the_command_line(gemma: Path, tmp_path: Path) -> None:
    ran = run(
        tmp_path,
        *("--llm_name", str(gemma), "--eval_device", "cpu", "--max_new_tokens", "9"),
        *("narrative:a fox", "narrative:a hen"),
    )
    assert ran.returncode == 0, ran.stderr
    tasks = [line for line in ran.stdout.splitlines() if line.startswith("process")]
    assert [line.rpartition(": ")[2] for line in tasks] == ["a fox", "a hen"]


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(
            ("--eval_device", "cuda:0"),
            "'cuda:0'",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        (("--max_gpu_memory", '{"7": "24GB"}'), "GPU 7"),
        (("--max_gpu_memory", "24GB"), "no memory map"),
        (("--max_gpu_memory", "[1]"), "no memory map"),
        (("--max_new_tokens", "0"), "max_new_tokens is 0"),
        (("--max_new_tokens", "many"), "'many'"),
        (("--llm_name", "/no/such/folder"), "/no/such/folder"),
        (("--llm_name", "gemma-2b-it"), "google/gemma-2b-it"),
        (("--eval_device", "warp"), "'warp'"),
        (("cook:a soup",), "'cook:a soup'"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_what_cannot_be_run_is_one_line(
    gemma: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    ran = run(tmp_path, "--llm_name", str(gemma), *arguments)
    assert ran.returncode == 2
    assert said in ran.stderr
    assert ran.stderr.startswith("main.py: ")
    assert ran.stderr.count("\n") == 1
    assert [*(tmp_path / "t").iterdir()] == []


def test_tasks_are_agents_and_what_they_are_to_do() -> None:
    assert seed.tasks_of([]) == [*seed.TASKS.items()]
    assert seed.tasks_of(["math:1 + 1: how much?"]) == [("math", "1 + 1: how much?")]
    for word in ("math", "math:", "cook:soup"):
        with pytest.raises(InvalidCall, match="AGENT:TASK"):
            seed.tasks_of([word])
