"""Quantization-aware fine-tuning at 8 bits with PyTorch's QAT, BatchNorm folded, from a fine-tuned float model."""

bits = dict(num_bit_w=8, num_bit_a=8, per_channel=True)
quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="TorchQATConv", **bits), Linear=dict(type="TorchQATLinear", **bits)),
    fold_bn=True,
)
calibration = dict(epoch=0, num_batches=8)
optimizer = dict(type="AdamW", lr=0.00001, weight_decay=0.01)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 4
