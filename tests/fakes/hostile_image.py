"""Images whose configuration is not what an honest one has."""

import io
import json
import tarfile
from typing import Any

import docker

from tests.system.engine.private import TASK_IMAGE


def make_image(api: docker.APIClient, name: str, **config: Any) -> str:
    """The task image with another configuration; back: its name."""
    base: dict[str, Any] = api.inspect_image(TASK_IMAGE)  # type: ignore[no-untyped-call]
    layers = base["RootFS"]["Layers"]
    image = {
        "architecture": base["Architecture"],
        "os": base["Os"],
        "config": {**base["Config"], **config},
        "rootfs": {"type": "layers", "diff_ids": layers},
        "history": [],
    }
    manifest = {
        "Config": "image.json",
        "RepoTags": [name],
        "Layers": [f"{number}.tar" for number in range(len(layers))],  # the engine has them
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, content in (("image.json", image), ("manifest.json", [manifest])):
            data = json.dumps(content).encode()
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    for line in api.load_image(archive.getvalue()):  # type: ignore[no-untyped-call]
        assert "error" not in line, line
    return name
