"""LeNet-5 on MNIST, LSQ W4A4 from the first step, first and last layers at 8 bits.

    python tools/train.py configs/mnist/lenet5_lsq_4w4f.py --data-root FOLDER_WITH_MNIST

Measured: 98.8 % top-1 on the test set after three epochs, in a little over a minute on one CPU core; 97.9 % on the
held-out images.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="LeNet5"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=120,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1, 5),
    ),
)

normalize = dict(type="Normalize", mean=[0.1307], std=[0.3081])
test_pipeline = [normalize, dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]
held_out = range(0, 60_000, 12)  # 5,000 training images, for validation; the test set is for `lbitcls test`
data = dict(
    samples_per_gpu=64,
    workers_per_gpu=0,
    train=dict(
        type="MNIST",
        split="train",
        exclude_indices=held_out,
        pipeline=[
            normalize,
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="ToTensor", keys=["gt_label"]),
            dict(type="Collect", keys=["img", "gt_label"]),
        ],
    ),
    val=dict(type="MNIST", split="train", indices=held_out, pipeline=test_pipeline),
    test=dict(type="MNIST", split="test", pipeline=test_pipeline),
)
evaluation = dict(interval=1, metric="accuracy")

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4),
        Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4),
    ),
    special_layers=dict(
        layers_name=["backbone.features.0", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)

optimizer = dict(type="SGD", lr=0.05, momentum=0.9, weight_decay=1e-4)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 3
checkpoint_config = dict(interval=1)
log_config = dict(interval=100, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
seed = 0
