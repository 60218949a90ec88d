"""DoReFa, the first and the last layer in float. The bits of the others: `quan_policy.Conv2d` of the config itself."""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="DoReFaConv")),
    exclude_layers=["backbone.conv1", "head.fc"],
)
