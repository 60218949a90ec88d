"""LSQ at 4 bits (first and last layers 8) from a fine-tuned float model."""

bits = dict(num_bit_w=4, num_bit_a=4, per_channel=True)
quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="LSQConv", **bits), Linear=dict(type="LSQLinear", **bits)),
)
calibration = dict(epoch=0, num_batches=8, method="mse")
optimizer = dict(type="AdamW", lr=0.0001, weight_decay=0.01)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=8)
total_epochs = 15
