"""APoT, first and last layers with uniform 8-bit weights and float inputs, as in the authors' code.

The config itself sets the bits of the others in `quan_policy.Conv2d`.
"""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="APoTConv")),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="TorchQATConv", num_bit_w=8, quant_activation=False),
            dict(type="TorchQATLinear", num_bit_w=8, quant_activation=False),
        ],
    ),
)
