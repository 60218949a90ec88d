"""ResNet-20 of the APoT authors (github.com/yhhhli/APoT_Quantization), quantized as in their code.

Shortcuts between stages are convolutions with BatchNorm. Inner convolutions have APoT weights, normalized by the
unbiased deviation, and unsigned APoT inputs; the config sets their bits. The first and the last layer have float inputs
and weights of whole steps of max(w) / 127, also in the float network.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionB", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(type="LinearClsHead", num_classes=10, in_channels=64, topk=(1,)),
)
ends = dict(num_bit_w=8, quant_activation=False, step_from_max=True)
quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="APoTConv", unbiased=True, fractional_levels=True, signed=False)),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[dict(type="TorchQATConv", **ends), dict(type="TorchQATLinear", **ends)],
    ),
)
