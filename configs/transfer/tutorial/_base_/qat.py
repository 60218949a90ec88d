"""Quantization-aware training from ImageNet weights with torch's `default_qat_qconfig`; unnamed layers stay float.

Its inputs have 7 bits (`reduce_range`), its weights one scale for each layer.
"""

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="TorchQATConv", num_bit_w=8, num_bit_a=8, reduce_range=True)),
    fold_bn=True,
)
optimizer = dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=0.1)
lr_config = dict(policy="step", step=5, gamma=0.3)
total_epochs = 25
