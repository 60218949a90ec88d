"""QQuant's notebook, its last part: a quantized layer of one's own, and a model in which it replaces convolutions."""

import torch
from torch import nn

from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.registry import QUANLAYERS
from lbitcls.utils import Config
from lbitcls.utils.logging import get_logger


@QUANLAYERS.register_module()
class DSQConvV2(nn.Conv2d):
    """The notebook leaves its body open; here values are rounded to a grid of the largest magnitude."""

    def __init__(self, *args, num_bit_w=3, num_bit_a=3, bSetQ=True, **kwargs):
        super().__init__(*args, **kwargs)
        self.num_bit_w, self.num_bit_a = num_bit_w, num_bit_a

    def quantize_(self, x, num_bits):
        step = x.detach().abs().max() / (2 ** (num_bits - 1) - 1)
        return x + (torch.round(x / step) * step - x).detach()

    def forward(self, x):
        weight = self.quantize_(self.weight, self.num_bit_w)
        return self._conv_forward(self.quantize_(x, self.num_bit_a), weight, self.bias)


cfg = Config.fromfile("config.py")
cfg.quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(Conv2d=dict(type="DSQConvV2", num_bit_w=3, num_bit_a=3, bSetQ=True)),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="DSQConv", num_bit_w=8, num_bit_a=8, bSetQ=True, quant_activation=False),
            dict(type="DSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)
logger = get_logger()
model = build_classifier(cfg.model)
model_transformer = build_mtransformer(cfg.quant_transformer)
model = model_transformer(model, logger=logger)
