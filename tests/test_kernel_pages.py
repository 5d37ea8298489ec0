"""The pages of docs/kernels have the same figures in both languages; what they and the sources name exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(page for page in (ROOT / "docs" / "kernels").glob("*.md") if not page.name.endswith(".zh-CN.md"))
CHINESE = [page.with_name(f"{page.stem}.zh-CN.md") for page in PAGES]
FOLDERS = sorted(path.parent for path in (ROOT / "plugins").glob("*/*.h"))
FOLDER_READMES = sorted({folder / "README.md" for folder in FOLDERS})
SOURCES = sorted(path for suffix in ("cpp", "cu", "cuh", "h") for path in (ROOT / "plugins").glob(f"*/*.{suffix}"))
LINK = re.compile(r"\]\(([^()\s#]+)\)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-?\d+)?")


def table_numbers(page: Path) -> list[list[str]]:
    """The numbers of every table row that has any; sorted, since languages order the words of a cell differently."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return [found for row in rows if (found := sorted(NUMBER.findall(row)))]


def test_there_is_a_page_for_each_kernel_family():
    assert [page.stem for page in PAGES] == [
        "attention",
        "embedding_and_skip_layer_norm",
        "encoder",
        "layer_norm",
        "linear",
        "linear_skip_layer_norm",
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_both_languages_have_the_same_figures(page: Path):
    english, chinese = table_numbers(page), table_numbers(page.with_name(f"{page.stem}.zh-CN.md"))
    assert len(english) > 10
    assert chinese == english


@pytest.mark.parametrize(
    "page",
    [*PAGES, *CHINESE, ROOT / "plugins" / "README.md", *FOLDER_READMES],
    ids=lambda page: page.relative_to(ROOT).as_posix(),
)
def test_links(page: Path):
    links = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert links or page.parent.name in ("common", "host")
    assert [target for target in links if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_files_named_in_comments_exist(source: Path):
    """A comment such as "see common/reduce.cuh" is not followed by the compiler."""
    comments = re.findall(r"//(.*)", source.read_text(encoding="utf-8"))
    named = {name for line in comments for name in re.findall(r"[\w/]*\w\.(?:cuh|cu|cpp|h|md|py)\b", line)}
    missing = [name for name in named if not any((place / name).exists() for place in (ROOT, source.parent))]
    assert [name for name in missing if not (ROOT / "plugins" / name).exists()] == []
