"""The pages tell the truth: examples run and print what is shown; files, flags, targets and edits are there."""

import pages
import pytest


@pytest.mark.parametrize("path", pages.PAGES, ids=[str(path.relative_to(pages.ROOT)) for path in pages.PAGES])
def test_a_page_tells_the_truth(path, tmp_path, monkeypatch):
    assert pages.missing_files(path) == []
    assert pages.wrong_commands(path) == []
    assert pages.wrong_edits(path) == []
    monkeypatch.chdir(tmp_path)
    pages.run_examples(path)


@pytest.mark.parametrize("folder", ["docs", "docs/book"])
def test_the_map_of_a_folder_names_every_page(folder):
    text = (pages.ROOT / folder / "README.md").read_text()
    names = [path.name for path in pages.PAGES if path.parent == pages.ROOT / folder and path.name != "README.md"]
    assert [name for name in names if f"({name})" not in text] == []


LIES = {
    "```python\nprint(1)\n```\n```text\n2\n```\n": pages.run_examples,
    "```python\nraise ValueError\n```\n": pages.run_examples,
    "See `scratchnet/nothing.py`.": pages.missing_files,
    "See [this](nothing.md).": pages.missing_files,
    "```sh\npython scripts/nothing.py\n```\n": pages.wrong_commands,
    "```sh\npython scripts/train.py --wings 2\n```\n": pages.wrong_commands,
    "```sh\nmake nothing\n```\n": pages.wrong_commands,
    "```diff\nscratchnet/errors.py\n+class NothingError\n```\n": pages.wrong_edits,
}


@pytest.mark.parametrize(("text", "check"), LIES.items(), ids=range(len(LIES)))
def test_a_page_that_lies_is_found(text, check, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    try:
        found = check(page)
    except (AssertionError, ValueError) as error:
        found = error
    assert found
