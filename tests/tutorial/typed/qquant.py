"""QQuant's classification tutorial, its inference part: its lines, with other imports.

Reads `config.py` and `test.jpg`.
"""

import warnings

import numpy as np
import torch

from lbitcls.datasets import collate, scatter
from lbitcls.datasets.pipelines import Compose
from lbitcls.models import build_classifier
from lbitcls.quant import build_mtransformer
from lbitcls.utils import Config, load_checkpoint

config = "config.py"
config = Config.fromfile(config)

model = build_classifier(config.model)
if hasattr(config, "quant_transformer"):
    model_transformer = build_mtransformer(config.quant_transformer)
    model = model_transformer(model)
device = "cpu"
if config.load_from is not None:
    map_loc = "cpu" if device == "cpu" else None
    checkpoint = load_checkpoint(model, config.load_from, map_location=map_loc)
    if "CLASSES" in checkpoint["meta"]:
        model.CLASSES = checkpoint["meta"]["CLASSES"]
    else:
        from lbitcls.datasets import ImageNet

        warnings.simplefilter("once")
        warnings.warn("no class names in the checkpoint: ImageNet's")  # noqa: B028
        model.CLASSES = ImageNet.CLASSES
model.to(device)
model.cfg = config
model.eval()

img_file = "./test.jpg"
cfg = model.cfg
data = dict(img_info=dict(filename=img_file), img_prefix=None)
test_pipeline = Compose(cfg.data.test.pipeline)
data = test_pipeline(data)
data = collate([data], samples_per_gpu=1)
device = next(model.parameters()).device
if next(model.parameters()).is_cuda:
    data = scatter(data, [device])[0]

with torch.no_grad():
    scores = model(return_loss=False, **data)
    pred_score = np.max(scores, axis=1)[0]
    pred_label = np.argmax(scores, axis=1)[0]
    result = {"pred_label": pred_label, "pred_score": float(pred_score)}
result["pred_class"] = model.CLASSES[result["pred_label"]]
print(result)
