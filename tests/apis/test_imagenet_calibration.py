"""Networks at 8 bits without training: what calibration costs on 800 real ImageNet images."""

from pathlib import Path

import pytest

from lbitcls.datasets import build_dataset
from lbitcls.utils.checkpoint import read_checkpoint
from lbitcls.utils.config import Config
from lbitcls.workflows.calibrating import calibrate_checkpoint

NETWORKS = {
    "mobilenet_v2": "mobilenet_v2_tf2_int8deq_flipw.pth",
    "squeezenet1_1": "squeezenet1_1_caffe_fp16.pth",
}


def config(name: str, repo_root: Path) -> Config:
    return Config.fromfile(repo_root / f"configs/calibration/{name}_8w8f.py")


@pytest.mark.parametrize("name", NETWORKS)
def test_no_image_is_both_calibrated_on_and_tested(name: str, repo_root: Path, shared_data: Path) -> None:
    data = config(name, repo_root).data
    sets = [build_dataset(data[split], shared_data) for split in ("calibration", "test")]
    names = [{dataset.describe(i) for i in range(len(dataset))} for dataset in sets]
    assert [len(part) for part in names] == [200, 800] and not names[0] & names[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NETWORKS)
def test_eight_bits_cost_at_most_a_point(name: str, repo_root: Path, shared_data: Path, tmp_path: Path) -> None:
    weights, out = shared_data / "weights" / NETWORKS[name], tmp_path / "quantized.pth"
    results = calibrate_checkpoint(config(name, repo_root), weights, out, data_root=str(shared_data))
    before, after = (results[phase]["top-1"] for phase in ("float", "quantized"))
    assert before - after <= 1.0 and before > 55
    meta = read_checkpoint(out)["meta"]
    assert meta["calibrated_on"] == 200 and len(meta["CLASSES"]) == 1000
    assert Config.fromstring(meta["config"], ".py").data.calibration.indices == range(0, 1000, 5)
