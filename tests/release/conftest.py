"""The user's project is run where the library is installed, so its modules are not collected for doctests."""

collect_ignore = ["project"]
