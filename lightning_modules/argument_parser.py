"""Argument parser of the command line."""

from __future__ import annotations

from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser
from typing_extensions import override

from lightning_modules.option_errors import explained


class PolicyArgumentParser(LightningArgumentParser):
    """Argument parser that reads configuration from `--config` alone, and whose errors name the remedy.

    By default the value of any option that expects a class may be a file, which is read as the configuration of that
    class, and may name any class to build. Here the path of a data file or of a model remains a path.
    """

    _file: Any = "the command line"  # configuration that is parsed

    @override
    def add_class_arguments(self, *arguments: Any, **options: Any) -> list[str]:
        """Add the arguments of a class, whose values are never read from a file."""
        return super().add_class_arguments(*arguments, **{**options, "sub_configs": False})

    @override
    def parse_path(self, cfg_path: Any, *arguments: Any, **options: Any) -> Any:
        """Parse a configuration file, and name it if it is no YAML."""
        self._file = cfg_path
        return super().parse_path(cfg_path, *arguments, **options)

    @override
    def print_usage(self, file: Any = None) -> None:
        """Print nothing, so that the error message stands out; `--help` lists every option."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Add a remedy to the error, and leave out what does not concern the value."""
        super().error(explained(message, self).replace('"<unicode string>"', f'"{self._file}"'), ex)
