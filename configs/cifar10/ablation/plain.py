"""ResNet-20 on CIFAR-10 as JPEG files, LSQ W2A2 in five epochs from the float model, without any ingredient.

    python tools/train.py configs/cifar10/resnet20.py --load-from resnet20.pth --data-root FOLDER
    python tools/train.py configs/cifar10/ablation/plain.py --data-root FOLDER

The other configs of this folder add one ingredient each; `all.py` has those of the recipe. For accuracy and
time see docs/results/cifar10_resnet20.md. On a GPU, or a CPU without VNNI: `--options kernels=auto`.
"""

_base_ = "../_base_/resnet20_lsq.py"

quant_transformer = dict(
    quan_policy=dict(Conv2d=dict(num_bit_w=2, num_bit_a=2, init="paper")),
    special_layers=dict(
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True, init="paper"),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True, init="paper"),
        ],
    ),
)
calibration = dict(num_batches=8, method=None)
distill = None
total_epochs = 5
