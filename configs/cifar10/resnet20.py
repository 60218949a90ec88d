"""ResNet-20 (option-A shortcuts) on CIFAR-10 as JPEG files in class folders, float.

    lbitcls convert resnet20-12fca82f.th resnet20.pth
    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER

`FOLDER` holds `cifar10_jpg/train` and `cifar10_jpg/test`, or their archive `cifar10_jpg.tar.gz`. The quantized rows
of `benchmarks/accuracy_cifar10.py` share this file.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNetCIFAROptionA", depth=20),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=10,
        in_channels=64,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1,),
    ),
)

normalize = dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
test_pipeline = [
    dict(type="LoadImageFromFile"),
    normalize,
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]
test_set = dict(type="ImageFolder", data_prefix="cifar10_jpg/test", pipeline=test_pipeline, in_memory=True)
data = dict(
    samples_per_gpu=128,
    workers_per_gpu=0,
    train=dict(
        type="ImageFolder",
        data_prefix="cifar10_jpg/train",
        in_memory=True,
        pipeline=[
            dict(type="LoadImageFromFile"),
            dict(type="RandomCrop", size=32, padding=4),
            dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
            normalize,
            dict(type="ImageToTensor", keys=["img"]),
            dict(type="ToTensor", keys=["gt_label"]),
            dict(type="Collect", keys=["img", "gt_label"]),
        ],
    ),
    val=test_set,
    test=test_set,
)
evaluation = dict(interval=1, metric="accuracy")

optimizer = dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=1e-4)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False, warmup="linear", warmup_iters=100)
total_epochs = 5
checkpoint_config = dict(interval=1, max_keep_ckpts=1)
log_config = dict(interval=100, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
seed = 0
