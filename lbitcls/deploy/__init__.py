"""Exports trained models, runs exported models and verifies them; public names are imported on first use.

Running an exported model (`load`) imports neither PyTorch nor ONNX's tools, so a program that only predicts starts
quickly.
"""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.deploy.export.integer_backbone import IntegerBackbone as IntegerBackbone
    from lbitcls.deploy.export.onnx import export_model as export_model
    from lbitcls.deploy.runtime.benchmark import time_models as time_models
    from lbitcls.deploy.runtime.engine import Engine as Engine
    from lbitcls.deploy.runtime.engine import load as load
    from lbitcls.deploy.runtime.metadata import ModelInfo as ModelInfo
    from lbitcls.deploy.runtime.metadata import read_info as read_info
    from lbitcls.deploy.verification.integer import integer_model as integer_model
else:
    __getattr__, __dir__, __all__ = exports(__name__)
