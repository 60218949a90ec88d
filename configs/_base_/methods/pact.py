"""PACT, the first and the last layer in float. The bits of the others: `quan_policy.Conv2d` of the config itself."""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="PACTConv", clip_decay=1e-4)),
    exclude_layers=["backbone.conv1", "head.fc"],
)
