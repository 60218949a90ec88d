"""ResNet-50 on ImageNet, LSQ W2A2, first and last layers at 8 bits (Esser et al., arXiv:1902.08153).

    ./tools/dist_train.sh configs/LSQ/resnet50/config2_res50_lsq_2w2f.py 8 --load-from resnet50.pth

Expected top-1: 73.7 % in the paper, which uses a pre-activation ResNet [LSQ notes], 72.00 % in the original project
[original]; not yet reproduced here.
Hyper-parameters: the paper's for ResNet-18 [LSQ notes], except batch size and crop, which are the project's. Time: not
measured.

The only config of the library that is written out in full, as in the tutorial. The images are below `--data-root`:
`train/` and `val/`, with `meta/train.txt` and `meta/val.txt`, a line `path label` for each image, paths relative to
`train/` and `val/`. `resnet50.pth`: torchvision's weights (`--load-from torchvision://resnet50.IMAGENET1K_V1`).
Deviates from the original: its first layer has a float input; here that input has 8 bits, so that an exported model
computes every convolution in integers. The schedule is the paper's, like the expected results.
"""

model = dict(
    type="ImageClassifier",
    backbone=dict(type="ResNet", depth=50, num_stages=4, out_indices=(3,), style="pytorch"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=2048,
        loss=dict(type="CrossEntropyLoss", loss_weight=1.0),
        topk=(1, 5),
    ),
)

dataset_type = "ImageNetV1"
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", size=224),
    dict(type="RandomFlip", flip_prob=0.5, direction="horizontal"),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", size=(256, -1)),
    dict(type="CenterCrop", crop_size=224),
    dict(type="Normalize", **img_norm_cfg),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="Collect", keys=["img"]),
]
data = dict(
    samples_per_gpu=32,
    workers_per_gpu=4,
    train=dict(type=dataset_type, data_prefix="train", ann_file="meta/train.txt", pipeline=train_pipeline),
    val=dict(type=dataset_type, data_prefix="val", ann_file="meta/val.txt", pipeline=test_pipeline),
    test=dict(type=dataset_type, data_prefix="val", ann_file="meta/val.txt", pipeline=test_pipeline),
)
evaluation = dict(interval=2, metric="accuracy")

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="LSQConv", num_bit_w=2, num_bit_a=2),
        Linear=dict(type="LSQLinear", num_bit_w=2, num_bit_a=2),
    ),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)

checkpoint_config = dict(interval=2)
optimizer = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=2.5e-5)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy="CosineAnnealing", min_lr=0.0, by_epoch=False)
total_epochs = 90
log_level = "INFO"
log_config = dict(interval=200, hooks=[dict(type="TextLoggerHook"), dict(type="TensorboardLoggerHook")])
dist_params = dict(backend="nccl")
workflow = [("train", 1)]
load_from = None
resume_from = ""
cpu_only = False
find_unused_parameters = True
sycbn = False
