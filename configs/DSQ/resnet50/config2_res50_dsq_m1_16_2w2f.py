"""ResNet-50 on ImageNet, DSQ W2A2, as the tutorial writes it: 8 bits at both ends, the first layer's input float.

    python tools/train.py configs/DSQ/resnet50/config2_res50_dsq_m1_16_2w2f.py --data-root IMAGENET

Expected top-1: no figure was found; the tutorial gives none. Hyper-parameters: the tutorial's, for one machine.
Time: not measured.

The quantization section is the tutorial's (Gong et al., arXiv:1908.05033, is the method); all else is in the float
partner. `config5_res50_dsq_m1_16_2w2f.py` is the tuned recipe.
"""

_base_ = "./config1_res50_dsq_m1_16_32w32f.py"

quant_transformer = dict(
    type="mTransformerV2",
    quan_policy=dict(
        Conv2d=dict(type="DSQConv", num_bit_w=2, num_bit_a=2, bSetQ=True),
        Linear=dict(type="DSQLinear", num_bit_w=2, num_bit_a=2),
    ),
    special_layers=dict(
        layers_name=["backbone.conv1", "head.fc"],
        convert_type=[
            dict(type="DSQConv", num_bit_w=8, num_bit_a=8, bSetQ=True, quant_activation=False),
            dict(type="DSQLinear", num_bit_w=8, num_bit_a=8),
        ],
    ),
)
