"""Teacher's outputs for each training batch: computed for the step, or kept if every epoch has the same images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lbitcls.core.distillation import Outputs, Teacher
from lbitcls.core.hooks.hook import PRIORITIES, Hook
from lbitcls.utils.dist import sum_over_ranks
from lbitcls.utils.errors import ConfigError, DataError
from lbitcls.utils.failures import explain

if TYPE_CHECKING:
    from lbitcls.core.runner import EpochRunner
    from lbitcls.core.step import Batch

MOST_MIB = 1024.0
"""Most memory for the teacher's logits, in MiB; where they need more, they are computed in each step."""


class Distiller(Hook):
    """Hook that adds a teacher's outputs to the arguments of the training step.

    If no image changes between epochs, the logits of all images are computed once, before the first step, in the
    batches of epoch 0: so a resumed run learns from the same bits, whatever its epoch.

    Args:
        teacher: Teacher, on the model's device.
        model: Classifier in training, which may mix its training images (`augments`).
        changing: Reason why an image's logits cannot be kept, such as the random steps of the pipeline; "": they can.
    """

    priority = PRIORITIES["VERY_HIGH"]

    def __init__(self, teacher: Teacher, model: nn.Module, changing: str) -> None:
        self.teacher = teacher
        self.changing = changing
        self._model = model
        self._logits: Tensor | None = None
        self._known = torch.zeros(0, dtype=torch.bool)

    def before_run(self, runner: EpochRunner) -> None:
        """Compute the logits of all images if they can be kept and more than one epoch uses them."""
        reason = self.changing or ("there is one epoch" if runner.max_epochs == 1 else self._compute(runner))
        if reason:
            runner.logger.info("distill: The teacher runs in each step: %s.", reason)

    def arguments(self, batch: Batch) -> dict[str, Any]:
        """Return the arguments of `Student` for a batch, whose images are mixed if the model mixes them."""
        img, gt_label = batch["img"], batch["gt_label"]
        augments = getattr(self._model, "augments", None)
        if augments is not None and self._model.training:
            img, gt_label = augments(img, gt_label)
        return {"img": img, "gt_label": gt_label, "teacher": self._outputs(img, batch.get("index"))}

    def _outputs(self, img: Tensor, index: Tensor | None) -> Outputs:
        if self._logits is not None and index is not None and bool(self._known[index].all()):
            return {"logits": self._logits[index.to(self._logits.device)]}
        return self._ask(img)

    def _ask(self, img: Tensor) -> Outputs:
        """Return the teacher's outputs; an error says that it is the teacher's."""
        try:
            return self.teacher(img)
        except (DataError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and explain(error) is not None:  # the machine failed
                raise
            reason = str(error).partition("\n")[0].rstrip(".")
            raise ConfigError(
                f"distill.teacher cannot process the images of data.train, {tuple(img.shape)}: {reason}. Model and "
                "teacher see the same images: use a teacher for them, or prepare them as its config does."
            ) from error

    def _compute(self, runner: EpochRunner) -> str:
        """Keep the logits of the first epoch's images; return the reason if they need too much memory."""
        number, dtype = len(runner.loader.dataset), runner.step.precision.dtype
        table, counts = torch.zeros(0), torch.zeros(number)
        for batch in runner.loader.iterate(0):
            img = runner.to_device(batch)["img"]
            with torch.autocast(img.device.type, dtype=dtype, enabled=dtype is not None):
                logits = self._ask(img)["logits"].float()
            if not len(table):
                mib = number * logits.shape[1] * 4 / 2**20
                if mib > MOST_MIB:
                    return f"its logits of {number} images need {mib:.0f} MiB, more than {MOST_MIB:.0f}"
                runner.logger.info("distill: Keeping the teacher's logits of %d images, %.1f MiB.", number, mib)
                table, counts = logits.new_zeros(number, logits.shape[1]), counts.to(logits.device)
            index = batch["index"].to(table.device)
            table[index], counts[index] = logits, 1.0
        sum_over_ranks(table)
        sum_over_ranks(counts)
        self._logits = table.div_(counts.clamp(min=1).unsqueeze(1))  # an image that pads an epoch has several ranks
        self._known = (counts > 0).cpu()
        return ""
