"""Knowledge distillation: losses against a teacher's outputs, and the classifier that is trained with them.

    loss = label_weight · (loss against the labels) + weight · (loss against the teacher)

- `kl`: `T² · Σ_k p_k · log(p_k / q_k)`, the mean over the batch, with `p = softmax(teacher / T)`,
  `q = softmax(model / T)` and the temperature T (Hinton, Vinyals and Dean, arXiv:1503.02531; T² keeps the gradient from
  shrinking with T). Without the labels (`label_weight=0`) it is the loss of SQAKD (arXiv:2403.11106) for quantized
  models.
- `mse`: mean of the squared differences of the logits.
- `feature`: the same of the outputs of named modules, the mean over the modules (FitNets, arXiv:1412.6550, without its
  regressor, so the shapes must be equal).

The teacher runs before the training step's forward pass, on the images that the model gets (`core/hooks/distiller.py`);
its outputs are arguments of that pass. So DDP and `torch.compile` see one ordinary forward pass of the model alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lbitcls.protocols import predictor
from lbitcls.settings.distill import TEMPERATURE, DistillConfig
from lbitcls.utils.errors import ConfigError, suggest

Outputs = dict[str, Tensor]
"""Tensors to compare by name: `logits` (N, K), or the output of each module, under the trained model's name for it."""


def softened_kl(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return `T² · KL(teacher ‖ model)` of softened predictions, the mean over the batch; at least float32.

    Args:
        logits: (N, K) of the model.
        teacher: (N, K) of the teacher.
        temperature: T, above 0.

    Example:
        >>> softened_kl(torch.zeros(1, 2), torch.tensor([[0.0, 4.0]]), temperature=4.0)
        tensor(1.7751)
    """
    own, given = (F.log_softmax(_wide(values) / temperature, dim=1) for values in (logits, teacher))
    return F.kl_div(own, given, reduction="batchmean", log_target=True) * temperature**2


def squared_error(values: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean of the squared differences of two tensors of one shape; at least float32."""
    return F.mse_loss(_wide(values), _wide(teacher))


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Observed:
    """Forward pass of a classifier that returns its logits, and the outputs that a loss compares.

    Args:
        model: Classifier with `predict(img)`, or a module from images to logits.
        modules: Names of its modules whose outputs are compared, by their names in `Outputs`; empty: the logits are.
        owner: Owner of the names in messages: "the model" or "the teacher".

    Raises:
        ConfigError: The model has no module of a name.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, str], owner: str) -> None:
        self.model, self.names, self.owner = model, tuple(modules), owner
        self._found: Outputs = {}
        self._observes = False
        known = {name: module for name, module in model.named_modules() if name}
        for key, name in modules.items():
            if name not in known:
                raise ConfigError(f"distill.modules: {owner} has no module '{name}'{suggest(name, known)}")
            known[name].register_forward_hook(partial(self._keep, key))

    def __call__(self, img: Tensor) -> tuple[Tensor, Outputs]:
        """Return the logits (N, K) of images (N, C, H, W), and the outputs to compare."""
        self._found, self._observes = {}, True
        logits = predictor(self.model)(img)
        found, self._found, self._observes = self._found, {}, False
        if not self.names:
            return logits, {"logits": logits}
        for name in self.names:
            if not isinstance(found.get(name), Tensor):
                kind = type(found[name]).__name__ if name in found else "nothing: it is not called"
                raise ConfigError(f"distill.modules: '{name}' of {self.owner} must return a tensor; it returns {kind}.")
        return logits, found

    def _keep(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        if self._observes:
            self._found[name] = output


class Teacher(nn.Module):
    """Trained classifier as the source of outputs to learn: always in eval mode, without gradients.

    Args:
        model: Classifier; it is switched to eval mode, and its parameters to no gradient.
        modules: Names of its modules whose outputs it returns, by their names in `Outputs`; empty: its logits.
        compiles: False: `torch.compile` cannot compile it.
        digest: SHA-256 of its file, in hexadecimal, by which a resumed run recognizes it.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, str], compiles: bool = True, digest: str = "") -> None:
        super().__init__()
        self.digest = digest
        self.model = model.eval().requires_grad_(False)
        self.compiles = compiles
        self._observed = Observed(model, modules, "the teacher")

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, img: Tensor) -> Outputs:
        """Return the outputs for images (N, C, H, W)."""
        return self._observed(img)[1]


class Student(nn.Module):
    """Classifier whose loss includes a teacher's outputs, as the training step runs it.

    Args:
        classifier: Classifier with `predict(img)` and `loss(logits, gt_label)`.
        settings: Loss, weights, and modules to compare.

    Raises:
        ConfigError: A module's name is unknown, or the classifier has no `predict` or `loss`.
    """

    def __init__(self, classifier: nn.Module, settings: DistillConfig) -> None:
        super().__init__()
        for name in ("predict", "loss"):
            if not callable(getattr(classifier, name, None)):
                raise ConfigError(f"distill needs a classifier with {name}(), which {type(classifier).__name__} lacks.")
        self.classifier = classifier
        self.weight, self.label_weight = settings.weight, settings.label_weight
        kl = partial(softened_kl, temperature=settings.temperature or TEMPERATURE)
        self._compare = kl if settings.loss == "kl" else squared_error
        self._observed = Observed(classifier, {name: name for name in settings.pairs}, "the model")

    def forward(self, img: Tensor, gt_label: Tensor, teacher: Outputs) -> dict[str, Tensor]:
        """Return the classifier's losses with the total as `loss`, and its parts `loss_label` and `loss_distill`.

        Args:
            img: (N, C, H, W), already mixed if the model mixes training images.
            gt_label: (N,) int64, or (N, K) probabilities.
            teacher: Teacher's outputs for these images.

        Raises:
            ConfigError: An output has another shape than the teacher's.
        """
        logits, outputs = self._observed(img)
        losses = cast("Any", self.classifier).loss(logits, gt_label)
        distance = self._distance(outputs, teacher)
        total = self.weight * distance
        if self.label_weight:  # 0 · loss is not 0 where the loss is not finite
            total = total + self.label_weight * losses["loss"]
        return {**losses, "loss": total, "loss_label": losses["loss"], "loss_distill": distance}

    def _distance(self, outputs: Outputs, teacher: Outputs) -> Tensor:
        for name, given in teacher.items():
            if outputs[name].shape != given.shape:
                raise ConfigError(
                    f"distill: '{name}' has the shape {tuple(outputs[name].shape)} in the model and "
                    f"{tuple(given.shape)} in the teacher; only equal shapes can be compared."
                )
        return torch.stack([self._compare(outputs[name], given) for name, given in teacher.items()]).mean()
