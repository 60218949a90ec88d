"""PyTorch's transfer learning tutorial on ants and bees, step by step. Reads `settings.py`.

The tutorial's own settings:

    backbone = dict(type="ResNet", depth=18)
    weights = "torchvision://resnet18"
    neck = dict(type="GlobalAveragePooling")
    head = dict(type="LinearClsHead", num_classes=2, in_channels=512)
    num_epochs = 25
"""

from lbitcls.apis import inference_model, init_model, show_result, train_classifier
from lbitcls.datasets import build_dataset
from lbitcls.utils import Config
from lbitcls.workflows.analyzing import analyze_logs
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
        dict(type="RandomResizedCrop", size=224),
        dict(type="RandomFlip", flip_prob=0.5),
        *tensors,
    ],
    "val": [
        dict(type="LoadImageFromFile"),
        dict(type="Resize", size=256),
        dict(type="CenterCrop", crop_size=224),
        *tensors,
    ],
}
image_datasets = {x: dict(type="Hymenoptera", split=x, pipeline=data_transforms[x]) for x in ["train", "val"]}


def recipe(work_dir, **backbone):
    """Everything that the tutorial sets up before `train_model`; `backbone` adds to the backbone's arguments."""
    return Config(
        dict(
            model=dict(
                type="ImageClassifier",
                backbone=dict(**settings.backbone, pretrained=settings.weights, **backbone),
                neck=settings.neck,
                head=settings.head,
            ),
            data=dict(samples_per_gpu=4, **image_datasets),
            evaluation=dict(train=True),
            optimizer=dict(type="SGD", lr=0.001, momentum=0.9),
            lr_config=dict(policy="step", step=7, gamma=0.1),
            total_epochs=settings.num_epochs,
            seed=0,
            work_dir=work_dir,
        )
    )


def train_and_show(cfg):
    """`train_model`, whose model has the best weights at the end, and `visualize_model`."""
    trained = train_classifier(cfg)
    model = init_model(cfg, trained["checkpoint"])
    visualize("predictions", cfg, model, rows=3, cols=2, out=f"{cfg.work_dir}.png")
    return model, trained


finetune, features = recipe("finetune"), recipe("features", frozen=True)
dataset_sizes = {x: len(build_dataset(image_datasets[x])) for x in ["train", "val"]}
class_names = build_dataset(image_datasets["train"]).CLASSES
visualize("batch", finetune, rows=1, cols=4, out="batch.png")

model_ft, tuned = train_and_show(finetune)
model_conv, fixed = train_and_show(features)

img_path = build_dataset(image_datasets["val"]).describe(0)
result = inference_model(model_conv, img_path)
print("Predicted:", result["pred_class"])
show_result(model_conv, img_path, result, out_file="photo.png")

analyze_logs(["finetune", "features"], ["loss", "top-1"], axis="images", out="curves.png")
