"""Everything is trained, the backbone far slower than the head; both learning rates fall to a tenth every 7 epochs."""

optimizer = dict(
    type="AdamW",
    lr=0.003,
    weight_decay=0.01,
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.003))),
)
lr_config = dict(policy="step", step=7, gamma=0.1)
total_epochs = 25
