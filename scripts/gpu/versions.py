"""What runs here: ``python scripts/gpu/versions.py cpu|cuda``. Ends with an error where the GPU cannot be used."""

import json
import platform
import sys

import torch

if sys.argv[1] == "cuda" and not torch.cuda.is_available():
    raise SystemExit(f"versions: torch {torch.__version__} finds no GPU that it can use")
gpus = torch.cuda.device_count() if sys.argv[1] == "cuda" else 0
found = {
    "python": platform.python_version(),
    "torch": torch.__version__,
    "CUDA of torch": torch.version.cuda,
    "GPUs": gpus,
    "capability": ["{}.{}".format(*torch.cuda.get_device_capability(i)) for i in range(gpus)],
}
print("RESULT", json.dumps(found))
