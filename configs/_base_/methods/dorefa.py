"""DoReFa, first and last layers in float. The config itself sets the bits of the others in `quan_policy.Conv2d`."""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="DoReFaConv")),
    exclude_layers=["backbone.conv1", "head.fc"],
)
