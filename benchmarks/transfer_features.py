"""Float features against integer ones: one recipe's head trained on both, with many seeds; part of `transfer.py`.

A head is trained as `configs/transfer` says, on features that are computed once for all seeds, and tested on the
validation images' features of either kind: so the part of the features is told from that of the head's training.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Entry = dict[str, Any]
KINDS = ("features", "int8_features")
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1)


def compare(backbone: str, configs: Path, work: Path, data_root: Path, seeds: Sequence[int]) -> Entry:
    """Wrong validation images by (features trained on, features tested on), for each seed; how near the features are.

    `probes` holds the wrong images of a logistic regression on the averaged maps, without dropout and randomness, for
    each L2 penalty, trained and tested on either kind.
    """
    kept: dict[str, Any] = {}
    heads: dict[tuple[str, int], Any] = {}
    for kind in KINDS:
        for seed in seeds:
            runner = _trained(
                configs / f"{backbone}_{kind}.py", work / f"compare_{backbone}_{kind}_{seed}", data_root, seed, kept
            )
            heads[kind, seed] = runner.module.head.eval()
    maps = {kind: _maps(kept[kind]) for kind in KINDS}
    labels = kept["labels"]
    wrong = {
        f"{trained}/{tested}": [_wrong(heads[trained, seed], maps[tested][1], labels[1]) for seed in seeds]
        for trained in KINDS
        for tested in KINDS
    }
    probes = {kind: [_probe(maps[kind], labels, penalty) for penalty in PENALTIES] for kind in KINDS}
    return {"backbone": backbone, "seeds": list(seeds), "sqnr_db": _sqnr(maps), "wrong": wrong, "probes": probes}


def _trained(config: Path, folder: Path, data_root: Path, seed: int, kept: dict[str, Any]) -> Any:
    """The runner of a recipe that was trained with `seed`; features in `kept` are used, or put there."""
    from lbitcls.apis.session import open_session
    from lbitcls.apis.train import build_runner
    from lbitcls.utils.config import Config
    from lbitcls.utils.env import seed_everything

    kind = next(kind for kind in KINDS[::-1] if config.stem.endswith(kind))
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(
        {
            "seed": seed,
            "num_threads": 1,
            "log_level": "WARNING",
            "evaluation.interval": 25,
            "+evaluation.save_best": None,
            "checkpoint_config": dict(interval=25, max_keep_ckpts=1),
        }
    )
    folder.mkdir(parents=True, exist_ok=True)
    with open_session(cfg) as session:
        seed_everything(seed)
        runner = build_runner(cfg, folder, session, run=f"compare-{seed}", data_root=str(data_root))
        if kind in kept:
            runner.features._stores.update(kept[kind])
        runner.run()
        kept[kind] = dict(runner.features._stores)
        validated: Any = next(hook.loader for hook in runner.hooks if type(hook).__name__ == "EvaluationHook")
        kept["labels"] = [loader.dataset.labels for loader in (runner.loader, validated)]
    return runner


def _maps(stores: dict[bool, Any]) -> list[Any]:
    """Features (N, C, H, W) of the training and of the validation images."""
    return [stores[training].values.float().contiguous() for training in (True, False)]


def _wrong(head: Any, maps: Any, labels: Any) -> int:
    import torch

    with torch.no_grad():
        return int((head(maps).argmax(dim=1).numpy() != labels).sum())


def _probe(maps: list[Any], labels: list[Any], penalty: float) -> int:
    """Wrong validation images of a logistic regression on the maps' means, in float64, to convergence."""
    import torch

    train, val = (part.double().mean(dim=(2, 3)) for part in maps)
    mean, std = train.mean(dim=0), train.std(dim=0).clamp_min(1e-6)
    train, val = (train - mean) / std, (val - mean) / std
    layer = torch.nn.Linear(train.shape[1], 2, dtype=torch.float64)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=500, line_search_fn="strong_wolfe")
    target = torch.from_numpy(labels[0])

    def loss() -> Any:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(layer(train), target) + penalty * layer.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return _wrong(layer, val, labels[1])


def _sqnr(maps: dict[str, list[Any]]) -> list[float]:
    """Least, median and largest signal-to-noise ratio of a validation image's integer features, in dB."""
    exact, integer = (maps[kind][1].double().flatten(1) for kind in KINDS)
    ratios = 10 * (exact.square().sum(dim=1) / (exact - integer).square().sum(dim=1)).log10()
    return [round(value, 1) for value in (ratios.min().item(), ratios.median().item(), ratios.max().item())]


def section(found: Sequence[Entry], names: dict[str, str]) -> list[str]:
    """The page's section: a table for each backbone."""
    return [line for entry in found for line in _section(entry, names[entry["backbone"]])]


def _section(entry: Entry, name: str) -> list[str]:
    least, median, most = entry["sqnr_db"]
    pairs = list(zip(entry["wrong"]["features/features"], entry["wrong"]["int8_features/int8_features"]))
    better = sum(integer < exact for exact, integer in pairs), sum(integer > exact for exact, integer in pairs)
    words = {"features": "float", "int8_features": "integer"}
    rows = []
    for trained in KINDS:
        for tested in KINDS:
            counts = entry["wrong"][f"{trained}/{tested}"]
            mean, spread = statistics.mean(counts), statistics.stdev(counts)
            rows.append(
                f"| {words[trained]} | {words[tested]} | {mean:.1f} ± {spread:.1f} | {min(counts)} to {max(counts)} |"
            )
    probes = [f"| {words[kind]} | {' | '.join(map(str, entry['probes'][kind]))} |" for kind in KINDS]
    return [
        "",
        f"## Float features against integer ones: {name}",
        "",
        f"By `python benchmarks/transfer.py --data-root FOLDER --compare {entry['backbone']}`: the head of the two recipes",
        f"trained with {len(entry['seeds'])} seeds on either kind of features, and tested on either; wrong images of {{VAL}}, with the",
        f"standard deviation over the seeds. A validation image's integer features have {least} to {most} dB (median",
        f"{median}) of signal to noise.",
        "",
        "| trained on | tested on | wrong | least to most |",
        "|---|---|---|---|",
        *rows,
        "",
        f"With the same seed integer features are better {better[0]} times, worse {better[1]} times. A logistic regression",
        "on the averaged maps, which has no randomness and no dropout, gets so many wrong, by its L2 penalty:",
        "",
        f"| features | {' | '.join(f'{p:g}' for p in PENALTIES)} |",
        f"|---|{'---|' * len(PENALTIES)}",
        *probes,
    ]
