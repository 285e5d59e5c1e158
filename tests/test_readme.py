"""README and docs: Python examples run, commands name options that exist, and cited sections exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PAGES = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
PAGES = re.sub(r"\\\n\s*", " ", PAGES)  # continued lines
COMMANDS = sorted(
    set(re.findall(r"(?:^    |^|`)(python (?:evaluate|train)\.py[^`\n]*)", PAGES, re.MULTILINE))
)


MODULES = sorted(
    set(re.findall(r"(python -m (?:benchmarks|pretraining|drift)[^`|\n]*)", PAGES, re.MULTILINE))
)


def test_examples_run_in_order() -> None:
    """All examples in one namespace, as in a notebook."""
    namespace: dict[str, Any] = {}
    for number, example in enumerate(EXAMPLES):
        exec(compile(example, f"README.md, Python example {number}", "exec"), namespace)
    frames, masks = namespace["frames"], namespace["masks"]
    assert [tuple(mask.shape) for mask in masks] == [frame.shape[:2] for frame in frames[1:]]
    assert set(masks[-1].unique().tolist()) == {0, 1, 2, 3}
    assert namespace["inversion"].losses[-1] < namespace["inversion"].losses[0]
    assert float(
        sum(weights.sum() for weights in namespace["weighting"].weights().values())
    ) == pytest.approx(1)
    assert namespace["inverted"].shape == namespace["latents"].shape
    assert not torch.equal(namespace["inverted"], namespace["latents"])
    propagated = namespace["propagated"]
    torch.testing.assert_close(propagated.sum(-1), torch.ones(propagated.shape[:-1]))
    assert (propagated.mean(0).argmax(-1) == namespace["labels"].argmax(-1)).float().mean() > 0.9


def test_ingredients_fit_in_eight_lines() -> None:
    """Except the first two examples, which load the clip and track it."""
    lengths = [sum(bool(line.strip()) for line in example.splitlines()) for example in EXAMPLES[2:]]
    assert len(lengths) == 4
    assert max(lengths) <= 8


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_compose(command: str) -> None:
    """Every command of `evaluate.py` and `train.py` is a valid configuration."""
    words = shlex.split(re.split(r"\s{2,}", command)[0])  # an explanation may follow
    overrides = [
        word for word in words[2:] if "=" in word and not re.search(r"glob\(|^hydra/|=[^\[{]*,", word)
    ]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose(words[1].removesuffix(".py"), overrides)


@pytest.mark.parametrize("command", MODULES)
def test_modules_and_their_options_exist(command: str) -> None:
    """Every `python -m` of this repository names a module, and options that its parser has."""
    module, *words = shlex.split(command.partition("#")[0])[2:]
    path = ROOT / module.replace(".", "/")
    sources = [path.with_suffix(".py"), path / "__main__.py"]
    source = next(found for found in sources if found.is_file()).read_text(encoding="utf-8")
    shared = (ROOT / "benchmarks" / "measuring.py").read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            option = word.partition("=")[0]
            assert f'"{option}"' in source + shared, f"{module} has no option {option}"


def test_cited_sections_of_the_method_exist() -> None:
    """Modules cite `docs/method.md`, "SECTION"."""
    headings = re.findall(r"^## (.*)$", (ROOT / "docs/method.md").read_text(encoding="utf-8"), re.MULTILINE)
    cited = set()
    for path in (ROOT / "drift").rglob("*.py"):
        cited |= set(
            re.findall(r'docs/method\.md`, "([^"]+)"', " ".join(path.read_text(encoding="utf-8").split()))
        )
    assert cited
    assert cited <= set(headings)
