"""Model card of a run or of its files: README.md with the hub's metadata, results, certificates and how to use it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from lbitcls.tracking.run_reading import RunRow
from lbitcls.utils.errors import visible
from lbitcls.utils.hub import FIRST, WEIGHTS
from lbitcls.version import __version__

_SHOWN = 10  # classes that the card lists
_MARKUP = re.compile(r"([\\`*_{}\[\]<>|#])")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """Facts for a model card.

    Attributes:
        repo: `owner/name` on the hub.
        files: Names of the files, each with its size in bytes.
        config: Config of the model; empty if the files record none.
        classes: Class names; empty if unknown.
        row: Result of the run; None: only files are known.
        certificates: Sentences of the exported models' certificates, each with the file's name.
        license: License of the weights, as the hub names it; None: not given.
    """

    repo: str
    files: Mapping[str, int]
    config: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    row: RunRow | None = None
    certificates: Sequence[str] = ()
    license: str | None = None


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown, with its metadata in front."""
    head = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True)
    parts = [_about(facts), _results(facts), _certificates(facts), _files(facts), _use(facts)]
    return f"---\n{head}---\n\n# {facts.repo.partition('/')[2]}\n\n" + "\n\n".join(filter(None, parts)) + "\n"


def _metadata(facts: CardFacts) -> dict[str, Any]:
    row = facts.row
    tags = ["lbitcls", "image-classification", "quantization"]
    tags += [text for text in (row and row.method, row and row.bits) if text and text != "float"]
    found: dict[str, Any] = {"library_name": "lbitcls", "pipeline_tag": "image-classification", "tags": tags}
    if facts.license is not None:
        found["license"] = facts.license
    metrics = [{"type": "accuracy", "name": name, "value": value} for name, value in _accuracies(row)]
    if metrics:
        data = _dataset(facts.config)
        kind = re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-") or "images"
        result = {
            "task": {"type": "image-classification"},
            "dataset": {"type": kind, "name": data},
            "metrics": metrics,
        }
        found["model-index"] = [{"name": facts.repo.partition("/")[2], "results": [result]}]
    return found


def _accuracies(row: RunRow | None) -> list[tuple[str, float]]:
    """Return the known accuracies in percent, by name."""
    if row is None:
        return []
    known = {
        "top-1, float": row.float_top1,
        "top-1, quantized": row.quantized_top1,
        "top-1, exported": row.exported_top1,
    }
    return [(name, round(value, 2)) for name, value in known.items() if value is not None]


def _about(facts: CardFacts) -> str:
    row, backbone = facts.row, (facts.config.get("model") or {}).get("backbone") or {}
    rows = [("task", "image classification" + (f", {len(facts.classes)} classes" if facts.classes else ""))]
    if facts.classes:
        more = f", … ({len(facts.classes)} in all)" if len(facts.classes) > _SHOWN else ""
        rows.append(("classes", ", ".join(facts.classes[:_SHOWN]) + more))
    if facts.config:
        depth = f" {backbone['depth']}" if "depth" in backbone else ""
        rows += [("network", f"{backbone.get('type', 'unknown')}{depth}"), ("data", _dataset(facts.config))]
    if row is not None:
        rows += [("method", row.method or "unknown"), ("bits", row.bits or "unknown")]
    return _table(("", ""), [*rows, ("trained with", f"lbitcls {__version__}")])


def _dataset(config: Mapping[str, Any]) -> str:
    data = config.get("data") or {}
    part: Mapping[str, Any] = data.get("val") or data.get("test") or data.get("train") or {}
    return str(part.get("type", "images"))


def _results(facts: CardFacts) -> str:
    row = facts.row
    if row is None:
        return ""
    rows = [(name, f"{value:.2f} %") for name, value in _accuracies(row)]
    sizes = {"size, quantized weights": row.size_kib, "size, exported file": row.exported_kib}
    rows += [(name, f"{value:,.1f} KiB") for name, value in sizes.items() if value is not None]
    rows += [] if row.seed is None else [("seed", str(row.seed))]
    return "## Results\n\nOn the validation set, from the run's own records.\n\n" + _table(("result", "value"), rows)


def _certificates(facts: CardFacts) -> str:
    if not facts.certificates:
        return ""
    lines = "\n".join(f"- {_plain(text)}" for text in facts.certificates)
    return (
        f"## Certificates\n\nThe exported model, compared with the trained one on real images by its engine:\n\n{lines}"
    )


def _files(facts: CardFacts) -> str:
    rows = [(f"`{name}`", f"{size / 1024:,.1f} KiB") for name, size in facts.files.items()]
    return "## Files\n\n" + _table(("file", "size"), rows, raw=True)


def _use(facts: CardFacts) -> str:
    first = next((name for name in FIRST if name in facts.files), next(iter(facts.files), FIRST[0]))
    name = f"hf://{facts.repo}" if first in FIRST else f"hf://{facts.repo}/{first}"
    extra = "hub" if first.endswith(WEIGHTS) else "hub,deploy"
    return f"""## Use

```bash
pip install 'lbitcls[{extra}]'
lbitcls infer {name} photo.jpg
```

```python
from lbitcls.apis import inference_model, init_model

model = init_model('{name}')
print(inference_model(model, 'photo.jpg', topk=3))
```

The files are plain data: no pickle, no Python. What they record of their config is parsed, never executed."""


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]], raw: bool = False) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---|"]
    return "\n".join([*lines, *(f"| {name if raw else _plain(name)} | {_plain(value)} |" for name, value in rows)])


def _plain(text: str) -> str:
    """Return `text` on one line, so that nothing in a name is taken for Markdown or HTML."""
    return _MARKUP.sub(r"\\\1", visible(" ".join(text.split())))
