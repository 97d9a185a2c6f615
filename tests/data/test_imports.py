"""What `import kit` costs: the libraries that are slow to import are imported by the functions that need them."""
import subprocess
import sys

SUBPACKAGES = ("data", "models", "core", "attacks", "explain", "detect", "certify", "fire", "defend", "report")
PHOTOGRAPHS = """
import sys
import kit.data, kit.models
kit.data.load("photos"), kit.models.load("imagenet/efficientnet_lite0")
print(*sys.modules)
"""
SLOW = {"torchvision", "sklearn", "skimage", "scipy", "timm", "pandas", "joblib", "PIL.Image", "torch._dynamo", "sympy",
        "torch._inductor", "torch.onnx"}  # fmt: skip
PROGRAM = """
import sys
import torch, numpy, matplotlib.pyplot
before = set(sys.modules)
import {}
print(*(set(sys.modules) - before))
"""


def test_importing_the_package_imports_no_slow_library():
    program = PROGRAM.format(", ".join(f"kit.{name}" for name in SUBPACKAGES))
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    modules = set(answer.stdout.split())
    assert {f"kit.{name}" for name in SUBPACKAGES} <= modules
    assert modules & SLOW == set()
    others = {m for m in modules if m.partition(".")[0] not in ("kit", "rich", "safetensors", "numpy")}
    assert len(others) < 60, sorted(others)


def test_photographs_and_their_network_need_none_either():
    answer = subprocess.run([sys.executable, "-c", PHOTOGRAPHS], capture_output=True, text=True, check=True)
    assert set(answer.stdout.split()) & (SLOW - {"PIL.Image"}) == set()
