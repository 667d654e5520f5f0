"""What is documented exists, and what exists is documented."""

import re
from dataclasses import fields
from pathlib import Path

import yaml

from config import Settings
from tests.test_architecture import ORDER

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
UNLISTED = {".venv", ".git", "data", "out", "__pycache__", "tests"}


def test_the_file_table_of_the_readme_is_the_files() -> None:
    table = README.split("## Files")[1]
    listed = {
        name.rstrip("/")
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    }
    kinds = {"", ".md", ".py", ".toml", ".txt", ".yaml"}
    here = {p.name for p in ROOT.iterdir() if p.suffix in kinds and not p.name.startswith(".")}
    here -= UNLISTED

    assert here - {"README.md", "docs"} <= listed
    assert all((ROOT / name).exists() for name in listed)


def test_every_setting_is_in_the_example_with_its_default() -> None:
    example = (ROOT / ".env.example").read_text()
    given = dict(re.findall(r"^#? ?([A-Z][A-Z0-9_]+)=(.*)$", example, re.MULTILINE))
    defaults = {f.name.upper(): getattr(Settings(), f.name) for f in fields(Settings)}

    assert given.keys() == defaults.keys()
    for name, default in defaults.items():
        loaded = getattr(Settings.load({name: given[name]}), name.lower())
        assert loaded == default, name


def test_every_task_is_in_the_readme() -> None:
    tasks = yaml.safe_load((ROOT / "taskfile.yaml").read_text())["tasks"]
    named = set(re.findall(r"`\./task (\w+)", README))

    assert named == {
        name for name, task in tasks.items() if name != "default" and not task.get("internal")
    }


def test_every_room_is_in_the_architecture() -> None:
    text = (ROOT / "docs/architecture.md").read_text()

    assert [room for room in ORDER if f"`{room}.py`" not in text] == []


def test_the_guide_for_carriers_on_is_short() -> None:
    assert (ROOT / "AGENTS.md").read_text().count("\n") <= 100
