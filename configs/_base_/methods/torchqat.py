"""PyTorch's QAT of every layer at 8 bits: per-channel weights, BatchNorm folded where it follows a convolution."""

bits = dict(num_bit_w=8, num_bit_a=8, per_channel=True)
quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="TorchQATConv", **bits), Linear=dict(type="TorchQATLinear", **bits)),
    fold_bn=True,
)
