"""What LIME and KernelSHAP ask a model: games whose players are the pieces of an image, a table row or a text.

An input is cut into M interpretable pieces (superpixels, columns, words), and a coalition b ∈ {0, 1}^M says which of
them stay; the others are hidden. The value of a coalition is the model's answer to what is left, v(b) = f(h(b)).

Throughout, `predict` is a torch module (logits; explained is the softmax), an object with predict_proba (scikit-learn;
images are flattened), or any function of a NumPy array, or of a list of texts, that returns (B, K) or (B,).
"""
from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import QueryCounter, borrowed, check_images, check_model, chunk_size

# Characters of the scripts that put no spaces between words; a word of the others; both with the combining marks that
# follow, which Python's \w leaves out: those of Latin, Cyrillic and Greek, of Indian scripts, of Thai and its like.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff" \
            "\uf900-\ufaff\U00020000-\U0003ffff"
_MARKS = "".join(c for c in map(chr, [*range(0x300, 0x370), *range(0x483, 0x488), *range(0x591, 0x1100),
                                      *range(0x17b4, 0x17de), *range(0x3099, 0x309b)])
                 if unicodedata.category(c).startswith("M"))
WORD = re.compile(f"((?:[{_UNSPACED}](?<=\\w)[{_MARKS}]*)|(?:(?![{_UNSPACED}])\\w[{_MARKS}]*)+)")


@dataclass(frozen=True)
class Game:
    """What can be hidden, and the answer to what is left: `value(b)` maps coalitions b (B, M), bool, to (B,), float64.

    It is asked about `batch` coalitions at a time. `pieces` names the M players or, for an image, labels its pixels.
    """

    players: int
    value: Callable[[Tensor], Tensor]
    batch: int
    pieces: Any
    target: int


def image_game(
    predict: Any, x: Tensor, segments: Tensor | None = None, target: int | None = None, *,
    fill: str | float | Tensor = "mean",
) -> Game:
    """Players: the superpixels `segments` (H, W), numbered from 0, of one image x (1, C, H, W). Cost: one pass.

    A hidden superpixel shows `fill`: its mean colour ("mean"), a number, or an image (C, H, W), such as a blurred x.
    target: the class that is explained, the predicted one by default.
    """
    check_images(x)
    if len(x) != 1:
        raise ValueError(f"a game is of one image, not {len(x)}: use x[:1]")
    segments = superpixels(x)[0] if segments is None else segments
    if segments.shape != x.shape[2:]:
        raise ValueError(f"segments must have the image's shape {tuple(x.shape[2:])}, not {tuple(segments.shape)}")
    flat, names = _numbered(segments.to(x.device).flatten())
    if names < 2:
        raise ValueError("the segments are one piece: choose another method or options in superpixels(x, method, …)")
    pixels = x[0].detach().permute(1, 2, 0).flatten(0, 1).contiguous()  # so that what is shown is channels last
    hidden = pixels
    if isinstance(fill, str):
        if fill != "mean":
            raise ValueError(f"fill must be 'mean', a number or an image, not {fill!r}")
        count = torch.bincount(flat).to(x.dtype)[:, None]
        hidden = (pixels.new_zeros(names, x.shape[1]).index_add_(0, flat, pixels) / count)[flat]
    else:
        image = torch.as_tensor(fill, dtype=x.dtype, device=x.device)
        hidden = image.expand(x[0].shape).permute(1, 2, 0).flatten(0, 1).contiguous()
    ask = asker(predict, x)
    answer = ask(x)[0]
    chosen = int(answer.argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        shown = torch.where(b.to(x.device).index_select(1, flat)[:, :, None], pixels, hidden)
        return ask(shown.view(len(b), *x.shape[2:], x.shape[1]).permute(0, 3, 1, 2))[:, chosen]

    return Game(names, value, chunk_size(x), flat.view(x.shape[2:]), chosen)


def table_game(
    predict: Any, row: Any, background: Any, target: int | None = None, names: Sequence[str] | None = None,
) -> Game:
    """Players: the columns of one row (d,). A hidden column takes its values from the rows of `background` (R, d).

    v(b) is the mean answer over the R rows, so that each coalition costs R predictions; R = 1 (a mean row) is cheap,
    more rows say what the model expects without the column. Hidden columns are taken as independent of the shown ones.
    """
    row, background = np.asarray(row, dtype=np.float64).reshape(1, -1), np.asarray(background, dtype=np.float64)
    background = background.reshape(-1, background.shape[-1])
    if row.shape[1] != background.shape[1]:
        raise ValueError(f"the row has {row.shape[1]} columns and the background {background.shape[1]}")
    ask = asker(predict)
    chosen = int(ask(row)[0].argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        shown = np.where(b.cpu().numpy()[:, None], row, background[None])
        return ask(shown.reshape(-1, row.shape[1]))[:, chosen].view(len(b), -1).mean(1)

    pieces = tuple(names) if names is not None else tuple(f"column {k}" for k in range(row.shape[1]))
    return Game(row.shape[1], value, max(1, 4096 // len(background)), pieces, chosen)


def text_game(predict: Any, text: str, target: int | None = None) -> Game:
    """Players: the distinct words of a text. A hidden word is cut out wherever it stands. `predict` takes a list.

    In scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each character is a
    player, with its combining marks, since where words end there is a question for a dictionary.
    """
    parts = WORD.split(text)
    words = tuple(dict.fromkeys(parts[1::2]))
    if not words:
        raise ValueError("the text holds no words")
    place = {word: k for k, word in enumerate(words)}
    ask = asker(predict)
    chosen = int(ask([text])[0].argmax()) if target is None else int(target)

    def value(b: Tensor) -> Tensor:
        kept = b.tolist()
        return ask(["".join(p for k, p in enumerate(parts) if k % 2 == 0 or row[place[p]]) for row in kept])[:, chosen]

    return Game(len(words), value, 256, words, chosen)


def asker(predict: Any, x: Tensor | None = None) -> Callable[[Any], Tensor]:
    """What takes inputs and returns answers (B, K) as float64 on the CPU."""
    if isinstance(predict, nn.Module):
        def answers(inputs: Any) -> Any:
            like = next((p for p in predict.parameters() if p.is_floating_point()), torch.empty(0))
            given = inputs if isinstance(inputs, Tensor) else torch.as_tensor(inputs).to(like)
            with borrowed(predict, given), torch.no_grad():
                return predict(given).softmax(1)
        if x is not None:
            with borrowed(predict, x):
                check_model(bare(predict), x)
    elif hasattr(predict, "predict_proba"):
        def answers(inputs: Any) -> Any:
            given = inputs if isinstance(inputs, list) else _numpy(inputs).reshape(len(inputs), -1)
            return predict.predict_proba(given)
    elif callable(predict):
        def answers(inputs: Any) -> Any:
            return predict(inputs if isinstance(inputs, list) else _numpy(inputs))
    else:
        raise TypeError(f"predict must be a torch module, have predict_proba, or be a function, "
                        f"not {type(predict).__name__}")

    def ask(inputs: Any) -> Tensor:
        answer = torch.as_tensor(answers(inputs)).detach().to("cpu", torch.float64)
        answer = answer[:, None] if answer.dim() == 1 else answer
        if answer.dim() != 2 or len(answer) != len(inputs):
            raise ValueError(f"predict must return (B, K) or (B,): {len(inputs)} inputs gave {tuple(answer.shape)}")
        return answer

    return ask


def _numpy(inputs: Any) -> np.ndarray:
    return inputs.contiguous().cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)


def bare(model: nn.Module) -> nn.Module:
    return model.model if isinstance(model, QueryCounter) else model


def _numbered(labels: Tensor) -> tuple[Tensor, int]:
    names, flat = labels.unique(return_inverse=True)
    return flat, len(names)


def superpixels(x: Tensor, method: str = "slic", **options) -> Tensor:
    """Segments (N, H, W), numbered from 0, of images (N, C, H, W) by scikit-image's `method`, with its own options.

    "slic" (n_segments, compactness), "quickshift" (kernel_size, max_dist, ratio), "felzenszwalb" (scale, sigma,
    min_size), "watershed" (markers, compactness), or "grid" (side, in pixels), which looks at nothing.
    """
    from skimage import filters, segmentation

    check_images(x)
    if method not in ("slic", "quickshift", "felzenszwalb", "watershed", "grid"):
        raise ValueError(f"method must be 'slic', 'quickshift', 'felzenszwalb', 'watershed' or 'grid', not {method!r}")
    if method == "grid":
        side, (height, width) = options.get("side", 4), x.shape[2:]
        rows, columns = torch.arange(height) // side, torch.arange(width) // side
        return (rows[:, None] * (int(columns[-1]) + 1) + columns).expand(len(x), -1, -1).contiguous().to(x.device)
    found = []
    for image in x:
        pixels = image.detach().cpu().double().permute(1, 2, 0).numpy()
        pixels = np.repeat(pixels[:, :, :1], 3, 2) if pixels.shape[2] != 3 else pixels
        if method == "slic":
            options = {"n_segments": 30, "compactness": 10.0} | options
            labels = segmentation.slic(pixels, start_label=0, **options)
        elif method == "quickshift":
            options = {"kernel_size": 2, "max_dist": 6, "ratio": 0.5} | options
            labels = segmentation.quickshift(pixels, **options)
        elif method == "felzenszwalb":
            options = {"scale": 50, "min_size": 10} | options
            labels = segmentation.felzenszwalb(pixels, **options)
        else:
            options = {"markers": 30, "compactness": 0.001} | options
            labels = segmentation.watershed(filters.sobel(pixels.mean(2)), **options)
        found.append(_numbered(torch.as_tensor(np.asarray(labels).astype(np.int64)))[0])
    return torch.stack(found).to(x.device)
