"""Quantizers, quantized layers, and the model transformer; public names are imported on first use."""

from typing import TYPE_CHECKING

from lbitcls.utils.lazy import exports

if TYPE_CHECKING:
    from lbitcls.quant.calibration import calibrate as calibrate
    from lbitcls.quant.calibration import named_quantizers as named_quantizers
    from lbitcls.quant.calibration import quantizer_parameters as quantizer_parameters
    from lbitcls.quant.calibration import refresh as refresh
    from lbitcls.quant.calibration import regularization as regularization
    from lbitcls.quant.calibration import set_quantization as set_quantization
    from lbitcls.quant.calibration import uninitialized as uninitialized
    from lbitcls.quant.calibration import weight_bits as weight_bits
    from lbitcls.quant.kernels import select_kernels as select_kernels
    from lbitcls.quant.methods import build_quant_layer as build_quant_layer
    from lbitcls.quant.methods import register_method as register_method
    from lbitcls.quant.quantizer import Quantizer as Quantizer
    from lbitcls.quant.size import model_size as model_size
    from lbitcls.quant.spec import QParams as QParams
    from lbitcls.quant.transformer import ModelTransformer as ModelTransformer
    from lbitcls.quant.transformer import build_mtransformer as build_mtransformer
else:
    __getattr__, __dir__, __all__ = exports(__name__)
