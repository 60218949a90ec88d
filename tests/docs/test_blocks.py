"""Every code block of the documentation runs, in its page's order, or says why it cannot be run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from blocks import ROOT, Block, Page, find_blocks, outside, run_page, whole, with_words
from commands import check_block
from pages import DOCUMENTS, PAGES, REASONS, blocks_of

RUN = [name for name in DOCUMENTS if any(block.runs or block.target for block in blocks_of(name))]


def not_run(name: str) -> list[Block]:
    page = PAGES.get(name, Page())
    return [with_words(b, page.words) for b in blocks_of(name) if b.runs and b.first in page.not_run]


def parameters() -> list[object]:
    marks = {name: [pytest.mark.timeout(PAGES.get(name, Page()).seconds + 30)] for name in RUN}
    for name in RUN:
        if PAGES.get(name, Page()).slow:
            marks[name].append(pytest.mark.slow)
    return [pytest.param(name, marks=marks[name]) for name in RUN]


@pytest.mark.parametrize("name", parameters())
def test_page_runs(name: str, tmp_path: Path) -> None:
    run_page(name, PAGES.get(name, Page()), blocks_of(name), tmp_path / "clone")


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_fence_says_its_language(name: str) -> None:
    assert not [block.line for block in blocks_of(name) if not block.language]


@pytest.mark.parametrize("name", [name for name in RUN if not_run(name)])
def test_what_is_not_run_is_right_as_far_as_can_be_told(name: str) -> None:
    for block in not_run(name):
        check_block(block)


@pytest.mark.parametrize("name", PAGES)
def test_entries_are_of_use(name: str) -> None:
    page = PAGES[name]
    assert name in RUN, f"{name} has no code block"
    assert set(page.not_run.values()) <= REASONS.keys()
    assert page.not_run.keys() <= {block.first for block in blocks_of(name) if block.runs}
    commands = "\n".join(block.code for block in blocks_of(name) if block.language == "bash")
    assert not [word for word in page.words if not whole(word).search(commands)]


TUTORIAL = [name for name in DOCUMENTS if outside(name)]


def test_the_tutorial_runs_outside_the_clone(tmp_path: Path) -> None:
    """Its folder is empty, its package is not the clone's; the library's configs are found and named, as bases too."""
    text = """
```bash
test -z "$(ls)"
lbitcls plan configs/quickstart/digits_lsq_4w4f.py 2> said.txt
grep -q '^Config: .*/lbitcls/configs/quickstart/digits_lsq_4w4f.py, from the package' said.txt
```

```{code-block} python
:caption: mine.py

_base_ = 'configs/quickstart/digits_lsq_4w4f.py'
total_epochs = 7
```

```python
import lbitcls
from lbitcls.utils import Config
print(Config.fromfile('mine.py').total_epochs, lbitcls.__file__)
```
"""
    said = run_page(TUTORIAL[0], Page(), find_blocks(text), tmp_path / "empty").splitlines()[-1]
    assert said.startswith("7 ") and str(ROOT) not in said


@pytest.mark.parametrize("name", TUTORIAL)
def test_the_tutorial_names_no_file_of_the_clone(name: str) -> None:
    """Not even in blocks that are not run here."""
    named = re.compile(r"(?<![\w/.-])(tools|docs|demo|benchmarks|tests|requirements)/")
    assert not [block.first for block in blocks_of(name) if block.runs and named.search(block.code)]


SAMPLE = """\
Text.

```python
a = 1
```

1. An item:

   ```bash
   echo "b: $((1 + 1))" | tee b.txt
   ```

```{code-block} python
:caption: lib/mine.py

VALUE = 3
```

```python
import sys
sys.path.insert(0, "lib")
from mine import VALUE
print(a + VALUE, open("b.txt").read())
```

````text
```
````
"""


def test_blocks_are_found() -> None:
    found = [(b.language, b.line, b.target, b.runs) for b in find_blocks(SAMPLE)]
    assert found == [
        ("python", 4, "", True),
        ("bash", 10, "", True),
        ("python", 16, "lib/mine.py", False),
        ("python", 20, "", True),
        ("text", 27, "", False),
    ]


def test_blocks_share_names_and_a_folder(tmp_path: Path) -> None:
    assert run_page("sample.md", Page(), find_blocks(SAMPLE), tmp_path) == "b: 2\n4 b: 2\n\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```python\n\n1 / 0\n```", r"sample\.md\", line 3(.|\n)*ZeroDivisionError"),
        ("\n```bash\nfalse | true\n```", r"sample\.md, line 3: exit code 1"),
        ("```bash\nlbitcls trian x\n```", r"there is no verb 'trian'(.|\n)*exit code 2"),
    ],
)
def test_a_block_that_fails_says_where(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=message):
        run_page("sample.md", Page(), find_blocks(text), tmp_path)


def test_words_are_whole() -> None:
    block = Block("bash", "train CONFIG NO_CONFIG CONFIG.py dir/CONFIG CONFIG", 1)
    assert with_words(block, {"CONFIG": "c.py"}).code == "train c.py NO_CONFIG CONFIG.py dir/CONFIG c.py"


@pytest.mark.parametrize(
    ("language", "code", "complaint"),
    [
        ("bash", "lbitcls train configs/quickstart/digits_lsq_4w4f.py --work-dir x", None),
        ("bash", "A=1 tools/dist_train.sh configs/quickstart/digits_lsq_4w4f.py 16 --seed 1", None),
        ("bash", "make setup && pip install 'lbitcls[deploy,analysis]'", None),
        ("bash", "python benchmarks/decode.py --rounds 3", None),
        ("python", "from lbitcls.quant import calibrate", None),
        ("bash", "lbitcls train CONFIG --workdir x", "does not take"),
        ("bash", "python tools/train.py configs/none.py", "is not there"),
        ("bash", "tools/dist_train.sh CONFIG many", "no number"),
        ("bash", "python benchmarks/decode.py --turns 3", "has no"),
        ("bash", "make coffee", "coffee"),
        ("bash", "pip install lbitcls[coffee]", "coffee"),
        ("bash", "brew coffee", "no program"),
        ("python", "from lbitcls.quant import coffee", "has no"),
    ],
)
def test_commands_that_are_not_run_are_checked(language: str, code: str, complaint: str | None) -> None:
    block = Block(language, code, 1)
    if complaint is None:
        return check_block(block)
    with pytest.raises(AssertionError, match=re.escape(complaint)):
        check_block(block)
