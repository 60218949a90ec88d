"""LSQ, the first and the last layer at 8 bits. The bits of the others: `quan_policy.Conv2d` of the config itself."""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="LSQConv")),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)
