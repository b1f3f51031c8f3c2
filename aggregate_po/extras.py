"""Installation of optional dependencies, for the messages of errors."""

# The library is on no package index; once it is, this becomes `pip install "aggregate-po[{extra}]"`.
_COMMAND = 'pip install -e ".[{extra}]" in a checkout of aggregate_po'


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this library.

    Args:
        extra: name of the extra, as in the metadata of the package.

    Returns:
        A command to follow the word "run", without a period.

    Example:
        >>> install_command("lora")
        'pip install -e ".[lora]" in a checkout of aggregate_po'
    """
    return _COMMAND.format(extra=extra)
