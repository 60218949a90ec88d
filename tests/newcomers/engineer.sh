#!/usr/bin/env bash
# An engineer, in an empty folder: from photos in two folders to an integer model, and its use.
# LBITCLS_DATA: a folder with hymenoptera_256.tar.gz (ants and bees); without it the photos are enlarged digits.
set -euo pipefail
. "$(dirname "$0")/advice.sh"

python - <<'PYTHON'
import os
import tarfile
from pathlib import Path

from PIL import Image

from lbitcls.datasets.digits import Digits

archive = Path(os.environ.get("LBITCLS_DATA") or ".", "hymenoptera_256.tar.gz")
for name in ("ants", "bees"):
    Path("photos", name).mkdir(parents=True)
if archive.is_file():
    with tarfile.open(archive) as members:
        for member in members:
            folder = Path("photos", Path(member.name).parent.name)
            if "/train/" in member.name and member.name.endswith(".jpg") and len(list(folder.iterdir())) < 30:
                (folder / Path(member.name).name).write_bytes(members.extractfile(member).read())
else:
    digits = Digits(split="train")
    for label, name in enumerate(("ants", "bees")):
        for index in [at for at, found in enumerate(digits.labels) if found == label][:30]:
            image = Image.fromarray(digits.images[index, 0].numpy()).convert("RGB")
            image.resize((256, 256)).save(f"photos/{name}/{index}.jpg")
PYTHON

weights=${LBITCLS_DATA:-}/weights/squeezenet1_1_caffe_fp16.pth
[[ -f $weights ]] || weights=none
network=(--backbone squeezenet1_1 --pretrained "$weights")

advised "Did you mean 'int8'?" lbitcls init photos --quantize int7 "${network[@]}"
lbitcls init photos --quantize int8 "${network[@]}"
lbitcls check photos.py --options calibration.epoch=2 total_epochs=3

advised "Use --options calibration.epoch=N with N ≤ 2" lbitcls train photos.py --epochs 3
python -c 'import sys, torch; sys.exit(torch.cuda.is_available())' &&
    advised "Use the device cpu, or auto." lbitcls train photos.py --device cuda
lbitcls train photos.py --epochs 3 --options calibration.epoch=2

# The run exported its model; the file needs no config.
run=work_dirs/photos
photo=$(find photos -name '*.jpg' | sort | head -1)
lbitcls infer "$run/model.onnx" "$photo" | tee answer.txt
lbitcls infer "$run/model.onnx" photos/bees --out labeled
lbitcls test "$run/model.onnx" photos --metrics accuracy f1_score confusion
advised "Did you mean 'model.onnx'?" lbitcls test "$run/model.onx" photos
lbitcls benchmark "$run/model.onnx" "$run/float.onnx" --repeats 3 --json times.json
lbitcls visualize errors photos.py --out errors.png

# The photos are found from any folder.
mkdir elsewhere
(cd elsewhere && lbitcls test ../photos.py ../"$run/model.onnx")
