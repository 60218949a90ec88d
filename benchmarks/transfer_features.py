"""Float features against integer ones: one recipe's head trained on both, with many seeds; part of `transfer.py`.

A head is trained as in `configs/transfer`, on features computed once for all seeds, and tested on the validation
images' features of either kind, which separates the effect of the features from that of the head's training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
KINDS = {"features": "float", "int8_features": "integer"}
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


def compare(backbone: str, configs: Path, data_root: Path, seeds: Sequence[int]) -> Entry:
    """Return misclassified validation images by (training features, test features), per seed, and feature similarity.

    `probes` contains the misclassified images of a logistic regression on the averaged maps, without dropout and
    randomness, for each L2 penalty.
    """
    found = {kind: features(configs / f"{backbone}_{kind}.py", data_root) for kind in KINDS}
    wrong: dict[str, list[int]] = {f"{trained}/{tested}": [] for trained in KINDS for tested in KINDS}
    for trained in KINDS:
        for seed in seeds:
            head = _trained_head(configs / f"{backbone}_{trained}.py", *found[trained]["train"], seed)
            for tested in KINDS:
                wrong[f"{trained}/{tested}"].append(_wrong(head, *found[tested]["val"]))
    probes = {
        kind: [int((probe(found[kind], penalty) != found[kind]["val"][1]).sum()) for penalty in PENALTIES]
        for kind in KINDS
    }
    return {"backbone": backbone, "seeds": list(seeds), "sqnr_db": _sqnr(found), "wrong": wrong, "probes": probes}


def features(config: Path, data_root: Path) -> dict[str, tuple[Any, Any]]:
    """Return features (N, C, H, W) and labels (N,) of a recipe's training and validation images."""
    import torch

    from lbitcls.assembly.session import load_data, make_model, open_session
    from lbitcls.settings.sections import read_settings
    from lbitcls.utils.config import Config

    cfg = Config.fromfile(config)
    cfg.merge_from_dict({"num_threads": 1, "log_level": "WARNING"})
    settings, found = read_settings(cfg), {}
    with open_session(settings) as session:
        model: Any = make_model(settings, session, data_root=str(data_root)).eval()
        for part in ("train", "val"):
            loader = load_data(settings, part, "features", session, data_root=str(data_root))[1]
            batches = [(model.fixed_features(batch["img"]), batch["gt_label"]) for batch in loader.iterate(0)]
            maps, labels = zip(*batches, strict=True)
            found[part] = torch.cat(maps).float().contiguous(), torch.cat(labels)
    return found


def _trained_head(config: Path, maps: Any, labels: Any, seed: int) -> Any:
    """Return the recipe's trained head, on maps (N, C, H, W)."""
    import torch

    from lbitcls.core.optim import build_optimizer
    from lbitcls.core.schedule import build_schedule
    from lbitcls.models.builder import build_head
    from lbitcls.utils.config import Config

    cfg = Config.fromfile(config)
    torch.manual_seed(seed)
    head = build_head(cfg.model.head)
    optimizer = build_optimizer(head, cfg.optimizer)
    length = -(-len(maps) // cfg.data.samples_per_gpu)
    schedule = build_schedule(cfg.lr_config, epoch_len=length, max_epochs=cfg.total_epochs)
    chosen_of = [torch.randperm(len(maps)).split(cfg.data.samples_per_gpu) for _ in range(cfg.total_epochs)]
    for iteration in range(cfg.total_epochs * length):
        epoch, inner = divmod(iteration, length)
        chosen = chosen_of[epoch][inner]
        for group in optimizer.param_groups:
            group["lr"] = schedule(group["initial_lr"], iteration, epoch)
        optimizer.zero_grad()
        head.loss(head(maps[chosen]), labels[chosen])["loss"].backward()
        optimizer.step()
    return head.eval()


def _wrong(head: Any, maps: Any, labels: Any) -> int:
    return int((head(maps).argmax(dim=1) != labels).sum())


def probe(found: dict[str, tuple[Any, Any]], penalty: float) -> Any:
    """Return the labels (N,) that a logistic regression on maps' means or vectors, float64, converged, gives `val`."""
    import torch

    (train, target), val = found["train"], found["val"][0]
    train, val = (
        values.double().flatten(2).mean(dim=2) if values.dim() > 2 else values.double() for values in (train, val)
    )
    mean, std = train.mean(dim=0), train.std(dim=0).clamp_min(1e-6)
    train, val = (train - mean) / std, (val - mean) / std
    layer = torch.nn.Linear(train.shape[1], int(target.max()) + 1, dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(train), target) + penalty * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return layer(val).argmax(dim=1)


def _sqnr(found: dict[str, dict[str, tuple[Any, Any]]]) -> list[float]:
    """Return the minimum, median and maximum signal-to-noise ratio of an image's integer features, in dB."""
    exact, integer = (found[kind]["val"][0].double().flatten(1) for kind in KINDS)
    ratios = 10 * (exact.square().sum(dim=1) / (exact - integer).square().sum(dim=1)).log10()
    return [round(value, 1) for value in (ratios.min().item(), ratios.median().item(), ratios.max().item())]


def section(found: Sequence[Entry], names: dict[str, str]) -> list[str]:
    """Return the page's section: two tables for each backbone."""
    return [line for entry in found for line in _section(entry, names[entry["backbone"]])]


def _verdict(pairs: Sequence[tuple[int, int]]) -> str:
    exact, integer = ([pair[i] for pair in pairs] for i in (0, 1))
    difference = statistics.mean(integer) - statistics.mean(exact)
    spread = statistics.mean([statistics.stdev(exact), statistics.stdev(integer)])
    kind = "less than" if abs(difference) < spread else "more than"
    return f"The means of the two differ by {abs(difference):.1f} images, {kind} one seed's deviation ({spread:.1f})."


def _section(entry: Entry, name: str) -> list[str]:
    least, median, most = entry["sqnr_db"]
    pairs = list(zip(entry["wrong"]["features/features"], entry["wrong"]["int8_features/int8_features"], strict=True))
    better, worse = sum(integer < exact for exact, integer in pairs), sum(integer > exact for exact, integer in pairs)
    rows = []
    for trained in KINDS:
        for tested in KINDS:
            counts = entry["wrong"][f"{trained}/{tested}"]
            spread = f"{statistics.mean(counts):.1f} ± {statistics.stdev(counts):.1f} | {min(counts)} to {max(counts)}"
            rows.append(f"| {KINDS[trained]} | {KINDS[tested]} | {spread} |")
    return [
        "",
        f"## Float and integer features compared: {name}",
        "",
        f"`python benchmarks/transfer.py --data-root FOLDER --compare {entry['backbone']}` trains the head of the two",
        f"recipes with {len(entry['seeds'])} seeds on either kind of features and tests it on either. The table lists",
        "the misclassified images of 153, with the standard deviation over the seeds. The integer features of a",
        f"validation image have a signal-to-noise ratio of {least} to {most} dB (median {median}).",
        "",
        "| trained on | tested on | misclassified | minimum to maximum |",
        "|---|---|---|---|",
        *rows,
        "",
        _verdict(pairs),
        f"With the same seed the integer features are better {better} times and worse {worse} times. A logistic",
        "regression on the averaged maps, without dropout or other randomness, misclassifies this many, by L2 penalty:",
        "",
        f"| features | {' | '.join(f'{penalty:g}' for penalty in PENALTIES)} |",
        f"|---|{'---|' * len(PENALTIES)}",
        *(f"| {KINDS[kind]} | {' | '.join(map(str, entry['probes'][kind]))} |" for kind in KINDS),
    ]
