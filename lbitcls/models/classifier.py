"""`ImageClassifier`: backbone -> neck -> head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbitcls.models.augments import BatchAugments
from lbitcls.models.state_dict import to_classifier_names
from lbitcls.registry import BACKBONES, CLASSIFIERS, HEADS, NECKS
from lbitcls.utils import load_checkpoint
from lbitcls.utils.errors import ConfigError, DataError, reject_unknown_keys


@CLASSIFIERS.register_module()
class ImageClassifier(nn.Module):
    """A classifier of images.

    Args:
        backbone: config of the backbone. Its `pretrained=FILE`, or `init_cfg=dict(type='Pretrained',
            checkpoint=FILE)`, loads the backbone's part of a file alone.
        head: config of the head.
        neck: config of the neck, or None.
        pretrained: a local file with weights to start from, published or our own; what fits is loaded, the
            rest is reported.
        train_cfg: `dict(augments=…)`: mixup and cutmix of the training batches, see `BatchAugments`.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)`, another way to write `pretrained=FILE`.

    Attributes:
        CLASSES: names of the classes, or None; whoever knows them sets it.
        cfg: the config the model was made from, or None; likewise.

    Raises:
        ConfigError: parts that do not fit each other, such as a head for another number of channels.

    Example:
        >>> model = ImageClassifier(
        ...     backbone=dict(type="LeNet5", num_classes=10), head=dict(type="ClsHead"))
        >>> sorted(model(torch.rand(2, 1, 28, 28), gt_label=torch.tensor([3, 7])))
        ['loss', 'top-1', 'top-5']
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        neck: dict | None = None,
        pretrained: str | None = None,
        train_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        self.CLASSES: tuple[str, ...] | None = None
        self.cfg: Any = None
        backbone = dict(backbone)
        backbone_file = _pretrained_file(
            "model.backbone", backbone.pop("pretrained", None), backbone.pop("init_cfg", None)
        )
        self.backbone = BACKBONES.build(backbone)
        self.neck = None if neck is None else NECKS.build(neck)
        self.head = HEADS.build(head)
        _check_channels(self.backbone, self.neck, self.head)
        self.augments = _build_augments(train_cfg, self.num_classes)
        _load_pretrained(self.backbone, backbone_file)
        _load_pretrained(self, _pretrained_file("model", pretrained, init_cfg))

    @property
    def num_classes(self) -> int | None:
        """K, from the head or else the backbone; None when neither says it."""
        of_head = getattr(self.head, "num_classes", None)
        return of_head if of_head is not None else getattr(self.backbone, "num_classes", None)

    def forward(
        self,
        img: Tensor,
        gt_label: Tensor | None = None,
        return_loss: bool = True,
        img_metas: Any = None,
    ) -> dict[str, Tensor] | np.ndarray:
        """Losses of a batch, or its scores.

        Args:
            img: (N, C, H, W) float.
            gt_label: (N,) int64, needed for the losses.
            return_loss: True for a dict of scalar tensors: `loss` (to minimise) and the accuracies `top-k`
                in percent; False for the softmaxed scores, a NumPy array (N, K).
            img_metas: taken because batches of the tutorial carry it; not used.
        """
        if not return_loss:
            return self.scores(img)
        if gt_label is None:
            raise DataError("the losses need labels: give gt_label, or return_loss=False for the scores.")
        if self.training and self.augments is not None:
            img, gt_label = self.augments(img, gt_label)
        return self.loss(self.predict(img), gt_label)

    def extract_feat(self, img: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Features as the head takes them."""
        self._check_image(img)
        features = self.backbone(img)
        return features if self.neck is None else self.neck(features)

    def predict(self, img: Tensor) -> Tensor:
        """Logits (N, K)."""
        return self.head(self.extract_feat(img))

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        """What `forward` returns for training, from logits: for validation, which has them already."""
        return self.head.loss(logits, gt_label)

    @torch.no_grad()
    def scores(self, img: Tensor) -> np.ndarray:
        """Softmaxed scores, float32, (N, K)."""
        return self.predict(img).float().softmax(dim=1).cpu().numpy()

    def adapt_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """A published state dict with the names of this model; the same mapping when it has them already."""
        return to_classifier_names(state_dict, self.backbone, self.head)

    def _check_image(self, img: Tensor) -> None:
        expected = getattr(self.backbone, "in_channels", None)
        if img.dim() != 4 or (expected is not None and img.shape[1] != expected):
            raise DataError(
                f"{type(self.backbone).__name__} takes images (N, {expected or 'C'}, H, W), got "
                f"{tuple(img.shape)}; mend the pipeline, or set in_channels of a backbone that has it."
            )


def _check_channels(backbone: nn.Module, neck: nn.Module | None, head: nn.Module) -> None:
    given, needed = getattr(backbone, "num_features", None), getattr(head, "in_channels", None)
    passes = neck is None or getattr(neck, "keeps_channels", False)
    if passes and given is not None and needed is not None and given != needed:
        raise ConfigError(
            f"model.head.in_channels={needed}, but the last feature of {type(backbone).__name__} has {given} "
            f"channels; write in_channels={given}."
        )


def _build_augments(train_cfg: dict | None, num_classes: int | None) -> BatchAugments | None:
    if not train_cfg:
        return None
    reject_unknown_keys("model.train_cfg", train_cfg, ["augments"])
    augments = train_cfg.get("augments")
    return None if augments is None else BatchAugments(augments, num_classes)


def _load_pretrained(module: nn.Module, file: str | None) -> None:
    if file is not None:
        load_checkpoint(module, file)


def _pretrained_file(owner: str, pretrained: str | None, init_cfg: dict | None) -> str | None:
    """The file that either key of `owner` names, or None."""
    if init_cfg is not None:
        reject_unknown_keys(f"{owner}.init_cfg", init_cfg, ["type", "checkpoint", "prefix"])
        known_prefix = init_cfg.get("prefix", "backbone") in ("backbone", "backbone.")
        if init_cfg.get("type") != "Pretrained" or not known_prefix or pretrained is not None:
            raise ConfigError(
                f"{owner}.init_cfg={init_cfg!r}: expected dict(type='Pretrained', checkpoint=FILE), and no "
                f"{owner}.pretrained beside it."
            )
        pretrained = init_cfg.get("checkpoint")
    if pretrained is not None and "://" in pretrained:
        raise ConfigError(f"{owner}: '{pretrained}' is no local file; download it and give its path.")
    return pretrained
