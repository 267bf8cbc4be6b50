"""Checks the shapes and dtypes in ccnet's signatures during every test; must run before ccnet is first imported."""

import jaxtyping

jaxtyping.install_import_hook("ccnet", "beartype.beartype")
