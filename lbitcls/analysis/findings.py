"""Results of a comparison of two models, as plain data."""

from __future__ import annotations

from dataclasses import dataclass

from lbitcls.analysis.illnesses import Finding
from lbitcls.analysis.measures import OutputError
from lbitcls.analysis.scan import LayerScan
from lbitcls.analysis.tensors import TensorReport


@dataclass(frozen=True)
class OutputReport:
    """Error of a layer's output.

    Attributes:
        own_sqnr_db: SQNR of the output with this layer quantized, for the same inputs; None: no change.
        own_cosine: Cosine similarity for the same; None if nothing is quantized.
        sqnr_db: SQNR of the output against the reference's at the same layer; None: they are equal.
        cosine: Cosine similarity for the same.
    """

    own_sqnr_db: float | None
    own_cosine: float | None
    sqnr_db: float | None
    cosine: float | None


@dataclass(frozen=True)
class LayerReport:
    """One convolution or matrix product.

    Attributes:
        name: Full name in the model.
        kind: Float type.
        method: Method of its quantizers; None: it stays float.
        shape: Shape of its weight.
        num_bit_w: Bits of the weight, 32 for float.
        num_bit_a: Bits of the input, 32 for float.
        folded: True if its weight is quantized with its BatchNorm folded into it.
        parameters: Number of parameters.
        macs: Multiply-accumulates per image.
        bit_operations: macs · bits of the weight · bits of the input.
        float_bit_operations: Bit-operations of the float layer.
        size_bits: Size of the parameters at their bits, in bits.
        float_size_bits: Size of the parameters at 32 bits, in bits.
        weight_similarity: Cosine similarity of the weight and the float model's; None without one.
        weight: Quantization of the weight.
        input: Quantization of the inputs.
        output: Error of the output; None for a single float model.
        scan: Effect on the model's output; None if the layer stays float.
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
    """Costs of the whole model, per image if applicable.

    Attributes:
        parameters: Number of parameters.
        macs: Multiply-accumulates.
        bit_operations: Bit-operations at the layers' bits.
        float_bit_operations: Bit-operations at 32 bits.
        size_kib: Weights at their bits, scales, and everything else that inference needs at 32 bits, in KiB.
        float_size_kib: All of it at 32 bits, in KiB.
    """

    parameters: int
    macs: int
    bit_operations: int
    float_bit_operations: int
    size_kib: float
    float_size_kib: float


@dataclass(frozen=True)
class Analysis:
    """Result of `compare_models`.

    Attributes:
        images: Number of images.
        image_shape: (C, H, W).
        labelled: True if the images' labels are known.
        reference: Model that the quantized one is compared with: `'float'`: the float model, `'own'`: itself without
            its quantizers; None: only one float model is described.
        retrained: True if weights differ from the float model's.
        float_top1: Top-1 accuracy of the float model as a fraction, if there are two models.
        top1: Top-1 accuracy of the analyzed model as a fraction.
        error: Error of its output against the reference's.
        own_error: Error of its output against its own without quantizers.
        weight_similarity: Cosine similarity of all quantized weights and the float model's.
        totals: Costs.
        basis: Basis of the scan, `'float'` or `'quantized'` (`lbitcls.analysis.scan`); None without a scan.
        everything: Error with all layers quantized, against the float model; on the basis `quantized` without a float
            model no error, with the top-1 accuracy.
        check_up: Illnesses of the quantized model, worst first; None for a float model.
        layers: Layers in forward order.
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
    check_up: tuple[Finding, ...] | None = None

    @property
    def ranked(self) -> list[LayerReport]:
        """Return the quantized layers, the most expensive ones first."""
        ranks = [(layer.scan.rank, layer) for layer in self.layers if layer.scan]
        return [layer for _, layer in sorted(ranks, key=lambda pair: pair[0])]
