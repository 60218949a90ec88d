"""ResNet-50 on ImageNet in float: the partner of the tutorial's `config2_res50_dsq_m1_16_2w2f.py`.

    python tools/train.py configs/DSQ/resnet50/config1_res50_dsq_m1_16_32w32f.py --data-root IMAGENET

Expected top-1: no figure was found; the tutorial names this config, but does not show it. Hyper-parameters: its
partner's. Time: not measured.

The tutorial's analysis compares the two: `python tools/model_analysis_tool.py IMAGE` and then the two configs, the
float checkpoint, the quantized one, `gpu:0`, and the page to write.
"""

_base_ = "./config2_res50_dsq_m1_16_2w2f.py"

quant_transformer = None
