"""LSQ, first and last layers at 8 bits. The config itself sets the bits of the others in `quan_policy.Conv2d`."""

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
