"""The project's pages as tests read them: their code blocks, and the commands in these.

A shell block that the tests do not run has the reason before it: `<!-- not run: needs a cluster -->`. As the
first line of a page it holds for all blocks of the page. Recipes have commands in the comment at their top.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
# in reading order: later pages may use what earlier ones create
FIRST = [ROOT / "README.md", ROOT / "docs" / "quickstart.md"]
PAGES = FIRST + sorted(page for page in (ROOT / "docs").glob("*.md") if page not in FIRST)
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))

SHELL = ("", "sh")  # a code block without a language is a shell block
OTHERS = ("python", "toml", "json", "diff", "text")
MARK = re.compile(r"<!-- not run: (.+) -->")
OPERATORS = set("&|;<>")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        line: of its first line, in the page.
        not_run: why its commands are not run; None if they are.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None

    @property
    def where(self) -> str:
        """The page and the line, as an editor opens them."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@dataclass(frozen=True)
class Command:
    """One command of a block.

    Attributes:
        words: without variables of the environment that stand before it.
        environment: those variables.
        output: the file that its standard output goes to.
    """

    where: str
    words: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    output: str | None = None

    @property
    def text(self) -> str:
        """Its words in one line."""
        return shlex.join(self.words)


def blocks_of(page: Path, text: str | None = None) -> list[Block]:
    """The fenced blocks of a page, of a recipe those of the comment at its top."""
    lines = (page.read_text(encoding="utf-8") if text is None else text).splitlines()
    if page.suffix == ".toml":
        lines = _in_markdown(lines)
    whole_page = MARK.fullmatch(lines[0])
    found: list[Block] = []
    mark, first, language, inside = None, 0, "", False
    for number, line in enumerate(lines, start=1):
        if inside and line == "```":
            reason = mark or whole_page
            content = "\n".join(lines[first - 1 : number - 1])
            found.append(Block(page, first, language, content, reason[1] if reason else None))
            inside, mark = False, None
        elif not inside and line.startswith("```"):
            first, language, inside = number + 1, line.removeprefix("```"), True
        elif not inside and line:
            mark = MARK.fullmatch(line)
    assert not inside, f"{page}: a block does not end"
    return found


def _in_markdown(lines: list[str]) -> list[str]:
    """A recipe's head as a page has it: behind an empty line, lines that are set in by three are a block."""
    made: list[str] = []
    inside = False
    for line, above in zip([*lines, ""], ["", *lines], strict=True):
        set_in = line.startswith("#   ")
        if inside and not set_in:
            made.append("```")
        if set_in and above == "#":
            made.append("```")
        inside = set_in and (inside or above == "#")
        if not line.startswith("#"):
            break
        text = line.removeprefix("#   " if inside else "#").strip()
        made.append(re.sub(r"^\((not run: .*)\)$", r"<!-- \1 -->", text))
    return made


def commands_of(block: Block) -> list[Command]:
    """The commands of a shell block: lines that end with a backslash go on, comments are left out."""
    found = []
    for number, line in _logical_lines(block.text):
        where = f"{block.page.relative_to(ROOT)}:{block.line + number}"
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= OPERATORS - {"<", ">"}:
                if words:
                    found.append(_command(where, words))
                words = []
            else:
                words.append(word)
    return found


def _logical_lines(text: str) -> list[tuple[int, str]]:
    whole: list[tuple[int, str]] = []
    command = ""
    for number, line in enumerate(text.splitlines()):
        command += line
        if command.endswith("\\"):
            command = command.removesuffix("\\")
        else:
            whole.append((number, command))
            command = ""
    assert not command, f"a line continues after the end: {command}"
    return whole


def _command(where: str, words: list[str]) -> Command:
    environment: dict[str, str] = {}
    while re.match(r"[A-Z_0-9]+=", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    output = None
    if ">" in words:
        at = words.index(">")
        output, words = words[at + 1], words[:at]
    return Command(where, words, environment, output)
