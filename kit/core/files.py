"""Files that appear complete or not at all."""
import os
from pathlib import Path


def write_whole(path: str | Path, content: bytes) -> Path:
    """Write beside `path`, then rename: whoever reads sees the old file or the new one, also after a kill."""
    path = Path(path)
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        aside.write_bytes(content)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return path
