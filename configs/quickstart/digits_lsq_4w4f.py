"""A 4-bit classifier of handwritten digits in a minute: ResNet-8 on `Digits`, float first, then LSQ W4A4.

    python tools/train.py configs/quickstart/digits_lsq_4w4f.py

The quantizers are switched on at epoch 20 of 30; the first and last layers have 8 bits. The images come with the
package.
Measured: 99.4 % top-1 in float, 99.2 % quantized (360 test images), about 35 s on one CPU core. The first run takes
longer, because it compiles kernels; `kernels = 'plain'` compiles none.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=8, in_channels=1, base_channels=16),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=64,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1,),
    ),
)

normalize = dict(type="Normalize", mean=[0.305], std=[0.376])
test_pipeline = [normalize, dict(type="ImageToTensor", keys=["img"]), dict(type="Collect", keys=["img"])]
data = dict(
    samples_per_gpu=64,
    workers_per_gpu=0,
    train=dict(
        type="Digits",
        split="train",
        pipeline=[
            dict(type="RandomCrop", size=8, padding=1),
            normalize,
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="ToTensor", keys=["gt_label"]),
            dict(type="Collect", keys=["img", "gt_label"]),
        ],
    ),
    val=dict(type="Digits", split="test", pipeline=test_pipeline),
    test=dict(type="Digits", split="test", pipeline=test_pipeline),
)
evaluation = dict(interval=1, metric="accuracy")

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=4, num_bit_a=4),
        Linear=dict(type="LSQLinear", num_bit_w=4, num_bit_a=4),
    ),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)
calibration = dict(epoch=20, num_batches=8)

optimizer = dict(type="SGD", lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=40)
total_epochs = 30
checkpoint_config = dict(interval=5, max_keep_ckpts=2)
log_config = dict(interval=10, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
export = dict(verify=True)  # model.onnx in the work directory, and what it is worth
num_threads = 1  # the model is too small for more, and other programs may want the rest
seed = 0
