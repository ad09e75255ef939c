"""Every default runs without network: in a process whose sockets refuse to connect anywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = """
import socket
def refuse(*arguments, **options):
    raise AssertionError(f"a connection was tried: {arguments}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
"""

SCRIPTS = [
    """
from lowland import data
files = {"cifar10", "cifar100", "svhn", "folders", "huggingface"}  # these need local files, and say so
for name in set(data.DATASETS) - files:
    assert len(data.load(name, **({"test_size": 10} if name == "mnist1d" else {})).train) > 50
for name in sorted(files):
    try:
        data.load(name, folder="/nowhere")
    except Exception as error:
        assert type(error).__name__ == "InputError", error
    else:
        raise AssertionError(name)
""",
    """
from lowland.cli.main import main
few = ["--data.options", "{train_size: 40}", "--epochs", "1", "--threads", "1", "--quiet"]
assert main(["fit", "run", *few]) == 0
assert main(["surface", "run", "--points", "[3, 3]", "--quiet"]) == 0
assert main(["report", "run", "--quiet"]) == 0
assert main(["fit", "small", "--config", "li-resnet20", "--scale", "small", *few]) == 0
""",
    """
import torch
from lowland import data, models, training
config = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 256}
fresh = models.create("huggingface", model_type="bert", classes=10, config=config, seed=0)
fresh.model.save_pretrained("encoder")
model = models.create("huggingface", folder="encoder", classes=10)  # an encoder from a local folder is fine-tuned
assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), model.parameters(), strict=True))
splits = data.topics(context=16, train_size=200)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
result = training.fit(model, optimizer, torch.nn.CrossEntropyLoss(), splits, epochs=3)
assert result.rows[-1]["train_loss"] < result.rows[0]["train_loss"]
""",
]


def test_no_connection_is_tried(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    for proxy in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        environment.pop(proxy, None)  # nobody may have to set these
    code = "\n".join([BLOCKED, *SCRIPTS])  # one process: most of its time goes into imports
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr
