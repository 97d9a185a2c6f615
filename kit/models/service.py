"""A network behind an interface: a small HTTP server on this machine, and the model that asks it.

    with Service(model, digits=2, latency=0.01) as service:
        x_adv = square(service.remote(), x, y, eps=0.1)
    service.billed

An attack on `remote()` is an attack on an actual black box: images go out, probabilities come back, and nothing else.
"""
from __future__ import annotations

import io
import json
import threading
import time
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from kit.core import check_images, generator

FLOOR = 1e-30  # the smallest probability that is taken for its logarithm, as in ZOO's code
TRIES, HOST = 20, "127.0.0.1"


class Service:
    """Answers POST requests of images (float32, in NumPy's format) with {"probabilities": [[…], …]}.

    digits      decimals that the probabilities are rounded to, None for all
    latency     seconds that each request takes at least
    rate        images a second that are answered; a request beyond it gets 429 and how long to wait
    failures    the share of the answers that are lost on the way, after the work was done
    Each image that the network saw is billed, `billed` of them, whether the answer arrived or not.
    """

    def __init__(
        self, model: nn.Module, *, digits: int | None = None, latency: float = 0.0, rate: float | None = None,
        failures: float = 0.0, seed: int = 0,
    ):
        parameters = getattr(model, "parameters", lambda: ())()  # a function has none
        self._where = next((p.device for p in parameters), torch.device("cpu"))
        self.model, self.digits, self.latency, self.rate, self.failures = model, digits, latency, rate, failures
        self.billed, self._free, self._source, self._lock = 0, 0.0, generator(seed), threading.Lock()
        self._server: ThreadingHTTPServer | None = None

    def __enter__(self) -> Service:
        server = self._server = ThreadingHTTPServer((HOST, 0), _handler(self))
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def remote(self) -> Remote:
        """The model that asks this service."""
        if self._server is None:
            raise ValueError("the service does not run: use it in `with Service(model) as service: …`")
        return Remote(self._server.server_port, FLOOR if self.digits is None else 0.5 * 10**-self.digits)

    def answer(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """The status of the answer, and what it says."""
        time.sleep(self.latency)
        try:
            x = torch.from_numpy(np.load(io.BytesIO(body), allow_pickle=False))
            check_images(x)
        except (ValueError, TypeError, EOFError, OSError) as error:
            return 400, {"error": str(error)}
        with self._lock:
            now = time.monotonic()
            if self.rate and now < self._free:
                return 429, {"error": "too many images a second", "wait": self._free - now}
            self._free = max(now, self._free) + len(x) / self.rate if self.rate else 0.0
            with torch.no_grad():
                p = self.model(x.to(self._where)).softmax(1)
            self.billed += len(x)
            if float(torch.rand(1, generator=self._source)) < self.failures:
                return 500, {"error": "the answer was lost"}
        return 200, {"probabilities": (p if self.digits is None else p.round(decimals=self.digits)).tolist()}


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, answer = service.answer(self.rfile.read(int(self.headers["Content-Length"])))
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *args: Any) -> None:
            pass

    return Handler


class Remote(nn.Module):
    """Images (N, C, H, W) in [0, 1] → the logarithms (N, K) of the probabilities that a service returns for them.

    What is rounded to 0 counts as `floor`. It waits where the service says so, and asks again, up to 20 times, where an
    answer was lost; `requests` counts all that were sent. Raises RuntimeError where the service cannot be reached, and
    ValueError, with the service's words, where it refuses the images.
    """

    def __init__(self, port: int, floor: float = FLOOR):
        super().__init__()
        self.port, self.floor, self.requests = port, floor, 0

    def forward(self, x: Tensor) -> Tensor:
        buffer = io.BytesIO()
        np.save(buffer, x.detach().to("cpu", torch.float32).contiguous().numpy())
        tries = 0
        while tries < TRIES:
            status, answer = self._post(buffer.getvalue())
            if status == 200:
                return torch.tensor(answer["probabilities"], dtype=x.dtype, device=x.device).clamp_min(self.floor).log()
            if status == 400:
                raise ValueError(f"the service refuses the images: {answer['error']}")
            if status == 429:
                time.sleep(answer["wait"])
            else:
                tries += 1
        raise RuntimeError(f"the service lost its answer {TRIES} times in a row: try again later")

    def _post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        self.requests += 1
        connection = HTTPConnection(HOST, self.port, timeout=60)
        try:
            connection.request("POST", "/predict", body, {"Content-Type": "application/octet-stream"})
            reply = connection.getresponse()
            return reply.status, json.loads(reply.read())
        except (OSError, HTTPException) as error:
            raise RuntimeError(f"no service answers at port {self.port} ({type(error).__name__}): is it still running?"
                               ) from None
        finally:
            connection.close()
