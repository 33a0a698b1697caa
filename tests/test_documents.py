"""What the documents refer to is there: files, headings, commands, names of the code. And they stay short."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from search.cli import main
from search.study import definition
from tests.conftest import Command

ROOT = Path(__file__).resolve().parent.parent
README, CONTRIBUTING, ARCHITECTURE = (
    (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "docs/architecture.md")
)
PAGES = sorted(path.name for path in ROOT.glob("docs/*.md"))
DOCUMENTS = [*sorted(path.name for path in ROOT.glob("*.md")), *(f"docs/{name}" for name in PAGES)]
HISTORY = {"CHANGELOG.md", "docs/log.md"}  # they name what there was


def anchors(document: Path) -> set[str]:
    """The headings of a document as links name them."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_each_link_and_picture_leads_somewhere(name: str) -> None:
    text = (ROOT / name).read_text()
    targets = {*re.findall(r"\]\(([^)]+)\)", text), *re.findall(r'src="([^"]+)"', text)}
    for target in (target for target in targets if not target.startswith("https://")):
        file, _, anchor = target.partition("#")
        document = (ROOT / name).parent / file if file else ROOT / name
        assert document.exists(), target
        assert not anchor or anchor in anchors(document), target


def test_readme_and_contributing_are_short() -> None:
    assert len(README.splitlines()) <= 200
    assert len(README.encode()) <= 10_000
    assert len(CONTRIBUTING.splitlines()) < 120


@pytest.mark.parametrize(("name", "folder"), [("README.md", "docs/"), ("docs/index.md", "")])
def test_each_page_is_in_the_lists_of_pages(name: str, folder: str) -> None:
    listed = re.findall(rf"^\| \[[^]]+\]\({folder}([\w-]+\.md)\)", (ROOT / name).read_text(), re.MULTILINE)
    assert sorted([*listed, "index.md"]) == PAGES


def test_each_file_that_a_contributor_is_sent_to_is_there() -> None:
    for document in (CONTRIBUTING, ARCHITECTURE):
        named = set(re.findall(r"\b(?:tests|fmnist|search|studies|docs)/[\w/-]+\.(?:py|toml|md)\b", document))
        assert named
        missing = {file for file in named if "NAME" not in file and not (ROOT / file).is_file()}
        assert missing == set()


def test_each_package_of_the_architecture_is_there() -> None:
    (table,) = re.findall(r"^\| package of `search` .*?\n\n", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    packages = {path.parent.name for path in (ROOT / "search").glob("*/__init__.py")} | {"doctor"}
    assert set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == packages


@pytest.mark.parametrize("heading", ["Where decisions are made", "The life of a trial"])
def test_each_function_that_the_architecture_names_is_one_of_the_code(heading: str) -> None:
    section = re.search(rf"^## {heading}\n(.*?)(?:^## |\Z)", ARCHITECTURE, re.MULTILINE | re.DOTALL)
    assert section
    functions = re.findall(r"`([a-z][\w.]*)\.(\w+)`", section[1])
    assert functions
    for module, name in functions:
        place = module.replace(".", "/")
        (file,) = [*(ROOT / "search").glob(f"**/{place}.py"), *(ROOT / "search").glob(f"{place}/__init__.py")]
        found = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        assert hasattr(found, name), f"{module}.{name}"


def test_each_study_file_of_the_documents_is_valid(tmp_path: Path) -> None:
    text = README + (ROOT / "docs/study-files.md").read_text()
    blocks = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    files = [block for block in blocks if "[space]" in block or "[[grid]]" in block]
    assert len(files) > 3
    shutil.copy(ROOT / "docs/own_network/my_net.py", tmp_path)
    for content in files:
        (tmp_path / "study.toml").write_text(content)
        definition.read(tmp_path / "study.toml")


def test_the_settings_file_of_the_documents_is_valid(tmp_path: Path, invoke: Command) -> None:
    (content,) = re.findall(r"```toml\n(.*?)```", (ROOT / "docs/configuration.md").read_text(), re.DOTALL)
    (tmp_path / "fmnist-search.toml").write_text(content)
    assert invoke("doctor", "--only", "python").returncode == 0


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name not in HISTORY])
def test_each_command_of_the_documents_is_one_that_is_taken(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "password").write_text("boots\n")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / name).read_text().replace("\\\n", "")
    for command in re.findall(r"^\$ fmnist-search (?!.*--help)(.*?)(?:  +#.*)?$", text, re.MULTILINE):
        subcommand, *arguments = shlex.split(command)
        main.commands[subcommand].make_context(subcommand, arguments)  # raises what a user would be told
    assert set(re.findall(r"`fmnist-search ([a-z]+)", text)) <= main.commands.keys()


def test_the_readmes_first_search_has_five_commands() -> None:
    assert len(re.findall(r"^\$ fmnist-search ", README, re.MULTILINE)) == 5
