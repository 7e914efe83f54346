"""The code in README.md: Python blocks run, commands of shell blocks exist."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from diffstategrad import cli

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


class Block(NamedTuple):
    """A fenced block: line of its first line of code, language, code."""

    line: int
    language: str
    code: str


def blocks(text: str) -> list[Block]:
    found = []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 2
        found.append(Block(line, match[1], match[2]))
    return found


BLOCKS = blocks(README.read_text())


def commands(code: str) -> list[list[str]]:
    """Words of every command of a shell block; `&&` and `;` separate commands too."""
    out = []
    for line in code.replace("\\\n", " ").splitlines():
        words: list[str] = []
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        lexer.whitespace_split = True
        for word in [*lexer, ";"]:
            if word in (";", "&&", "||", "|"):
                out.append(words)
                words = []
            else:
                words.append(word)
    # NAME=VALUE before a command sets its environment
    stripped = [
        list(
            words[next((i for i, w in enumerate(words) if "=" not in w), len(words)) :]
        )
        for words in out
    ]
    return [words for words in stripped if words]


COMMANDS = [
    pytest.param(words, id=f"line{block.line}-{'-'.join(words[:2])}")
    for block in BLOCKS
    if block.language in ("sh", "bash", "shell", "console")
    for words in commands(block.code)
]


def test_every_fence_of_the_readme_is_read():
    fences = re.findall(r"^\s*(?:```|~~~)", README.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(BLOCKS)
    assert {b.language for b in BLOCKS} <= {
        "python",
        "sh",
        "text",
        "bibtex",
        "yaml",
        "",
    }


def test_python_of_the_readme_runs_in_order_in_one_namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    python = [block for block in BLOCKS if block.language == "python"]
    assert python
    namespace = {"__name__": "readme"}
    for block in python:
        # Blank lines in front give tracebacks the README's line numbers.
        code = "\n" * (block.line - 1) + block.code
        exec(compile(code, str(README), "exec"), namespace)


@pytest.mark.parametrize("words", COMMANDS)
def test_command_of_the_readme_exists(words):
    program, *arguments = words
    if program == "diffstategrad":
        cli._parser().parse_args(arguments)  # SystemExit for what it does not know
    elif program == "make":
        check_make(arguments)
    else:
        assert program in ("pip", "pytest", "git", "cd"), f"{program} is not checked"


def check_make(arguments: list[str]) -> None:
    """make finds a rule for every target; nothing is run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
