"""Everything is trained, the backbone at a tenth of the head's rate; a tenth of both after every 7 epochs."""

optimizer = dict(
    type="SGD",
    lr=0.003,
    momentum=0.9,
    weight_decay=1e-4,
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))),
)
lr_config = dict(policy="step", step=7, gamma=0.1)
total_epochs = 25
