"""`ImageClassifier`: backbone -> neck -> head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lbitcls.models.augments import BatchAugments
from lbitcls.models.freezing import FreezableModule
from lbitcls.models.state_dict import to_classifier_names
from lbitcls.registry import BACKBONES, CLASSIFIERS, HEADS, NECKS
from lbitcls.utils import load_checkpoint
from lbitcls.utils.errors import ConfigError, DataError, reject_unknown_keys
from lbitcls.utils.published import is_published

_MOVING = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)  # differ in training and eval mode


@CLASSIFIERS.register_module()
class ImageClassifier(FreezableModule):
    """Image classifier.

    Args:
        backbone: Config of the backbone. Its `pretrained=FILE`, or
            `init_cfg=dict(type='Pretrained', checkpoint=FILE)`, loads only the backbone's part of a file;
            `frozen=True` freezes all of it (no gradients, normalization in eval mode), so that only the head trains.
        head: Config of the head.
        neck: Config of the neck, or None.
        pretrained: Weights to initialize from, `'torchvision://mobilenet_v2'` or a local file, published or our own;
            whatever matches is loaded, the rest is reported. A head for other classes starts from scratch.
        train_cfg: `dict(augments=…)`: mixup and cutmix of the training batches, see `BatchAugments`.
        init_cfg: `dict(type='Pretrained', checkpoint=FILE)`, equivalent to `pretrained=FILE`.

    Attributes:
        CLASSES: Class names, or None; set from outside.
        cfg: Config that the model was built from, or None; set from outside.

    Raises:
        ConfigError: Parts that do not match each other, such as a head for another number of channels.

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
        frozen = backbone.pop("frozen", False)
        if not isinstance(frozen, bool):
            raise ConfigError(f"model.backbone.frozen must be True or False; got {frozen!r}. See also frozen_stages.")
        own = None if _loads_itself(backbone) else backbone.pop("pretrained", None)
        backbone_file = _pretrained_file("model.backbone", own, backbone.pop("init_cfg", None))
        self.backbone = BACKBONES.build(backbone)
        self.neck = None if neck is None else NECKS.build(neck)
        self.head = HEADS.build(head)
        _check_channels(self.backbone, self.neck, self.head)
        self.augments = _build_augments(train_cfg, self.num_classes)
        _load_pretrained(self.backbone, backbone_file)
        _load_pretrained(self, _pretrained_file("model", pretrained, init_cfg))
        if frozen:
            self.freeze("backbone")

    @property
    def num_classes(self) -> int | None:
        """Number of classes, K, from the head or else the backbone; None if neither defines it."""
        of_head = getattr(self.head, "num_classes", None)
        return of_head if of_head is not None else getattr(self.backbone, "num_classes", None)

    def forward(
        self,
        img: Tensor | None = None,
        gt_label: Tensor | None = None,
        return_loss: bool = True,
        img_metas: Any = None,
        features: Tensor | None = None,
    ) -> dict[str, Tensor] | np.ndarray:
        """Return the losses of a batch, or its scores.

        Args:
            img: (N, C, H, W) float, or None with `features`.
            gt_label: (N,) int64, required for the losses.
            return_loss: True for a dict of scalar tensors: `loss` (to minimize) and the accuracies `top-k`
                in percent; False for the softmax scores, a NumPy array (N, K).
            img_metas: Accepted because the tutorial's batches contain it; not used.
            features: Result of `fixed_features`, instead of images: only the head is run, for its loss.
        """
        if features is not None and gt_label is not None:
            return self.loss(self.predict_features(features), gt_label)
        if img is None:
            raise DataError("the classifier needs images: give img.")
        if not return_loss:
            return self.scores(img)
        if gt_label is None:
            raise DataError("the losses need labels: give gt_label, or return_loss=False for the scores.")
        if self.training and self.augments is not None:
            img, gt_label = self.augments(img, gt_label)
        return self.loss(self.predict(img), gt_label)

    def extract_feat(self, img: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return features in the form of the head's input."""
        self._check_image(img)
        features = self.backbone(img)
        return features if self.neck is None else self.neck(features)

    def predict(self, img: Tensor) -> Tensor:
        """Return logits (N, K)."""
        return self.head(self.extract_feat(img))

    @property
    def moving_parts(self) -> list[str]:
        """Return the names of parts before the head that training changes, or whose training and eval modes differ."""
        modules = [*self.backbone.named_modules(prefix="backbone")]
        modules += [] if self.neck is None else self.neck.named_modules(prefix="neck")
        return [
            name
            for name, module in modules
            if (isinstance(module, _MOVING) or next(module.parameters(recurse=False), None) is not None)
            and not self.is_frozen(name)
        ]

    @torch.no_grad()
    def fixed_features(self, img: Tensor) -> Tensor:
        """Return the head's input for images, (N, C) or (N, C, H, W), valid while no part before the head changes."""
        features = self.extract_feat(img)
        return features[-1] if isinstance(features, tuple) else features

    def predict_features(self, features: Tensor) -> Tensor:
        """Return logits (N, K) for the result of `fixed_features`."""
        return self.head(features)

    def loss(self, logits: Tensor, gt_label: Tensor) -> dict[str, Tensor]:
        """Return the losses of `forward` from logits, for validation, which has computed them already."""
        return self.head.loss(logits, gt_label)

    @torch.no_grad()
    def scores(self, img: Tensor) -> np.ndarray:
        """Return softmax scores, float32, (N, K)."""
        return self.predict(img).float().softmax(dim=1).cpu().numpy()

    def adapt_state_dict(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a published state dict under this model's names; the same mapping if it already has them."""
        return to_classifier_names(state_dict, self.backbone, self.head)

    def _check_image(self, img: Tensor) -> None:
        expected = getattr(self.backbone, "in_channels", None)
        if img.dim() != 4 or (expected is not None and img.shape[1] != expected):
            raise DataError(
                f"{type(self.backbone).__name__} needs images (N, {expected or 'C'}, H, W); got "
                f"{tuple(img.shape)}. Fix the pipeline, or set in_channels of a backbone that has it."
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


def _pretrained_file(owner: str, pretrained: Any, init_cfg: dict | None) -> str | None:
    """Return the file that either key of `owner` names, or None."""
    if init_cfg is not None:
        reject_unknown_keys(f"{owner}.init_cfg", init_cfg, ["type", "checkpoint", "prefix"])
        known_prefix = init_cfg.get("prefix", "backbone") in ("backbone", "backbone.")
        if init_cfg.get("type") != "Pretrained" or not known_prefix or pretrained is not None:
            raise ConfigError(
                f"{owner}.init_cfg must be dict(type='Pretrained', checkpoint=FILE), without {owner}.pretrained; "
                f"got {init_cfg!r}."
            )
        pretrained = init_cfg.get("checkpoint")
    if pretrained is None or pretrained is False:
        return None
    if not isinstance(pretrained, str) or ("://" in pretrained and not is_published(pretrained)):
        raise ConfigError(
            f"{owner}: pretrained={pretrained!r} is neither a local file nor 'torchvision://NAME' nor "
            "'hf://OWNER/NAME'; download the file and give its path."
        )
    return pretrained


def _loads_itself(backbone: dict) -> bool:
    """Return True if the backbone's class accepts `pretrained` itself, since only it can find its weights."""
    return "type" in backbone and "pretrained" in inspect.signature(BACKBONES.resolve(backbone["type"])).parameters
