"""LSQ for `resnet20.py`: first and last layers at 8 bits, one scale per output channel, learning from the float model.

The config itself sets the bits of the other layers and the epochs.
"""

_base_ = "../resnet20.py"

quant_transformer = dict(
    type="ModelTransformer",
    quan_policy=dict(Conv2d=dict(type="LSQConv", per_channel=True)),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="LSQConv", num_bit_w=8, num_bit_a=8, per_channel=True),
            dict(type="LSQLinear", num_bit_w=8, num_bit_a=8, per_channel=True),
        ],
    ),
)
calibration = dict(num_batches=8, method="mse")
distill = dict(
    teacher=dict(checkpoint="work_dirs/resnet20/latest.pth"), loss="kl", temperature=4.0, weight=1.0, label_weight=0.0
)
kernels = dict(kind="integer", gradients="bf16")
load_from = "work_dirs/resnet20/latest.pth"
optimizer = dict(lr=0.02)
amp = None
compile = False
