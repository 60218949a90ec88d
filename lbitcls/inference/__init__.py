"""Predictions for single images, from a checkpoint or an exported model."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.inference.api import inference_model as inference_model
    from lbitcls.inference.api import init_model as init_model
    from lbitcls.inference.api import show_result as show_result
    from lbitcls.inference.api import show_result_pyplot as show_result_pyplot
    from lbitcls.inference.image_files import infer_files as infer_files
    from lbitcls.inference.onnx_model import ExportedModel as ExportedModel
else:
    __getattr__, __dir__, __all__ = exports(__name__)
