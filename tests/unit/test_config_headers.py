"""The commands in the headers of the shipped configurations: jobs take them, and they lead to the configuration."""

from __future__ import annotations

import argparse
import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest

from reid.settings_file import read_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "jobs" / "configs").glob("*.yaml"))


class Parsed(Exception):  # noqa: N818 - no error: what a job read from its command line
    """Ends a job once it has parsed its arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def header_commands(path: Path) -> list[str]:
    """The lines of the section `command`, continued lines joined, `make` replaced by what the Makefile does."""
    section, lines = "", list[str]()
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        section = line[4:14].strip() or section
        if section == "command":
            lines.append(line[14:])
    commands = "\n".join(lines).replace("\\\n", " ").splitlines()
    return [step for command in commands for step in (made_by(command) if command.startswith("make ") else [command])]


def made_by(command: str) -> list[str]:
    """The jobs that a target of the Makefile starts."""
    target = command.removeprefix("make ")
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None, command
    steps = [line.strip().replace("$(BIN)/", "") for line in recipe.group(1).splitlines()]
    return [step for step in steps if step.startswith("python jobs/")]


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.Namespace:
    """What the job of a command line makes of its arguments."""
    program, job, *arguments = shlex.split(command)
    assert program == "python"
    for name in ("parse_args", "parse_intermixed_args"):
        original = getattr(argparse.ArgumentParser, name)

        def parsed(*given: Any, original: Any = original, **options: Any) -> None:
            raise Parsed(original(*given, **options))

        monkeypatch.setattr(argparse.ArgumentParser, name, parsed)
    monkeypatch.setattr("sys.argv", [job, *arguments])
    with pytest.raises(Parsed) as caught:
        runpy.run_path(str(ROOT / job), run_name="__main__")
    monkeypatch.undo()
    return caught.value.arguments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_commands_of_a_header_are_understood_and_lead_to_its_data(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[str]()
    read = list[Path]()
    for command in header_commands(path):
        arguments = parse(command, monkeypatch)
        words = [*getattr(arguments, "settings", ()), *getattr(arguments, "overrides", ())]
        assert all("=" in word for word in words), command
        made += [arguments.target] if "target" in arguments else []
        read += [ROOT / arguments.config] if "config" in arguments else []
    assert read[-1] == path, "the last command starts it"
    assert all(config.is_file() for config in read)
    assert read_file(path)["data"]["shards"] in made
