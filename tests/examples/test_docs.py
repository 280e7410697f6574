"""Every block of code of these pages runs, in order, as a reader would type it.

A Python block that begins with ``# name.py`` becomes that file and is not run by itself, unless the
page never runs it. A block after ``<!-- not run: why -->`` is left out.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).parents[2]
# what a block stands after, its language, its text
BLOCK = re.compile(r"(<!-- not run: .+? -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
PAGES = (
    "README.md",
    "docs/quickstart.md",
    "docs/howto/snapshots.md",
    "docs/howto/beams.md",
    "docs/howto/secrets.md",
    "docs/howto/memory.md",
    "docs/howto/files.md",
)
INSTALLS = "pip install"  # the two commands that begin with a new environment: CI's own


class Block(NamedTuple):
    language: str
    text: str

    @property
    def file(self) -> str | None:
        named = re.match(r"# (\w+\.py)\n", self.text)
        return named[1] if named else None


def blocks(page: str) -> list[Block]:
    found = BLOCK.findall((REPOSITORY / page).read_text())
    return [Block(kind, text) for skip, kind, text in found if not skip and INSTALLS not in text]


def test_the_readme_shows_ten_lines_of_code_before_line_30() -> None:
    lines = (REPOSITORY / "README.md").read_text().splitlines()[:30]
    start = lines.index("```python")
    code = [line for line in lines[start + 1 : lines.index("```", start)] if line.strip()]
    assert len(code) >= 10


@pytest.mark.model
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page: str, home: dict[str, str], tmp_path: Path) -> None:
    found = blocks(page)
    assert {block.language for block in found} == {"python", "bash"}
    shell = "".join(block.text for block in found if block.language == "bash")
    for block in found:
        if block.language == "bash":
            words = ["bash", "-euo", "pipefail", "-c", block.text]
        elif block.file is not None:
            (tmp_path / block.file).write_text(block.text)
            if block.file in shell:
                continue
            words = [sys.executable, block.file]
        else:
            words = [sys.executable, "-c", block.text]
        done = subprocess.run(
            words, env=home, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
        )
        assert done.returncode == 0, (
            f"{block.text}\n---\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        )
