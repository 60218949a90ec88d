"""PACT, first and last layers in float. The config itself sets the bits of the others in `quan_policy.Conv2d`."""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="PACTConv", clip_decay=1e-4)),
    exclude_layers=["backbone.conv1", "head.fc"],
)
