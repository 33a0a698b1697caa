"""What the documents refer to is there: files, headings, commands, names of the code."""

import re
import shlex
import shutil
from importlib import import_module
from pathlib import Path

import pytest

from search.cli import main
from search.study import definition

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted(str(path.relative_to(ROOT)) for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


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


def test_each_file_that_a_contributor_is_sent_to_is_there() -> None:
    named = set(re.findall(r"\b(?:tests|fmnist|studies|docs)/[\w/]+\.(?:py|toml|md)\b", CONTRIBUTING))
    assert named
    missing = {file for file in named if "NAME" not in file and not (ROOT / file).is_file()}
    assert missing == set()


def test_each_step_of_a_trials_life_is_a_name_of_the_code() -> None:
    life = re.search(r"^## How a trial lives\n(.*?)^## ", CONTRIBUTING, re.MULTILINE | re.DOTALL)
    assert life
    steps = re.findall(r"`([a-z][\w.]*)\.(\w+)`", life[1])
    assert steps
    for module, name in steps:
        place = module.replace(".", "/")
        (file,) = [*(ROOT / "search").glob(f"**/{place}.py"), *(ROOT / "search").glob(f"{place}/__init__.py")]
        found = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"))
        assert hasattr(found, name), f"{module}.{name}"


def test_each_study_file_of_the_readme_is_valid(tmp_path: Path) -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    files = [block for block in blocks if "[space]" in block or "[[grid]]" in block]
    assert len(files) > 2
    shutil.copy(ROOT / "docs/own_network/my_net.py", tmp_path)
    for content in files:
        (tmp_path / "study.toml").write_text(content)
        definition.read(tmp_path / "study.toml")


def test_each_command_of_the_readme_is_one_that_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("boots\n")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text()
    shown = re.findall(r"^\$ fmnist-search (?!.*--help)(.*?)(?:  +#.*)?$", text, re.MULTILINE)
    assert shown
    for command in shown:
        name, *arguments = shlex.split(command)
        main.commands[name].make_context(name, arguments)  # raises what a user would be told
    assert set(re.findall(r"`fmnist-search ([a-z]+)", text)) <= main.commands.keys()
