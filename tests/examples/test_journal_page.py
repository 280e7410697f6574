"""The page on the journal, as its reader would type it, beside a kernel that runs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from test_docs import blocks


@pytest.mark.model
@pytest.mark.timeout(120)
def test_the_blocks_of_the_page_run(home: dict[str, str], tmp_path: Path) -> None:
    def run(*words: str) -> None:
        done = subprocess.run(
            words, env=home, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"

    run("aios", "up")
    found = blocks("docs/howto/journal.md")
    assert {block.language for block in found} == {"bash", "toml"}
    (settings,) = (block.text for block in found if block.language == "toml")
    for block in found:
        if block.language == "bash":
            run("bash", "-euo", "pipefail", "-c", block.text)
    run("aios", "down")
    (Path(home["AIOS_HOME"]) / "config" / "config.toml").write_text(settings)
    run("aios", "config", "show")
    run("aios", "journal", "verify")
