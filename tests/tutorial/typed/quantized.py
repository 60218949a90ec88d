"""PyTorch's quantized transfer learning tutorial, step by step. Reads `settings.py`.

Settings are those of `transfer.py`, with `float_layers = []` (convolutions that stay float, if the head has some) and
`kernels = "auto"`.
"""

from pathlib import Path

from lbitcls.apis import init_model, test_classifier, train_classifier
from lbitcls.utils import Config
from lbitcls.workflows.exporting import export_checkpoint
from lbitcls.workflows.visualizing import visualize

settings = Config.fromfile("settings.py")

tensors = [
    dict(type="Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    dict(type="ImageToTensor", keys=["img"]),
    dict(type="ToTensor", keys=["gt_label"]),
    dict(type="Collect", keys=["img", "gt_label"]),
]
data_transforms = {
    "train": [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", size=224),
        dict(type="RandomCrop", size=224),
        dict(type="RandomFlip", flip_prob=0.5),
        *tensors,
    ],
    "val": [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", size=224),
        dict(type="CenterCrop", crop_size=224),
        *tensors,
    ],
}
image_datasets = {x: dict(type="Hymenoptera", split=x, pipeline=data_transforms[x]) for x in ["train", "val"]}


def recipe(work_dir, backbone, **sections):
    """A model with the new head on `backbone`, its data, and what both parts of the tutorial share."""
    model = dict(type="ImageClassifier", backbone=backbone, neck=settings.neck, head=dict(**settings.head, dropout=0.5))
    data = dict(samples_per_gpu=16, **image_datasets)
    evaluation = dict(train=True)
    return Config(
        dict(
            model=model,
            data=data,
            evaluation=evaluation,
            total_epochs=settings.num_epochs,
            log_config=dict(pictures=False),  # those that the tutorial shows are drawn below
            seed=0,
            work_dir=work_dir,
            **sections,
        )
    )


# Part 1: the head alone is trained, on the features of a network of integers.
model_fe = dict(
    type="IntegerBackbone",
    from_float=settings.backbone,
    checkpoint=settings.weights,
    calibration=dict(data=dict(type="Hymenoptera", split="train", pipeline=data_transforms["val"]), num_images=200),
)
new_model = recipe(
    "int8_features",
    model_fe,
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9),
    lr_config=dict(policy="step", step=7, gamma=0.1),
)
visualize("batch", new_model, cols=4, out="batch.png")
trained_head = train_classifier(new_model)
visualize("predictions", new_model, init_model(new_model, trained_head["checkpoint"]), rows=3, cols=3, out="part1.png")

# Part 2: all of it is trained with quantizers in place, then written as integers.
bits = dict(num_bit_w=8, num_bit_a=8, reduce_range=True)
model_ft = recipe(
    "qat",
    dict(**settings.backbone, pretrained=settings.weights),
    quant_transformer=dict(
        type="ModelTransformer",
        quan_policy=dict(Conv2d=dict(type="TorchQATConv", **bits)),
        exclude_layers=settings.float_layers,
        fold_bn=True,
    ),
    kernels=settings.kernels,
    optimizer=dict(type="SGD", lr=1e-3, momentum=0.9, weight_decay=0.1),
    lr_config=dict(policy="step", step=5, gamma=0.3),
)
tuned = train_classifier(model_ft)
quantized = export_checkpoint(model_ft, tuned["checkpoint"], "quantized.onnx")

aware = test_classifier(model_ft, tuned["checkpoint"])
integer = test_classifier(model_ft, "quantized.onnx")
size = tuned["model_size"]
print(f"float: {size['float_kib']:.0f} KiB, quantized: {Path('quantized.onnx').stat().st_size / 1024:.0f} KiB")
print(f"top-1 with quantizers: {aware['top-1']:.2f} %, in integers: {integer['top-1']:.2f} %")
visualize("predictions", model_ft, init_model(model_ft, "quantized.onnx"), rows=3, cols=3, out="part2.png")
