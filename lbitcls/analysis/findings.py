"""What a comparison of two models found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from lbitcls.analysis.measures import OutputError
from lbitcls.analysis.scan import LayerScan
from lbitcls.analysis.tensors import TensorReport


@dataclass(frozen=True)
class OutputReport:
    """The output of a layer.

    Attributes:
        own_sqnr_db: what quantizing this layer changes of its output, its inputs being as they are; None: nothing.
        own_cosine: likewise; None where nothing is quantized.
        sqnr_db: of the output against the reference's at the same layer; None: the same.
        cosine: likewise.
    """

    own_sqnr_db: float | None
    own_cosine: float | None
    sqnr_db: float | None
    cosine: float | None


@dataclass(frozen=True)
class LayerReport:
    """One convolution or matrix product.

    Attributes:
        name: its full name in the model.
        kind: its float type.
        method: of its quantizers; None: it stays float.
        shape: of its weight.
        num_bit_w: bits of the weight, 32 where float.
        num_bit_a: bits of the input, 32 where float.
        folded: whether its weight is quantized with its BatchNorm folded into it.
        parameters: number of parameters.
        macs: multiply-accumulates for one image.
        bit_operations: macs · bits of the weight · bits of the input.
        float_bit_operations: those of the float layer.
        size_bits: parameters at their bits.
        float_size_bits: parameters at 32 bits.
        weight_similarity: cosine of the weight with the float model's; None without one.
        weight: what becomes of the weight.
        input: what becomes of the inputs.
        output: None where one float model is looked at.
        scan: None where the layer stays float.
    """

    name: str
    kind: str
    method: str | None
    shape: tuple[int, ...]
    num_bit_w: int
    num_bit_a: int
    folded: bool
    parameters: int
    macs: int
    bit_operations: int
    float_bit_operations: int
    size_bits: int
    float_size_bits: int
    weight_similarity: float | None
    weight: TensorReport
    input: TensorReport
    output: OutputReport | None
    scan: LayerScan | None


@dataclass(frozen=True)
class Totals:
    """The whole model, for one image where that matters.

    Attributes:
        parameters: their number.
        macs: multiply-accumulates.
        bit_operations: at the bits of the layers.
        float_bit_operations: at 32 bits.
        size_kib: weights at their bits, scales, and the rest of what inference needs in 32 bits.
        float_size_kib: all of it in 32 bits.
    """

    parameters: int
    macs: int
    bit_operations: int
    float_bit_operations: int
    size_kib: float
    float_size_kib: float


@dataclass(frozen=True)
class Analysis:
    """What `compare_models` found.

    Attributes:
        images: their number.
        image_shape: (C, H, W).
        labelled: whether their classes are known.
        reference: what the quantized model is compared with: `'float'`: the float model, `'own'`: itself without its
            quantizers; None: one float model was looked at.
        retrained: whether weights differ from the float model's.
        float_top1: share of the images that the float model gets right, where there are both.
        top1: likewise of the model that is looked at.
        error: its output against the reference's.
        own_error: its output against its own without quantizers.
        weight_similarity: cosine of all quantized weights with the float model's.
        totals: costs.
        basis: of the scan, `'float'` or `'own'`; None without a scan.
        everything: the basis with all layers quantized, against it without any.
        layers: in the order of the forward pass.
    """

    images: int
    image_shape: tuple[int, ...]
    labelled: bool
    reference: str | None
    retrained: bool
    float_top1: float | None
    top1: float | None
    error: OutputError | None
    own_error: OutputError | None
    weight_similarity: float | None
    totals: Totals
    basis: str | None
    everything: OutputError | None
    layers: tuple[LayerReport, ...]

    @property
    def ranked(self) -> list[LayerReport]:
        """The quantized layers, those that cost most first."""
        ranks = [(layer.scan.rank, layer) for layer in self.layers if layer.scan]
        return [layer for _, layer in sorted(ranks, key=lambda pair: pair[0])]
