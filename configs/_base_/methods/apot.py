"""APoT, the first and the last layer with uniform 8-bit weights and float inputs, as in the authors' code.

The bits of the others: `quan_policy.Conv2d` of the config itself.
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
