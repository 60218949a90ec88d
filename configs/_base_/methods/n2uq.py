"""N2UQ, first and last layers in float, as in the authors' code.

The config itself sets the bits of the others in `quan_policy.Conv2d`. Weights have a scale for each output channel.
"""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="N2UQConv", per_channel=True)),
    exclude_layers=["backbone.conv1", "head.fc"],
)
